//! 32-bit ELF files, which Multiboot kernels are. What is checked and how it is loaded is as for 64-bit ones.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::elf::{self, Elf, ElfError, Loaded, Segment, field, read_error};
use crate::layout;
use crate::memory::GuestMemoryMmap;

/// `sizeof(Elf32_Ehdr)`.
const HEADER_SIZE: usize = 52;
/// `sizeof(Elf32_Phdr)`.
const PROGRAM_HEADER_SIZE: usize = 32;

/// Whether a file that begins with `start` is one.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(&elf::MAGIC) && start.get(4) == Some(&1)
}

/// Loads a file, from its start, straight into guest memory: anywhere below the Multiboot information, or above 1 MiB.
pub(super) fn load_file(memory: &GuestMemoryMmap, file: &mut File) -> Result<Loaded, ElfError> {
    let elf = read(file)?;
    for segment in &elf.segments {
        // The boot data, the EBDA and the area of the BIOS.
        let taken = layout::MULTIBOOT_INFO..layout::HIGH_MEMORY;
        if segment.address < taken.end && segment.end() > taken.start {
            return Err(ElfError::BootData {
                address: segment.address,
                end: segment.end(),
            });
        }
    }
    elf.load(memory, file, 0)
}

fn read(file: &mut File) -> Result<Elf, ElfError> {
    let mut header = [0; HEADER_SIZE];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut header))
        .map_err(|error| read_error("its header", HEADER_SIZE as u64, error))?;
    let u16_at = |at| u16::from_le_bytes(field(&header, at));
    let u32_at = |at| u64::from(u32::from_le_bytes(field(&header, at)));
    if header[5] != 1 {
        return Err(ElfError::Encoding(header[5]));
    }
    // EM_386, and EM_X86_64 for 64-bit code that is entered in 32-bit mode.
    if !matches!(u16_at(18), 3 | 62) {
        return Err(ElfError::Machine(u16_at(18)));
    }
    if u16_at(16) != 2 {
        return Err(ElfError::Type(u16_at(16)));
    }
    let count = usize::from(u16_at(44));
    if count == 0 {
        return Err(ElfError::NoSegment);
    }
    if usize::from(u16_at(42)) != PROGRAM_HEADER_SIZE {
        return Err(ElfError::ProgramHeaderSize(u16_at(42)));
    }
    let offset = u32_at(28);
    let end = offset + (count * PROGRAM_HEADER_SIZE) as u64;
    if offset < HEADER_SIZE as u64 || end > elf::PROGRAM_HEADERS_END {
        return Err(ElfError::ProgramHeaders { offset, end });
    }
    let mut headers = vec![0; count * PROGRAM_HEADER_SIZE];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut headers))
        .map_err(|error| read_error("its program headers", end, error))?;
    let mut segments = Vec::new();
    for (index, header) in headers.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
        let u32_at = |at| u64::from(u32::from_le_bytes(field(header, at)));
        let segment = Segment {
            offset: u32_at(4),
            address: u32_at(12),
            file_size: u32_at(16),
            memory_size: u32_at(20),
        };
        if u32_at(0) == 1 && segment.memory_size != 0 {
            segments.push(segment.checked(index)?);
        }
    }
    Ok(Elf {
        entry: u32_at(24),
        segments,
        notes: None,
        start: Vec::new(),
    })
}
