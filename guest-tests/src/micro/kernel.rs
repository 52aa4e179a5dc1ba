//! A kernel of a few instructions in an ELF file, for the product's own way of booting.
//!
//! Under the 64-bit boot protocol it starts in long mode, with memory mapped one to one. A KVM that cannot
//! run Linux runs it all the same.

use std::io;
use std::path::Path;

/// Where the code is loaded and entered.
pub const KERNEL_ADDRESS: u64 = 0x10_0000;

const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// Writes an ELF64 executable to `path` that consists of `code`, assembled for [`KERNEL_ADDRESS`].
///
/// # Errors
///
/// Those of writing the file.
pub fn write_kernel(path: &Path, code: &[u8]) -> io::Result<()> {
    std::fs::write(path, elf(code))
}

fn elf(code: &[u8]) -> Vec<u8> {
    let offset = u64::from(HEADER) + u64::from(PROGRAM_HEADER);
    let len = code.len() as u64;
    let mut file = Vec::with_capacity(offset as usize + code.len());
    // Elf64_Ehdr: 64-bit, little-endian, version 1, System V.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes()); // ET_EXEC
    file.extend(62u16.to_le_bytes()); // EM_X86_64
    file.extend(1u32.to_le_bytes());
    file.extend(KERNEL_ADDRESS.to_le_bytes()); // e_entry
    file.extend(u64::from(HEADER).to_le_bytes()); // e_phoff
    file.extend([0; 12]); // no sections, no flags
    for field in [HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    // Elf64_Phdr: PT_LOAD, readable, writable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    for field in [offset, KERNEL_ADDRESS, KERNEL_ADDRESS, len, len, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}
