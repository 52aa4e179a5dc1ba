//! The CMOS real-time clock (Motorola MC146818), as far as it tells the time.
//!
//! A Linux without kvmclock reads the time of day here early in its boot, whatever the FADT says of an RTC. From ports that
//! nothing answers it reads an update in progress, and waits for the end of it: ten thousand exits, up to 10 s.
//!
//! There are no alarm and no periodic interrupt, so the FADT still says that there is no RTC for a driver. The time is the
//! host's, in UTC, and cannot be set: the guest's writes are ignored.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The bits of port 0x70 that select a register; the highest masks NMIs on a PC.
const INDEX: u8 = 0x7f;

/// Register B: hours from 0 to 23. Numbers are BCD, the only format that Linux reads on x86.
const STATUS_B_24_HOURS: u8 = 1 << 1;
/// Register D: the battery is good.
const STATUS_D_VALID: u8 = 1 << 7;
/// Where a PC keeps the century.
const CENTURY: u8 = 0x32;

/// The clock behind ports 0x70 (index) and 0x71 (data).
pub struct Rtc {
    index: AtomicU8,
    now: fn() -> SystemTime,
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self {
            index: AtomicU8::new(0),
            now: SystemTime::now,
        }
    }

    /// The register that the guest has selected, the only state there is.
    pub(crate) fn index(&self) -> u8 {
        self.index.load(Ordering::Relaxed)
    }

    pub(crate) fn set_index(&self, index: u8) {
        self.index.store(index & INDEX, Ordering::Relaxed);
    }

    fn register(&self, index: u8) -> u8 {
        let time = || utc((self.now)());
        let number = match index {
            0x0 => time().second(),
            0x2 => time().minute(),
            0x4 => time().hour(),
            // Sunday is the first.
            0x6 => time().weekday().to_sunday_one_offset(),
            0x7 => time().day(),
            0x8 => time().month(),
            // From 1970 to 9999.
            0x9 => (time().year() % 100) as i8,
            CENTURY => (time().year() / 100) as i8,
            0xb => return STATUS_B_24_HOURS,
            0xd => return STATUS_D_VALID,
            // Register A, with no update in progress, register C, with no interrupt, and memory.
            _ => return 0,
        };
        // Every one of them is from 0 to 99.
        let (tens, ones) = (number / 10, number % 10);
        (tens << 4 | ones) as u8
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl DevicePio for Rtc {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // The index register cannot be read back.
        data.fill(0xff);
        if let (1, [byte]) = (offset, data) {
            *byte = self.register(self.index.load(Ordering::Relaxed));
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, [index]) = (offset, data) {
            self.index.store(index & INDEX, Ordering::Relaxed);
        }
    }
}

/// `time` as a date; before 1970 and beyond 9999, the nearest in between.
///
/// Not by the C library, whose `gmtime_r` looks for the host's time zone first: a vCPU thread in the sandbox may open no file.
fn utc(time: SystemTime) -> DateTime {
    let time = time.max(UNIX_EPOCH);
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    Offset::UTC.to_datetime(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PORT: PioAddress = PioAddress(crate::layout::RTC);

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let mut data = [0];
        rtc.pio_write(PORT, 0, &[index]);
        rtc.pio_read(PORT, 1, &mut data);
        data[0]
    }

    fn at(seconds: u64) -> [u8; 8] {
        let mut rtc = Rtc::new();
        // 2026-11-22 was a Sunday.
        rtc.now = match seconds {
            0 => || UNIX_EPOCH - Duration::from_secs(1),
            u64::MAX => || UNIX_EPOCH + Duration::from_secs(1 << 40),
            _ => || UNIX_EPOCH + Duration::from_secs(1_795_355_999),
        };
        [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|index| read(&rtc, index))
    }

    #[test]
    fn the_date_is_in_bcd() {
        assert_eq!(at(1), [0x20, 0x26, 0x11, 0x22, 1, 0x13, 0x59, 0x59]);
        assert_eq!(at(0), [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]);
        // The latest that there is.
        assert_eq!(at(u64::MAX)[..2], [0x99, 0x99]);
    }

    #[test]
    fn no_update_is_ever_in_progress_and_the_format_is_known() {
        let rtc = Rtc::new();
        assert_eq!(read(&rtc, 0xa) & 0x80, 0);
        assert_eq!(read(&rtc, 0xb), 0x02);
        assert_eq!(read(&rtc, 0xd), 0x80);
        assert_eq!(
            read(&rtc, 0x8b),
            0x02,
            "the NMI mask is no part of the index"
        );
    }

    #[test]
    fn writes_and_wide_accesses_change_nothing() {
        let rtc = Rtc::new();
        rtc.pio_write(PORT, 0, &[0xd]);
        rtc.pio_write(PORT, 1, &[0]);
        rtc.pio_write(PORT, 0, &[0, 0]);
        let mut wide = [0; 2];
        rtc.pio_read(PORT, 1, &mut wide);
        assert_eq!(wide, [0xff; 2]);
        let mut index = [0];
        rtc.pio_read(PORT, 0, &mut index);
        assert_eq!(index, [0xff]);
        let mut data = [0];
        rtc.pio_read(PORT, 1, &mut data);
        assert_eq!(data, [0x80]);
    }
}
