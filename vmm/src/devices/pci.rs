//! PCI's configuration space: a host bridge, and what else the CPU model says is there.
//!
//! Linux looks for a way to PCI's configuration space whatever ACPI says, and calls it fatal to find none. It believes
//! in configuration mechanism 1 (PCI Local Bus Specification 3.0, section 3.2.2.3.2) once it has seen a host bridge
//! through it. So device 0 of bus 0 is there, always. Other functions are the processor's own, which programs look for
//! ([`PciFunction`]): ACPI describes a root for their buses, and Linux finds them. Without such, no bus is scanned.
//!
//! Nothing can be written but CONFIG_ADDRESS, so that this is all the state there is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::cpu::{PciAddress, PciFunction};

/// CONFIG_ADDRESS's enable bit.
const ENABLE: u32 = 1 << 31;
/// What software can set of CONFIG_ADDRESS: enable, bus, device, function and register.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;
/// The register in CONFIG_ADDRESS.
const REGISTER: u32 = 0xfc;
/// The function's number in CONFIG_ADDRESS.
const FUNCTION: u32 = 7 << 8;
/// CONFIG_DATA's offset from CONFIG_ADDRESS.
const DATA: PioAddressOffset = 4;

/// Vendor and device.
const ID: u32 = 0x00;
/// Class code and revision.
const CLASS: u32 = 0x08;
/// The header type among others.
const HEADER: u32 = 0x0c;
/// In that register: the device has more functions than this.
const MULTIPLE_FUNCTIONS: u32 = 1 << 23;

/// The host bridge of QEMU's that no driver knows by name (docs/specs/pci-ids.rst).
const HOST_BRIDGE: u32 = 0x0008_1b36;
/// Class 06h, subclass 00h: a host bridge.
const HOST_BRIDGE_CLASS: u32 = 0x0600_0000;

/// CONFIG_ADDRESS and CONFIG_DATA, ports 0xcf8 to 0xcff, and the configuration space behind them.
pub struct PciConfigSpace {
    address: AtomicU32,
    /// The registers that are not 0, by CONFIG_ADDRESS without its enable bit. Each function has [`ID`].
    registers: BTreeMap<u32, u32>,
}

impl Default for PciConfigSpace {
    fn default() -> Self {
        Self::new(&[])
    }
}

/// A function's CONFIG_ADDRESS without enable bit and register.
fn selector(address: PciAddress) -> u32 {
    let PciAddress {
        bus,
        device,
        function,
    } = address;
    u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8
}

impl PciConfigSpace {
    /// A configuration space of these functions, and of a host bridge unless they have one.
    pub fn new(functions: &[PciFunction]) -> Self {
        let mut registers = BTreeMap::from([(ID, HOST_BRIDGE), (CLASS, HOST_BRIDGE_CLASS)]);
        for function in functions {
            let at = selector(function.address);
            let id = function.id;
            registers.insert(at | ID, u32::from(id.device) << 16 | u32::from(id.vendor));
            registers.insert(
                at | CLASS,
                function.class << 8 | u32::from(function.revision),
            );
            for register in &function.register {
                registers.insert(at | register.offset, register.value);
            }
            if at & FUNCTION != 0 {
                registers.insert(at & !FUNCTION | HEADER, MULTIPLE_FUNCTIONS);
            }
        }
        Self {
            address: AtomicU32::new(0),
            registers,
        }
    }

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
        let at = address & !ENABLE;
        if address & ENABLE == 0 || !self.registers.contains_key(&(at & !REGISTER | ID)) {
            // There is nobody.
            return u32::MAX;
        }
        self.registers.get(&at).copied().unwrap_or(0)
    }
}

impl DevicePio for PciConfigSpace {
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
        // No function has a register to write.
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.set_address(u32::from_le_bytes(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuModel;

    const BASE: PioAddress = PioAddress(0xcf8);

    fn read<const N: usize>(space: &PciConfigSpace, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        space.pio_read(BASE, offset, &mut data);
        data
    }

    fn config(space: &PciConfigSpace, address: u32) -> u32 {
        space.pio_write(BASE, 0, &(ENABLE | address).to_le_bytes());
        u32::from_le_bytes(read(space, DATA))
    }

    #[test]
    fn linuxs_probe_of_mechanism_1_finds_a_host_bridge() {
        // arch/x86/pci/direct.c, pci_check_type1 and pci_sanity_check.
        let space = PciConfigSpace::default();
        space.pio_write(BASE, 3, &[1]);
        let before = read::<4>(&space, 0);
        space.pio_write(BASE, 0, &ENABLE.to_le_bytes());
        assert_eq!(read(&space, 0), ENABLE.to_le_bytes());
        space.pio_write(BASE, 0, &(ENABLE | 0x8).to_le_bytes());
        assert_eq!(read(&space, DATA + 2), [0, 6]);
        space.pio_write(BASE, 0, &before);
        assert_eq!(read(&space, 0), [0; 4]);
    }

    #[test]
    fn there_is_one_device_and_it_cannot_be_changed() {
        let space = PciConfigSpace::default();
        assert_eq!(config(&space, 0), HOST_BRIDGE);
        assert_eq!(config(&space, 4), 0);
        assert_eq!(config(&space, 0xfc), 0);
        for elsewhere in [1 << 8, 1 << 11, 1 << 16, 0x00ff_ff00] {
            assert_eq!(config(&space, elsewhere), u32::MAX, "{elsewhere:#x}");
        }
        config(&space, 4);
        space.pio_write(BASE, DATA, &[0xff; 4]);
        assert_eq!(config(&space, 4), 0);
        space.pio_write(BASE, 0, &[0; 4]);
        assert_eq!(read(&space, DATA), [0xff; 4], "not enabled");
    }

    #[test]
    fn a_models_functions_show_their_registers_and_no_others() {
        let model = "
            [[pci]]
            address = \"00:00.0\"
            id = \"8086:0c00\"
            class = 0x060000
            revision = 6
            register = [{ offset = 0x48, value = 0xfed10001 }]

            [[pci]]
            address = \"7e:00.0\"
            id = \"8086:3450\"
            class = 0x088000

            [[pci]]
            address = \"7e:00.1\"
            id = \"8086:3451\"
            class = 0x088000
            register = [{ offset = 0x2c, value = 0x00008086 }]
        ";
        let model: CpuModel = toml::from_str(model).unwrap();
        let space = PciConfigSpace::new(&model.pci);
        let bus = 0x7e << 16;
        for (at, value) in [
            (0, 0x0c00_8086),
            (0x08, 0x0600_0006),
            (0x0c, 0),
            (0x48, 0xfed1_0001),
            (0x4c, 0),
            (bus, 0x3450_8086),
            (bus | 0x0c, 0x0080_0000),
            (bus | 0x2c, 0),
            (bus | 1 << 8, 0x3451_8086),
            (bus | 1 << 8 | 0x08, 0x0880_0000),
            (bus | 1 << 8 | 0x0c, 0),
            (bus | 1 << 8 | 0x2c, 0x8086),
            (bus | 2 << 8, u32::MAX),
            (bus | 2 << 8 | 0x0c, u32::MAX),
            (0x7f << 16, u32::MAX),
        ] {
            assert_eq!(config(&space, at), value, "{at:#x}");
        }
    }

    #[test]
    fn accesses_of_any_size_stay_within_the_register() {
        let space = PciConfigSpace::default();
        config(&space, 0);
        assert_eq!(read(&space, DATA), [0x36]);
        assert_eq!(read(&space, DATA + 3), [0]);
        assert_eq!(read(&space, DATA + 3), [0, 0xff]);
        assert_eq!(read(&space, 1), [0xff; 2]);
    }
}
