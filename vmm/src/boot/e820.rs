//! The memory map that the kernel is told of.

use linux_loader::loader::bootparam::boot_e820_entry;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;
use crate::memory::GuestMemoryMmap;

/// What a range of physical memory is for (ACPI 6.5, table 15.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum E820Type {
    /// Free to use.
    Ram = 1,
    /// Not for the guest's own use.
    Reserved = 2,
    /// Holds ACPI tables.
    AcpiTables = 3,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct E820Entry {
    /// The first byte's physical address.
    pub(super) address: u64,
    /// The size, in bytes.
    pub(super) size: u64,
    /// What it is for.
    pub(super) kind: E820Type,
}

impl From<E820Entry> for boot_e820_entry {
    fn from(entry: E820Entry) -> Self {
        Self {
            addr: entry.address,
            size: entry.size,
            r#type: entry.kind as u32,
        }
    }
}

/// The map of `memory`: all of it is free but what a PC keeps between the EBDA and 1 MiB, where the generation identifier and the
/// ACPI tables are.
pub(super) fn map(memory: &GuestMemoryMmap) -> Vec<E820Entry> {
    let mut map = Vec::new();
    let mut add = |address: u64, end: u64, kind| {
        if address < end {
            map.push(E820Entry {
                address,
                size: end - address,
                kind,
            });
        }
    };
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let end = start + region.len();
        add(start, end.min(layout::EBDA), E820Type::Ram);
        add(
            start.max(layout::GENERATION_ID_PAGE),
            end.min(layout::ACPI_TABLES),
            E820Type::Reserved,
        );
        add(
            start.max(layout::ACPI_TABLES),
            end.min(layout::ACPI_TABLES_END),
            E820Type::AcpiTables,
        );
        add(start.max(layout::HIGH_MEMORY), end, E820Type::Ram);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    /// (address, size, type) as the kernel logs them.
    fn mapped(ranges: &[(u64, usize)]) -> Vec<(u64, u64, u32)> {
        let ranges: Vec<_> = ranges.iter().map(|(a, s)| (GuestAddress(*a), *s)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let entries = map(&memory);
        entries
            .iter()
            .map(|e| (e.address, e.size, e.kind as u32))
            .collect()
    }

    #[test]
    fn memory_is_free_but_for_the_area_below_1_mib() {
        assert_eq!(
            mapped(&[(0, 256 << 20)]),
            [
                (0, 0x9_fc00, 1),
                (0xd_f000, 0x1000, 2),
                (0xe_0000, 0x2_0000, 3),
                (0x10_0000, 255 << 20, 1),
            ]
        );
    }

    #[test]
    fn memory_goes_on_at_4_gib_after_the_device_hole() {
        assert_eq!(
            mapped(&[(0, 3 << 30), (4 << 30, 1 << 30)])[3..],
            [(0x10_0000, (3 << 30) - (1 << 20), 1), (4 << 30, 1 << 30, 1)]
        );
    }

    #[test]
    fn a_guest_of_1_mib_has_no_high_memory() {
        assert_eq!(
            mapped(&[(0, 1 << 20)]),
            [
                (0, 0x9_fc00, 1),
                (0xd_f000, 0x1000, 2),
                (0xe_0000, 0x2_0000, 3)
            ]
        );
        assert_eq!(mapped(&[(0, 0x8_0000)]), [(0, 0x8_0000, 1)]);
    }
}
