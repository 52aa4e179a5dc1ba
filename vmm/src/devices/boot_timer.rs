//! The port by which a guest says that its init runs, for `--boot-timing`.

use std::sync::Arc;

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::timing::{BootEvent, BootTiming};

/// Notes the time of the first write, whatever is written. Reads give 0.
pub struct BootTimer(pub Arc<BootTiming>);

impl DevicePio for BootTimer {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        self.0.mark(BootEvent::Init);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_first_write_is_the_guests_init() {
        let timing = Arc::new(BootTiming::new(Instant::now()));
        let timer = BootTimer(timing.clone());
        let mut data = [0xff];
        timer.pio_read(PioAddress(0), 0, &mut data);
        assert_eq!((data, timing.at(BootEvent::Init)), ([0], None));
        timer.pio_write(PioAddress(0), 0, &[1]);
        let first = timing.at(BootEvent::Init);
        timer.pio_write(PioAddress(0), 0, &[2]);
        assert!(first.is_some());
        assert_eq!(timing.at(BootEvent::Init), first);
    }
}
