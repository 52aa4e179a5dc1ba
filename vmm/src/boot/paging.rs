//! The page tables and the descriptor table that the kernel starts on and soon replaces.

use super::BootError;
use crate::layout;
use crate::memory::GuestMemoryMmap;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// How much is mapped, virtual equal to physical: all that can be addressed with 32 bits.
const MAPPED: u64 = 4 << 30;
/// One page directory for each GiB.
const DIRECTORIES: u64 = MAPPED / (ENTRIES * LARGE_PAGE);

// Page-table entries (Intel SDM, volume 3, "4-Level Paging and 5-Level Paging").
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;

/// The descriptors of the boot protocol: `__BOOT_CS` is 0x10 and `__BOOT_DS` 0x18. The TSS descriptor takes two.
pub(super) const GDT: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 64-bit code, accessed
    0x00cf_9300_0000_ffff, // data, writable, accessed
    0x0000_8b00_0000_0067, // TSS, busy, at address 0
    0,
];

const _: () = assert!(
    layout::BOOT_GDT + (GDT.len() * 8) as u64 <= layout::ZERO_PAGE
        && layout::PAGE_TABLES + (2 + DIRECTORIES) * PAGE <= layout::CMDLINE,
    "boot data overlaps"
);

/// Writes both; CR3 is [`layout::PAGE_TABLES`].
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    super::write(memory, &bytes(&tables()), layout::PAGE_TABLES)?;
    super::write(memory, &bytes(&GDT), layout::BOOT_GDT)
}

/// A PML4, a page-directory-pointer table, and the page directories, one after the other.
fn tables() -> Vec<u64> {
    let table = |number: u64| layout::PAGE_TABLES + number * PAGE;
    let mut entries = vec![0; ((2 + DIRECTORIES) * ENTRIES) as usize];
    entries[0] = table(1) | PRESENT | WRITABLE | ACCESSED;
    for directory in 0..DIRECTORIES {
        entries[(ENTRIES + directory) as usize] =
            table(2 + directory) | PRESENT | WRITABLE | ACCESSED;
    }
    let pages = entries[(2 * ENTRIES) as usize..].iter_mut();
    for (entry, number) in pages.zip(0..) {
        *entry = (number * LARGE_PAGE) | PRESENT | WRITABLE | ACCESSED | DIRTY | PAGE_SIZE;
    }
    entries
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        memory
    }

    /// Walks the tables as the processor does.
    fn translate(memory: &GuestMemoryMmap, linear: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let index = linear >> shift & 0x1ff;
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            assert_eq!(entry & WRITABLE, WRITABLE);
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 21 {
                assert_eq!(entry & PAGE_SIZE, PAGE_SIZE);
                return Some(table + (linear & (LARGE_PAGE - 1)));
            }
            assert_eq!(entry & PAGE_SIZE, 0);
        }
        None
    }

    #[test]
    fn the_first_4_gib_are_mapped_one_to_one() {
        let memory = memory();
        for address in [
            0,
            0x7000,
            0x10_0000,
            0x1f_ffff,
            0x20_0000,
            1 << 30,
            0xfee0_0000,
            0xffff_ffff,
        ] {
            assert_eq!(translate(&memory, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(&memory, 1 << 32), None);
        assert_eq!(translate(&memory, 1 << 39), None);
    }

    #[test]
    fn the_descriptors_are_flat_and_at_the_protocols_selectors() {
        let memory = memory();
        let descriptor = |selector: u64| -> u64 {
            memory
                .read_obj(GuestAddress(layout::BOOT_GDT + selector))
                .unwrap()
        };
        assert_eq!(descriptor(0), 0);
        // Limit 0xfffff pages; present, code, readable; long mode.
        assert_eq!(
            descriptor(0x10) & 0x00ff_ff00_0000_ffff,
            0x00af_9b00_0000_ffff
        );
        // Present, data, writable; 32-bit.
        assert_eq!(descriptor(0x18), 0x00cf_9300_0000_ffff);
    }
}
