//! Port accesses, one at a time.
//!
//! KVM hands over a string instruction (REP INSB, REP OUTSW, ...) as one exit with up to a page of data: `count`
//! accesses of `size` bytes to the same port (Documentation/virt/kvm/api.rst, `KVM_EXIT_IO`). Devices see each of
//! them as the access it is, never several as a wide one.

use vm_device::bus::PioAddress;
use vm_device::device_manager::{IoManager, PioManager};

use crate::vcpu::OPEN_BUS;

/// Reads from `port`, in accesses of `size` bytes, as many as fill `data`.
pub(crate) fn read(io: &IoManager, port: u16, size: usize, data: &mut [u8]) {
    for access in data.chunks_mut(size.max(1)) {
        if io.pio_read(PioAddress(port), access).is_err() {
            access.fill(OPEN_BUS);
        }
    }
}

/// Writes `data` to `port`, in accesses of `size` bytes. What is written where no device listens is lost, as on a
/// real bus.
pub(crate) fn write(io: &IoManager, port: u16, size: usize, data: &[u8]) {
    for access in data.chunks(size.max(1)) {
        drop(io.pio_write(PioAddress(port), access));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vm_device::DevicePio;
    use vm_device::bus::{PioAddressOffset, PioRange};

    use super::*;

    /// Counts its accesses, and reads as their number.
    #[derive(Default)]
    struct Notes(Mutex<Vec<Vec<u8>>>);

    impl DevicePio for Notes {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
            let mut notes = self.0.lock().unwrap();
            notes.push(vec![]);
            data.fill(notes.len() as u8);
        }

        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
            self.0.lock().unwrap().push(data.to_vec());
        }
    }

    fn bus() -> (IoManager, Arc<Notes>) {
        let notes = Arc::new(Notes::default());
        let mut io = IoManager::new();
        let range = PioRange::new(PioAddress(0x10), 4).unwrap();
        io.register_pio(range, notes.clone()).unwrap();
        (io, notes)
    }

    #[test]
    fn a_string_instruction_is_as_many_accesses_as_it_repeats() {
        let (io, notes) = bus();
        let mut data = [0; 6];
        read(&io, 0x10, 1, &mut data);
        assert_eq!(data, [1, 2, 3, 4, 5, 6]);
        read(&io, 0x10, 2, &mut data);
        assert_eq!(data, [7, 7, 8, 8, 9, 9]);
        notes.0.lock().unwrap().clear();
        write(&io, 0x10, 4, &[1, 2, 3, 4, 5, 6, 7, 8]);
        write(&io, 0x10, 2, &[9, 9]);
        let expected: [&[u8]; 3] = [&[1, 2, 3, 4], &[5, 6, 7, 8], &[9, 9]];
        assert_eq!(*notes.0.lock().unwrap(), expected);
    }

    #[test]
    fn a_port_that_nothing_answers_reads_as_ones() {
        let (io, _) = bus();
        let mut data = [0; 4];
        read(&io, 0x20, 2, &mut data);
        assert_eq!(data, [0xff; 4]);
        write(&io, 0x20, 1, &data);
    }
}
