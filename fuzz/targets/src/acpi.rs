//! The ACPI tables of any machine: they are refused, or fit into their area with their checksums right.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Unstructured};
use msr_bus::Topology;
use msr_vmm::acpi::{self, AcpiConfig, VirtioMmio};
use msr_vmm::layout;
use msr_vmm::memory::GuestMemoryMmap;
use vm_memory::{Bytes, GuestAddress};

#[derive(Arbitrary, Debug)]
struct Machine {
    packages: u8,
    cores: u8,
    threads: u8,
    i8042: bool,
    virtio: Vec<(u32, u32, u32)>,
    pci_buses: BTreeSet<u8>,
}

/// Writes the tables of the machine in `data`.
pub fn run(data: &[u8]) {
    let Ok(machine) = Machine::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    let virtio = machine.virtio.iter();
    let virtio: Vec<_> = virtio
        .map(|&(base, size, gsi)| VirtioMmio { base, size, gsi })
        .collect();
    let config = AcpiConfig {
        topology: Topology {
            packages: u32::from(machine.packages % 16),
            cores: u32::from(machine.cores % 16),
            threads: u32::from(machine.threads % 16),
        },
        virtio: &virtio,
        i8042: machine.i8042,
        pci_buses: &machine.pci_buses,
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
    let rsdp = match acpi::write(&memory, &config) {
        Ok(rsdp) => rsdp,
        Err(error) => return drop(error.to_string()),
    };
    assert_eq!(rsdp.0, layout::ACPI_TABLES);
    let sum = |address, length: u32| {
        let mut bytes = vec![0; length as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    };
    // ACPI 6.5, section 5.2.5.3: the first 20 bytes sum up to 0, and so do all 36.
    assert_eq!((sum(rsdp.0, 20), sum(rsdp.0, 36)), (0, 0));
    let xsdt: u64 = memory.read_obj(GuestAddress(rsdp.0 + 24)).unwrap();
    let length: u32 = memory.read_obj(GuestAddress(xsdt + 4)).unwrap();
    assert_eq!(sum(xsdt, length), 0);
    for entry in (36..u64::from(length)).step_by(8) {
        let table: u64 = memory.read_obj(GuestAddress(xsdt + entry)).unwrap();
        let length: u32 = memory.read_obj(GuestAddress(table + 4)).unwrap();
        assert_eq!(sum(table, length), 0, "table {table:#x}");
    }
}
