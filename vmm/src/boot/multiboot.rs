//! Multiboot kernels: 32-bit ELF files with a header that a boot loader finds (Multiboot Specification, version 0.6.96).
//!
//! They are entered in 32-bit protected mode without paging, EAX holding the loader's magic number and EBX the address of the
//! Multiboot information. Of that they are given the size of memory, a memory map, the command line, and the initial RAM disk
//! as the one module. The command line begins with the kernel's path, as GRUB's and QEMU's do.
//!
//! Left out: the header's own load addresses in place of ELF's, video modes, and everything of a BIOS.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::GuestAddress;

use super::initrd::Initrd;
use super::memory::low_end;
use super::{BootError, e820};
use crate::layout;
use crate::memory::GuestMemoryMmap;

/// How far into the file the header may be.
const SEARCHED: usize = 8192;
/// What the header begins with.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the kernel's first instruction.
pub(super) const LOADER_MAGIC: u64 = 0x2bad_b002;

// The header's flags: what the kernel requires.
/// Modules aligned to pages. The initial RAM disk is.
const REQUIRES_PAGE_ALIGNMENT: u32 = 1 << 0;
/// The size of memory.
const REQUIRES_MEMORY: u32 = 1 << 1;
/// All flags that a loader must heed or refuse.
const REQUIREMENTS: u32 = 0xffff;

// The information's flags: which fields are valid.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_CMDLINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

/// The size of the information up to its last field used here, the loader's name; then comes the module's description.
const INFO_SIZE: u32 = 88;
const MODULE_SIZE: u32 = 16;
const LOADER_NAME: &[u8] = b"msr-vmm\0";
/// A memory map's entry: its size field, which does not count itself, and the range.
const MAP_ENTRY: u32 = 20;

/// What is wrong with a kernel, as a Multiboot kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultibootError {
    /// It has no header.
    #[error(
        "is a 32-bit ELF file without a Multiboot header in its first {SEARCHED} bytes; only Multiboot kernels are booted in 32-bit mode"
    )]
    NoHeader,
    /// It asks for what it does not get.
    #[error(
        "requires by its Multiboot header's flags {0:#x} what there is none of; memory information and aligned modules there are"
    )]
    Requires(u32),
}

/// Finds a usable header.
pub(super) fn check(file: &File) -> Result<(), MultibootError> {
    let mut start = vec![0; SEARCHED];
    let mut length = 0;
    // A file that cannot be read any further has no header there.
    while let Ok(count @ 1..) = file.read_at(&mut start[length..], length as u64) {
        length += count;
    }
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for header in start[..length].windows(12).step_by(4) {
        let (magic, flags, checksum) = (word(header), word(&header[4..]), word(&header[8..]));
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            continue;
        }
        let unmet = flags & REQUIREMENTS & !(REQUIRES_PAGE_ALIGNMENT | REQUIRES_MEMORY);
        return if unmet == 0 {
            Ok(())
        } else {
            Err(MultibootError::Requires(unmet))
        };
    }
    Err(MultibootError::NoHeader)
}

/// Writes the information, and gives its address.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    kernel: &Path,
    cmdline: &str,
    module: Option<Initrd>,
) -> Result<GuestAddress, BootError> {
    let info = information(memory, kernel, cmdline, module);
    super::write(memory, &info, layout::MULTIBOOT_INFO)?;
    Ok(GuestAddress(layout::MULTIBOOT_INFO))
}

/// The information with everything that it points to behind it.
fn information(
    memory: &GuestMemoryMmap,
    kernel: &Path,
    cmdline: &str,
    module: Option<Initrd>,
) -> Vec<u8> {
    let at = layout::MULTIBOOT_INFO as u32;
    let map = e820::map(memory);
    let map_at = at + INFO_SIZE + MODULE_SIZE;
    let map_size = (MAP_ENTRY + 4) * map.len() as u32;
    let name_at = map_at + map_size;
    let cmdline_at = name_at + LOADER_NAME.len() as u32;

    let mut info = vec![0; INFO_SIZE as usize];
    let mut set = |offset: usize, value: u32| {
        info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    let flags = HAS_MEMORY | HAS_CMDLINE | HAS_MEMORY_MAP | HAS_LOADER_NAME;
    set(
        0,
        if module.is_some() {
            flags | HAS_MODULES
        } else {
            flags
        },
    );
    // In KiB, from address 0 and from 1 MiB on.
    set(4, (layout::EBDA >> 10) as u32);
    let upper = low_end(memory).saturating_sub(layout::HIGH_MEMORY);
    set(8, (upper >> 10) as u32);
    set(16, cmdline_at);
    if module.is_some() {
        set(20, 1);
        set(24, at + INFO_SIZE);
    }
    set(44, map_size);
    set(48, map_at);
    set(64, name_at);

    let mut put = |values: &[u32]| {
        for value in values {
            info.extend(value.to_le_bytes());
        }
    };
    // The module's text is empty: the end of the command line.
    let line = format!("{} {cmdline}", kernel.display());
    let line = line.trim_end();
    let empty_text = cmdline_at + line.len() as u32;
    match module {
        Some(Initrd { address, size }) => {
            // Both lie below 2 GiB.
            let start = address.0 as u32;
            put(&[start, start + size as u32, empty_text, 0]);
        }
        None => put(&[0; 4]),
    }
    for entry in map {
        let [address, size] = [entry.address, entry.size].map(|v| [v as u32, (v >> 32) as u32]);
        put(&[
            MAP_ENTRY,
            address[0],
            address[1],
            size[0],
            size[1],
            entry.kind as u32,
        ]);
    }
    info.extend(LOADER_NAME);
    info.extend(line.as_bytes());
    info.push(0);
    info
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn checked(bytes: &[u8]) -> Result<(), MultibootError> {
        let path = std::env::temp_dir().join(format!(
            "multiboot-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut file = File::create_new(&path).unwrap();
        file.write_all(bytes).unwrap();
        let result = check(&File::open(&path).unwrap());
        std::fs::remove_file(path).unwrap();
        result
    }

    fn header(offset: usize, flags: u32) -> Vec<u8> {
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let mut bytes = vec![0; offset];
        for word in [HEADER_MAGIC, flags, checksum] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_header_is_found_on_any_word_of_the_first_8_kib() {
        for offset in [0, 0x1000, 8192 - 12] {
            assert!(checked(&header(offset, 3)).is_ok(), "{offset}");
        }
        for bytes in [header(2, 0), header(8192 - 8, 0), vec![0; 9000], vec![]] {
            assert!(matches!(checked(&bytes), Err(MultibootError::NoHeader)));
        }
        let mut wrong = header(0, 0);
        wrong[8] ^= 1;
        assert!(matches!(checked(&wrong), Err(MultibootError::NoHeader)));
    }

    #[test]
    fn a_requirement_that_cannot_be_met_is_named() {
        assert!(matches!(
            checked(&header(0, 0b111)),
            Err(MultibootError::Requires(0b100))
        ));
        // Bit 16 and up may be ignored.
        assert!(checked(&header(0, 1 << 16)).is_ok());
    }

    /// The offsets are those of the specification, section 3.3.
    #[test]
    fn the_kernel_finds_everything_where_the_specification_has_it() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let module = Initrd {
            address: GuestAddress(0x3ff_0000),
            size: 0x123,
        };
        let info = information(
            &memory,
            Path::new("tests/apic.flat"),
            "one two",
            Some(module),
        );
        let at = |offset: usize| u32::from_le_bytes(info[offset..offset + 4].try_into().unwrap());
        let behind = |address: u32| &info[(address - layout::MULTIBOOT_INFO as u32) as usize..];
        assert_eq!(at(0) & 0b100_1101, 0b100_1101, "flags");
        assert_eq!(at(4), 639, "mem_lower");
        assert_eq!(at(8), 63 << 10, "mem_upper");
        assert!(behind(at(16)).starts_with(b"tests/apic.flat one two\0"));
        assert_eq!(at(20), 1, "mods_count");
        let module = behind(at(24));
        assert_eq!(module[..4], 0x3ff_0000u32.to_le_bytes());
        assert_eq!(module[4..8], 0x3ff_0123u32.to_le_bytes());
        let text = u32::from_le_bytes(module[8..12].try_into().unwrap());
        assert_eq!(behind(text)[0], 0);
        assert_eq!(at(44), 4 * 24, "mmap_length");
        let map = behind(at(48));
        assert_eq!(map[..4], 20u32.to_le_bytes());
        assert_eq!(
            map[12..20],
            0x9_fc00u64.to_le_bytes(),
            "the first range's size"
        );
        assert!(behind(at(64)).starts_with(b"msr-vmm\0"), "boot_loader_name");
    }
}
