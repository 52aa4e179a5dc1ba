//! Kernel images: recognised, checked and loaded.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use super::build_id::Notes;
use super::bzimage::{BzImage, BzImageError};
use super::elf::{self, ElfError, Loaded};
use super::elf32;
use super::memory::low_end;
use super::multiboot::{self, MultibootError};
use super::read::read;
use super::unpack::{self, UnpackError, Unpacker};
use crate::memory::GuestMemoryMmap;

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// It cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("is not a regular file")]
    NotAFile,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// It is neither of the formats.
    #[error(
        "is neither an ELF file nor a bzImage ({size} bytes, beginning with {})",
        unpack::hex(start)
    )]
    UnknownFormat {
        /// Its size, in bytes.
        size: u64,
        /// Its first bytes, at most 4.
        start: Vec<u8>,
    },
    /// It is none that moves itself, and was to.
    #[error(
        "is {0}, which runs where it is linked; KASLR (vm.kaslr) needs a bzImage, which unpacks and moves itself"
    )]
    NoKaslr(&'static str),
    /// It is a bzImage that cannot be used.
    #[error("{0}")]
    BzImage(#[from] BzImageError),
    /// It is a bzImage whose payload cannot be unpacked.
    #[error("{0}")]
    Unpack(#[from] UnpackError),
    /// It is a 32-bit ELF file that cannot be entered.
    #[error("{0}")]
    Multiboot(#[from] MultibootError),
    /// It is, or contains, an ELF file that cannot be loaded.
    #[error("{0}")]
    Elf(#[from] ElfError),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The address of its first instruction.
    pub(super) entry: GuestAddress,
    /// The end of the memory that it takes, what it zeroes included.
    pub(super) end: u64,
    /// The setup header, where the image has one.
    pub(super) header: Option<setup_header>,
    /// Where its notes are.
    pub(super) notes: Option<Notes>,
    /// Whether it is entered as a Multiboot kernel, and not by Linux' boot protocol.
    pub(super) is_multiboot: bool,
}

/// Loads the kernel image at `path`: the kernel in it to where it is linked, or, for `kaslr`, the bzImage's code that will
/// unpack and move it.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    path: &Path,
    kaslr: bool,
) -> Result<Kernel, KernelError> {
    // Without this, opening a FIFO would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(KernelError::Open)?;
    if !metadata.is_file() {
        return Err(KernelError::NotAFile);
    }
    let mut file = File::open(path).map_err(KernelError::Open)?;
    let size = file.metadata().map_err(KernelError::Read)?.len();

    let mut start = Vec::with_capacity(BzImage::START);
    (&mut file)
        .take(BzImage::START as u64)
        .read_to_end(&mut start)
        .map_err(KernelError::Read)?;
    if elf32::recognises(&start) {
        if kaslr {
            return Err(KernelError::NoKaslr("a Multiboot kernel"));
        }
        multiboot::check(&file)?;
        let elf = elf32::load_file(memory, &mut file)?;
        return Ok(Kernel {
            entry: elf.entry,
            end: elf.end,
            header: None,
            notes: None,
            is_multiboot: true,
        });
    }
    if start.starts_with(&elf::MAGIC) {
        if kaslr {
            return Err(KernelError::NoKaslr("an ELF file"));
        }
        let elf = elf::load_file(memory, &mut file)?;
        return Ok(Kernel {
            entry: elf.entry,
            end: elf.end,
            header: None,
            notes: loaded_notes(&elf),
            is_multiboot: false,
        });
    }
    if !BzImage::recognises(&start) {
        start.truncate(4);
        return Err(KernelError::UnknownFormat { size, start });
    }

    let image = BzImage::parse(&start, size)?;
    if kaslr {
        let code = image.code(size, low_end(memory))?;
        let address = GuestAddress(code.address);
        let length = code.file.end - code.file.start;
        read(memory, address, &file, code.file.start, length).map_err(KernelError::Read)?;
        return Ok(Kernel {
            entry: GuestAddress(code.entry),
            end: code.end,
            header: Some(image.header),
            notes: Some(Notes::Packed(file, image.payload)),
            is_multiboot: false,
        });
    }
    let elf = load_payload(memory, &file, image.payload)?;
    Ok(Kernel {
        entry: elf.entry,
        end: elf.end,
        header: Some(image.header),
        notes: loaded_notes(&elf),
        is_multiboot: false,
    })
}

fn loaded_notes(elf: &Loaded) -> Option<Notes> {
    let (address, size) = elf.notes?;
    Some(Notes::Loaded(address, size))
}

/// Loads the ELF file that a bzImage's payload unpacks to, while it is being unpacked.
fn load_payload(
    memory: &GuestMemoryMmap,
    file: &File,
    payload: Range<u64>,
) -> Result<Loaded, KernelError> {
    let mut unpacker = Unpacker::of_file(file, payload)?;
    let claimed = unpacker.claimed();
    let (loaded, read) =
        elf::load_stream(memory, unpacker.stream(), claimed).map_err(|error| match error {
            ElfError::Truncated { end, .. } if end > claimed => {
                UnpackError::BeyondEnd { claimed, end }.into()
            }
            ElfError::Read { error, .. } => KernelError::Unpack(unpacker.damaged(error)),
            error => KernelError::Elf(error),
        })?;
    unpacker.finish(read)?;
    Ok(loaded)
}
