//! A PCI host bridge, and nothing behind it.
//!
//! Linux looks for a way to PCI's configuration space whatever ACPI says, and calls it fatal to find none. It believes
//! in configuration mechanism 1 (PCI Local Bus Specification 3.0, section 3.2.2.3.2) once it has seen a host bridge
//! through it. This is that bridge: device 0 of bus 0. ACPI describes no PCI root, so no bus is scanned.

use std::sync::atomic::{AtomicU32, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// CONFIG_ADDRESS's enable bit.
const ENABLE: u32 = 1 << 31;
/// What software can set of CONFIG_ADDRESS: enable, bus, device, function and register.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;
/// CONFIG_DATA's offset from CONFIG_ADDRESS.
const DATA: PioAddressOffset = 4;

/// Vendor and device: the host bridge of QEMU's that no driver knows by name (docs/specs/pci-ids.rst).
const ID: u32 = 0x0008_1b36;
/// Class 06h, subclass 00h: a host bridge.
const CLASS: u32 = 0x0600_0000;

/// CONFIG_ADDRESS and CONFIG_DATA, ports 0xcf8 to 0xcff, and the bridge's configuration space.
#[derive(Default)]
pub struct PciHostBridge {
    address: AtomicU32,
}

impl PciHostBridge {
    /// CONFIG_ADDRESS, the only state there is.
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn set_address(&self, address: u32) {
        self.address.store(address & ADDRESS, Ordering::Relaxed);
    }

    /// The register that CONFIG_ADDRESS selects.
    fn selected(&self) -> u32 {
        let address = self.address();
        if address & ENABLE == 0 {
            return u32::MAX;
        }
        match address & !ENABLE {
            0x00 => ID,
            0x08 => CLASS,
            // The rest of the bridge: no command, no status, no resources.
            0x0c..=0xfc | 0x04 => 0,
            // There is nobody else.
            _ => u32::MAX,
        }
    }
}

impl DevicePio for PciHostBridge {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let (register, at) = match offset.checked_sub(DATA) {
            // CONFIG_ADDRESS is there for accesses of 32 bits only.
            None if offset == 0 && data.len() == 4 => (self.address(), 0),
            None => return data.fill(0xff),
            Some(at) => (self.selected(), usize::from(at)),
        };
        let bytes = register.to_le_bytes();
        let from = bytes.iter().skip(at).chain(std::iter::repeat(&0xff));
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        // The bridge has no register to write.
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.set_address(u32::from_le_bytes(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: PioAddress = PioAddress(0xcf8);

    fn read<const N: usize>(bridge: &PciHostBridge, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        bridge.pio_read(BASE, offset, &mut data);
        data
    }

    fn config(bridge: &PciHostBridge, address: u32) -> u32 {
        bridge.pio_write(BASE, 0, &(ENABLE | address).to_le_bytes());
        u32::from_le_bytes(read(bridge, DATA))
    }

    #[test]
    fn linuxs_probe_of_mechanism_1_finds_a_host_bridge() {
        // arch/x86/pci/direct.c, pci_check_type1 and pci_sanity_check.
        let bridge = PciHostBridge::default();
        bridge.pio_write(BASE, 3, &[1]);
        let before = read::<4>(&bridge, 0);
        bridge.pio_write(BASE, 0, &ENABLE.to_le_bytes());
        assert_eq!(read(&bridge, 0), ENABLE.to_le_bytes());
        bridge.pio_write(BASE, 0, &(ENABLE | 0x8).to_le_bytes());
        assert_eq!(read(&bridge, DATA + 2), [0, 6]);
        bridge.pio_write(BASE, 0, &before);
        assert_eq!(read(&bridge, 0), [0; 4]);
    }

    #[test]
    fn there_is_one_device_and_it_cannot_be_changed() {
        let bridge = PciHostBridge::default();
        assert_eq!(config(&bridge, 0), ID);
        assert_eq!(config(&bridge, 4), 0);
        assert_eq!(config(&bridge, 0xfc), 0);
        for elsewhere in [1 << 8, 1 << 11, 1 << 16, 0x00ff_ff00] {
            assert_eq!(config(&bridge, elsewhere), u32::MAX, "{elsewhere:#x}");
        }
        config(&bridge, 4);
        bridge.pio_write(BASE, DATA, &[0xff; 4]);
        assert_eq!(config(&bridge, 4), 0);
        bridge.pio_write(BASE, 0, &[0; 4]);
        assert_eq!(read(&bridge, DATA), [0xff; 4], "not enabled");
    }

    #[test]
    fn accesses_of_any_size_stay_within_the_register() {
        let bridge = PciHostBridge::default();
        config(&bridge, 0);
        assert_eq!(read(&bridge, DATA), [0x36]);
        assert_eq!(read(&bridge, DATA + 3), [0]);
        assert_eq!(read(&bridge, DATA + 3), [0, 0xff]);
        assert_eq!(read(&bridge, 1), [0xff; 2]);
    }
}
