use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, Permissions};

use super::flusher::FlushError;
use super::image::Image;
use super::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR_SIZE, SEG_MAX, SERIAL_LEN};
use crate::devices::virtio::buffers::{ChainError, Request};
use crate::devices::virtio::device::{DriverLog, QueueHandler, Served};
use crate::devices::virtio::rate_limiter::Limit;
use crate::memory::GuestMemoryMmap;

/// `struct virtio_blk_req` before its data (section 5.2.6): type, reserved, sector.
const HEADER_LEN: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE_LEN: usize = 16;

/// Serves the requests of one disk.
pub(super) struct Handler {
    image: Arc<Image>,
    serial: [u8; SERIAL_LEN],
    features: u64,
    request: Request,
    driver_log: DriverLog,
    limit: Limit,
}

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the device is stopping")]
    Stopped,
    #[error("the disk's rate limit has the request wait")]
    NotYet(Duration),
    #[error("a request of type {0} is not supported")]
    Unsupported(u32),
    #[error("flags {0:#x} are not supported")]
    Flags(u32),
    #[error("sectors {first} to {first} + {count} are beyond the end of the disk, {capacity}")]
    Range {
        first: u64,
        count: u64,
        capacity: u64,
    },
    #[error("{0} bytes are no whole number of sectors or ranges")]
    Length(u64),
    #[error("{0} bytes of data that go the other way than the request")]
    Direction(u64),
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("the image ends before byte {0}, it has been truncated")]
    Truncated(u64),
    #[error("{0}")]
    Chain(#[from] ChainError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<FlushError> for Failure {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Stopped => Self::Stopped,
            FlushError::Io(error) => Self::Io(error),
        }
    }
}

impl Failure {
    fn status(&self) -> u32 {
        match self {
            Self::Unsupported(_) | Self::Flags(_) => VIRTIO_BLK_S_UNSUPP,
            // Linux then falls back to writing zeroes, or does without discarding.
            Self::Io(error) if error.kind() == ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        }
    }
}

impl QueueHandler for Handler {
    fn serve(
        &mut self,
        _queue: usize,
        chain: DescriptorChain<&GuestMemoryMmap>,
        stop: &AtomicBool,
    ) -> Served {
        let mem = chain.memory();
        let loaded = self.request.load(chain.clone());
        let status_at = match loaded.and_then(|()| self.request.writable.take_last_byte()) {
            Ok(address) => address,
            Err(error) => {
                // There is no status byte to say it with.
                self.driver_log.log(format_args!("{error}"));
                return Served::Done(0);
            }
        };
        let room = self.request.writable.len();
        let result = self.execute(mem, stop);
        let written = room - self.request.writable.len();
        let (status, written) = match result {
            Ok(()) => (VIRTIO_BLK_S_OK, written + 1),
            Err(Failure::Stopped) => return Served::Abandoned,
            Err(Failure::NotYet(wait)) => return Served::NotYet(wait),
            Err(failure) => {
                self.driver_log.log(format_args!("{failure}"));
                (failure.status(), written)
            }
        };
        // A status is one byte, and a chain has less than 4 GiB: nothing is cut off.
        if mem.write_obj(status as u8, status_at).is_err() {
            let error = ChainError::NotInMemory(status_at.raw_value());
            self.driver_log.log(format_args!("{error}"));
            return Served::Done(0);
        }
        Served::Done(written as u32)
    }
}

impl Handler {
    pub(super) fn new(
        image: Arc<Image>,
        serial: [u8; SERIAL_LEN],
        features: u64,
        driver_log: DriverLog,
        limit: Limit,
    ) -> Self {
        Self {
            image,
            serial,
            features,
            request: Request::new(SEG_MAX as usize + 2),
            driver_log,
            limit,
        }
    }

    /// Takes what a request of this kind costs out of the disk's buckets, done well or not.
    fn admit(&self, kind: u32) -> Result<(), Failure> {
        let (readable, writable) = (&self.request.readable, &self.request.writable);
        let (bytes, operations) = match kind {
            VIRTIO_BLK_T_IN => (writable.len(), 1),
            VIRTIO_BLK_T_OUT => (readable.len(), 1),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let ranges = readable.len() / RANGE_LEN as u64;
                (0, ranges.clamp(1, MAX_RANGES.into()))
            }
            _ => (0, 1),
        };
        self.limit.admit(bytes, operations).map_err(Failure::NotYet)
    }

    fn execute(&mut self, mem: &GuestMemoryMmap, stop: &AtomicBool) -> Result<(), Failure> {
        let mut header = [0; HEADER_LEN];
        self.request.readable.read(mem, &mut header)?;
        let kind = le32(&header, 0);
        let sector = le64(&header, 8);
        self.admit(kind)?;
        match kind {
            VIRTIO_BLK_T_IN => self.read(mem, sector, stop),
            VIRTIO_BLK_T_OUT => self.write(mem, sector, stop),
            VIRTIO_BLK_T_FLUSH => self.flush(stop),
            VIRTIO_BLK_T_GET_ID => self.identify(mem),
            VIRTIO_BLK_T_DISCARD if self.accepted(VIRTIO_BLK_F_DISCARD) => {
                self.for_each_range(mem, stop, 0, |image, offset, len, _| {
                    image.discard(offset, len)
                })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.accepted(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                self.for_each_range(mem, stop, unmap, |image, offset, len, flags| {
                    if flags & unmap == 0 {
                        image.zero(offset, len)
                    } else {
                        image.discard(offset, len)
                    }
                })
            }
            _ => Err(Failure::Unsupported(kind)),
        }
    }

    fn read(
        &mut self,
        mem: &GuestMemoryMmap,
        sector: u64,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        none_left(self.request.readable.len())?;
        let data = &mut self.request.writable;
        let mut offset = byte_range(&self.image, sector, data.len())?;
        while data.len() != 0 {
            go_on(stop)?;
            let front = data.front(mem, Permissions::Write)?;
            let count = self.image.read(offset, &front)? as u64;
            if count == 0 {
                return Err(Failure::Truncated(offset));
            }
            data.advance(count);
            offset += count;
        }
        Ok(())
    }

    fn write(
        &mut self,
        mem: &GuestMemoryMmap,
        sector: u64,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        self.check_writable()?;
        none_left(self.request.writable.len())?;
        let data = &mut self.request.readable;
        let mut offset = byte_range(&self.image, sector, data.len())?;
        while data.len() != 0 {
            go_on(stop)?;
            let front = data.front(mem, Permissions::Read)?;
            let count = self.image.write(offset, &front)? as u64;
            if count == 0 {
                return Err(io::Error::from(ErrorKind::WriteZero).into());
            }
            data.advance(count);
            offset += count;
        }
        self.write_through(stop)
    }

    fn flush(&self, stop: &AtomicBool) -> Result<(), Failure> {
        if !self.image.readonly() {
            self.image.sync(stop)?;
        }
        Ok(())
    }

    fn identify(&mut self, mem: &GuestMemoryMmap) -> Result<(), Failure> {
        Ok(self.request.writable.write(mem, &self.serial)?)
    }

    /// Applies `change` to each of the ranges in the request (section 5.2.6.2), with its offset,
    /// length and flags, of which those in `flags_known` may be set.
    fn for_each_range(
        &mut self,
        mem: &GuestMemoryMmap,
        stop: &AtomicBool,
        flags_known: u32,
        change: impl Fn(&Image, u64, u64, u32) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.check_writable()?;
        let data = &mut self.request.readable;
        let bytes = data.len();
        if !bytes.is_multiple_of(RANGE_LEN as u64)
            || bytes / RANGE_LEN as u64 > u64::from(MAX_RANGES)
        {
            return Err(Failure::Length(bytes));
        }
        while data.len() != 0 {
            go_on(stop)?;
            let mut range = [0; RANGE_LEN];
            data.read(mem, &mut range)?;
            let (sector, count, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
            if flags & !flags_known != 0 {
                return Err(Failure::Flags(flags));
            }
            let len = u64::from(count) * SECTOR_SIZE;
            let offset = byte_range(&self.image, sector, len)?;
            if count > MAX_RANGE_SECTORS {
                return Err(Failure::Length(len));
            }
            if count != 0 {
                change(&self.image, offset, len, flags)?;
            }
        }
        self.write_through(stop)
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.image.readonly() {
            return Err(Failure::ReadOnly);
        }
        Ok(())
    }

    /// A driver that did not accept flushes relies on each write being durable (section 5.2.6.2).
    fn write_through(&self, stop: &AtomicBool) -> Result<(), Failure> {
        if !self.accepted(VIRTIO_BLK_F_FLUSH) {
            self.image.sync(stop)?;
        }
        Ok(())
    }

    fn accepted(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }
}

/// The byte at which `sector` starts, if `len` bytes from there on are whole sectors of the disk.
fn byte_range(image: &Image, sector: u64, len: u64) -> Result<u64, Failure> {
    if !len.is_multiple_of(SECTOR_SIZE) {
        return Err(Failure::Length(len));
    }
    let capacity = image.sectors();
    let count = len / SECTOR_SIZE;
    match sector.checked_add(count) {
        // Within the disk, whose size in bytes is a file's size: no overflow.
        Some(end) if end <= capacity => Ok(sector * SECTOR_SIZE),
        _ => Err(Failure::Range {
            first: sector,
            count,
            capacity,
        }),
    }
}

fn none_left(bytes: u64) -> Result<(), Failure> {
    if bytes != 0 {
        return Err(Failure::Direction(bytes));
    }
    Ok(())
}

fn go_on(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Acquire) {
        return Err(Failure::Stopped);
    }
    Ok(())
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
