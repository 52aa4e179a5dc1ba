//! Kernels as ELF files: checked, then loaded to the physical addresses in their program headers.
//!
//! linux-loader's ELF loader wants a seekable source, which a payload that is being unpacked is not, and checks neither the
//! class, the machine, nor that segments keep clear of each other and of low memory. Hence this one.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress};

use super::memory::{low_end, mib};
use super::read::read;
use crate::layout;
use crate::memory::GuestMemoryMmap;

/// What every ELF file begins with.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";
/// `sizeof(Elf64_Ehdr)`.
const HEADER_SIZE: usize = 64;
/// `sizeof(Elf64_Phdr)`.
const PROGRAM_HEADER_SIZE: usize = 56;
/// A program header of this type says where notes are.
const PT_NOTE: u32 = 4;
/// How far into the file the program headers may end: they are kept while the file is read in one pass.
pub(super) const PROGRAM_HEADERS_END: u64 = 64 << 10;

/// What is wrong with an ELF file, as a kernel for this guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// It does not begin as an ELF file does.
    #[error("does not hold an ELF file")]
    Magic,
    /// It ends before something that its headers promise.
    #[error("is a truncated ELF file: {what} should end at {end:#x}")]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Where it should end in the file.
        end: u64,
    },
    /// It is damaged or cannot be read.
    #[error("{what} cannot be read: {error}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What went wrong.
        error: io::Error,
    },
    /// `EI_CLASS` is not `ELFCLASS64`.
    #[error("is not a 64-bit ELF file (class {0})")]
    Class(u8),
    /// `EI_DATA` is not `ELFDATA2LSB`.
    #[error("is not a little-endian ELF file (data encoding {0})")]
    Encoding(u8),
    /// `e_machine` is not `EM_X86_64`.
    #[error("is not an ELF file for x86-64 (machine {0})")]
    Machine(u16),
    /// `e_type` is neither `ET_EXEC` nor `ET_DYN`.
    #[error("is not an executable ELF file (type {0})")]
    Type(u16),
    /// `e_phentsize` is not that of a 64-bit ELF file.
    #[error(
        "has program headers of {0} bytes; those of a 64-bit ELF file have {PROGRAM_HEADER_SIZE}"
    )]
    ProgramHeaderSize(u16),
    /// The program headers are not near the start of the file.
    #[error(
        "has its program headers at {offset:#x} to {end:#x}; they must be after the header and end within {PROGRAM_HEADERS_END:#x} bytes"
    )]
    ProgramHeaders {
        /// `e_phoff`.
        offset: u64,
        /// Where they end.
        end: u64,
    },
    /// There is nothing to load.
    #[error("has no segment to load")]
    NoSegment,
    /// A segment's numbers contradict each other, or overflow.
    #[error(
        "segment {index} is malformed: file offset {offset:#x}, {file_size:#x} bytes in the file, {memory_size:#x} in memory, at {address:#x}"
    )]
    Segment {
        /// The program header's number.
        index: usize,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
        /// `p_paddr`.
        address: u64,
    },
    /// A segment lies where the boot data is.
    #[error(
        "is linked to load at {address:#x}; kernels load at {:#x} or above",
        layout::HIGH_MEMORY
    )]
    TooLow {
        /// The segment's physical address.
        address: u64,
    },
    /// A segment of a Multiboot kernel lies where the boot data or the BIOS is.
    #[error(
        "has a segment at {address:#x} to {end:#x}; from {:#x} to {:#x} are the boot data and the area of the BIOS",
        layout::MULTIBOOT_INFO,
        layout::HIGH_MEMORY
    )]
    BootData {
        /// The segment's physical address.
        address: u64,
        /// Its end.
        end: u64,
    },
    /// Two segments claim the same memory.
    #[error("has overlapping segments: {first:#x} to {end:#x}, and one at {second:#x}")]
    Overlap {
        /// The lower segment's physical address.
        first: u64,
        /// Its end.
        end: u64,
        /// The other segment's physical address.
        second: u64,
    },
    /// The kernel needs more memory than there is.
    #[error("needs memory up to {end:#x}: at least {} MiB, and the guest has {} MiB there", mib(*end), memory >> 20)]
    DoesNotFit {
        /// The end of the highest segment.
        end: u64,
        /// The end of the guest's memory below the device hole.
        memory: u64,
    },
    /// The first instruction is in no segment.
    #[error("has its entry point at {0:#x}, outside its segments")]
    Entry(u64),
    /// Segments of a packed kernel share bytes of the file.
    #[error("has segments that share the file's bytes at {offset:#x}; a packed kernel's must not")]
    SharedBytes {
        /// The second segment's file offset.
        offset: u64,
    },
}

/// A kernel that has been loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The address of the first instruction.
    pub(super) entry: GuestAddress,
    /// The end of the highest segment.
    pub(super) end: u64,
    /// Where the kernel's notes are in its memory (`PT_NOTE`), and how many bytes.
    pub(super) notes: Option<(GuestAddress, u64)>,
}

/// Loads a file, from its start, straight into guest memory.
pub(super) fn load_file(memory: &GuestMemoryMmap, file: &mut File) -> Result<Loaded, ElfError> {
    file.seek(SeekFrom::Start(0))
        .map_err(|error| read_error("its header", 0, error))?;
    let elf = Elf::read(&mut *file)?;
    elf.load(memory, file, layout::HIGH_MEMORY)
}

/// Loads a stream of `size` bytes in one pass, no further than to the end of the last segment, and gives how many bytes
/// that were.
pub(super) fn load_stream(
    memory: &GuestMemoryMmap,
    stream: &mut dyn BufRead,
    size: u64,
) -> Result<(Loaded, u64), ElfError> {
    let mut elf = Elf::read(&mut *stream)?;
    elf.check_file_size(size)?;
    let loaded = elf.check(memory, layout::HIGH_MEMORY)?;
    elf.segments.sort_by_key(|segment| segment.offset);

    // A segment may begin with the headers that were read already.
    let start = std::mem::take(&mut elf.start);
    let mut position = 0;
    let mut read = start.len() as u64;
    let mut stream = start.as_slice().chain(stream);
    for segment in &elf.segments {
        if segment.offset < position {
            return Err(ElfError::SharedBytes {
                offset: segment.offset,
            });
        }
        let end = segment.file_end();
        copy(&mut stream, segment.offset - position, |_, _| Ok(()))
            .and_then(|()| {
                copy(&mut stream, segment.file_size, |data, done| {
                    let to = GuestAddress(segment.address + done);
                    memory.write_slice(data, to).map_err(io_error)
                })
            })
            .map_err(|error| read_error("a segment", end, error))?;
        position = end;
        read = read.max(end);
    }
    Ok((loaded, read))
}

/// The notes of a stream of `size` bytes, read no further than to their end; `None` where it has none. At most `most` bytes of
/// them are read.
pub(super) fn read_notes(
    stream: &mut dyn BufRead,
    size: u64,
    most: u64,
) -> Result<Option<Vec<u8>>, ElfError> {
    let elf = Elf::read(&mut *stream)?;
    let Some(Notes {
        offset,
        size: notes_size,
        ..
    }) = elf.notes
    else {
        return Ok(None);
    };
    let what = "its notes";
    let end = offset.saturating_add(notes_size);
    if end > size {
        return Err(ElfError::Truncated { what, end });
    }
    // They may begin with the headers that were read already.
    let mut stream = elf.start.as_slice().chain(stream);
    let mut notes = Vec::new();
    copy(&mut stream, offset, |_, _| Ok(()))
        .and_then(|()| stream.take(notes_size.min(most)).read_to_end(&mut notes))
        .map_err(|error| read_error(what, end, error))?;
    Ok(Some(notes))
}

/// Hands the next `size` bytes of `stream` to `take`, with how many came before them, without a buffer of its own.
fn copy(
    stream: &mut impl BufRead,
    size: u64,
    mut take: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < size {
        let data = stream.fill_buf()?;
        if data.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = data
            .len()
            .min(usize::try_from(size - done).unwrap_or(usize::MAX));
        take(&data[..count], done)?;
        stream.consume(count);
        done += count as u64;
    }
    Ok(())
}

/// A loadable segment; no sum of its numbers overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) file_size: u64,
    pub(super) memory_size: u64,
}

impl Segment {
    fn address(&self) -> GuestAddress {
        GuestAddress(self.address)
    }

    /// The segment of program header `index`, if its numbers agree.
    pub(super) fn checked(self, index: usize) -> Result<Self, ElfError> {
        let in_file = self.offset.checked_add(self.file_size);
        let in_memory = self.address.checked_add(self.memory_size);
        if in_file.is_none() || in_memory.is_none() || self.file_size > self.memory_size {
            return Err(ElfError::Segment {
                index,
                offset: self.offset,
                file_size: self.file_size,
                memory_size: self.memory_size,
                address: self.address,
            });
        }
        Ok(self)
    }

    fn file_end(&self) -> u64 {
        self.offset + self.file_size
    }

    pub(super) fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// Where notes are (`PT_NOTE`). Nothing of it has been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notes {
    offset: u64,
    address: u64,
    size: u64,
}

/// An ELF file's headers.
#[derive(Debug)]
pub(super) struct Elf {
    pub(super) entry: u64,
    pub(super) segments: Vec<Segment>,
    pub(super) notes: Option<Notes>,
    /// The file up to the end of its program headers.
    pub(super) start: Vec<u8>,
}

impl Elf {
    /// Reads the headers, which must be well-formed. Nothing is said of addresses yet.
    fn read(mut source: impl Read) -> Result<Self, ElfError> {
        let mut header = [0; HEADER_SIZE];
        source
            .read_exact(&mut header)
            .map_err(|error| read_error("its header", HEADER_SIZE as u64, error))?;
        if header[..4] != MAGIC {
            return Err(ElfError::Magic);
        }
        let u16_at = |at| u16::from_le_bytes(field(&header, at));
        let u64_at = |at| u64::from_le_bytes(field(&header, at));
        if header[4] != 2 {
            return Err(ElfError::Class(header[4]));
        }
        if header[5] != 1 {
            return Err(ElfError::Encoding(header[5]));
        }
        if u16_at(18) != 62 {
            return Err(ElfError::Machine(u16_at(18)));
        }
        if !matches!(u16_at(16), 2 | 3) {
            return Err(ElfError::Type(u16_at(16)));
        }
        let count = usize::from(u16_at(56));
        if count == 0 {
            return Err(ElfError::NoSegment);
        }
        if usize::from(u16_at(54)) != PROGRAM_HEADER_SIZE {
            return Err(ElfError::ProgramHeaderSize(u16_at(54)));
        }
        let offset = u64_at(32);
        let end = offset.saturating_add((count * PROGRAM_HEADER_SIZE) as u64);
        if offset < HEADER_SIZE as u64 || end > PROGRAM_HEADERS_END {
            return Err(ElfError::ProgramHeaders { offset, end });
        }

        let mut start = header.to_vec();
        // Bounded by the check above.
        start.resize(end as usize, 0);
        source
            .read_exact(&mut start[HEADER_SIZE..])
            .map_err(|error| read_error("its program headers", end, error))?;
        let mut segments = Vec::new();
        let headers = start[offset as usize..].chunks_exact(PROGRAM_HEADER_SIZE);
        for (index, header) in headers.enumerate() {
            segments.extend(Self::segment(index, header)?);
        }
        let notes = start[offset as usize..]
            .chunks_exact(PROGRAM_HEADER_SIZE)
            .find(|header| u32::from_le_bytes(field(header, 0)) == PT_NOTE)
            .map(|header| {
                let u64_at = |at| u64::from_le_bytes(field(header, at));
                Notes {
                    offset: u64_at(8),
                    address: u64_at(24),
                    size: u64_at(32),
                }
            });
        Ok(Self {
            entry: u64_at(24),
            segments,
            notes,
            start,
        })
    }

    /// The segment that a program header describes, if it is one to load (`PT_LOAD`).
    fn segment(index: usize, header: &[u8]) -> Result<Option<Segment>, ElfError> {
        let u64_at = |at| u64::from_le_bytes(field(header, at));
        let segment = Segment {
            offset: u64_at(8),
            address: u64_at(24),
            file_size: u64_at(32),
            memory_size: u64_at(40),
        };
        if u32::from_le_bytes(field(header, 0)) != 1 || segment.memory_size == 0 {
            return Ok(None);
        }
        segment.checked(index).map(Some)
    }

    /// Loads the segments from the file that they are of, at `lowest_address` or above.
    pub(super) fn load(
        &self,
        memory: &GuestMemoryMmap,
        file: &mut File,
        lowest_address: u64,
    ) -> Result<Loaded, ElfError> {
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|error| read_error("its header", 0, error))?;
        self.check_file_size(size)?;
        let loaded = self.check(memory, lowest_address)?;
        for segment in &self.segments {
            let end = segment.file_end();
            let (address, offset) = (segment.address(), segment.offset);
            read(memory, address, file, offset, segment.file_size)
                .map_err(|error| read_error("a segment", end, error))?;
        }
        Ok(loaded)
    }

    /// Finds whether a file of `size` bytes has all of the segments.
    fn check_file_size(&self, size: u64) -> Result<(), ElfError> {
        match self.segments.iter().find(|s| s.file_end() > size) {
            None => Ok(()),
            Some(segment) => Err(ElfError::Truncated {
                what: "a segment",
                end: segment.file_end(),
            }),
        }
    }

    /// Finds whether the kernel can be where it wants to be.
    fn check(&self, memory: &GuestMemoryMmap, lowest_address: u64) -> Result<Loaded, ElfError> {
        let mut segments = self.segments.clone();
        segments.sort_by_key(|segment| segment.address);
        let (Some(lowest), Some(highest)) = (segments.first(), segments.last()) else {
            return Err(ElfError::NoSegment);
        };
        if lowest.address < lowest_address {
            return Err(ElfError::TooLow {
                address: lowest.address,
            });
        }
        for (a, b) in segments.iter().zip(&segments[1..]) {
            if a.end() > b.address {
                return Err(ElfError::Overlap {
                    first: a.address,
                    end: a.end(),
                    second: b.address,
                });
            }
        }
        // They do not overlap, so the one that begins last ends last.
        let end = highest.end();
        let memory = low_end(memory);
        if end > memory {
            return Err(ElfError::DoesNotFit { end, memory });
        }
        let entry = self.entry;
        if !segments
            .iter()
            .any(|s| (s.address..s.end()).contains(&entry))
        {
            return Err(ElfError::Entry(entry));
        }
        Ok(Loaded {
            entry: GuestAddress(entry),
            end,
            notes: self
                .notes
                .map(|notes| (GuestAddress(notes.address), notes.size)),
        })
    }
}

/// `N` bytes of a header at `at`. Every caller's constant lies within the header's fixed size.
pub(super) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

pub(super) fn read_error(what: &'static str, end: u64, error: io::Error) -> ElfError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ElfError::Truncated { what, end }
    } else {
        ElfError::Read { what, error }
    }
}

/// What guest memory says of a failed transfer, as the I/O error behind it where there is one.
pub(super) fn io_error(error: vm_memory::GuestMemoryError) -> io::Error {
    match error {
        vm_memory::GuestMemoryError::IOError(error) => error,
        vm_memory::GuestMemoryError::PartialBuffer { .. } => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::other(error),
    }
}
