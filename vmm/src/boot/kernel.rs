//! Kernel images: recognised, checked and loaded.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::bzimage::{BzImage, BzImageError};
use super::elf::{self, ElfError, Loaded};
use super::elf32;
use super::multiboot::{self, MultibootError};
use super::unpack::{self, UnpackError, Unpacker};

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
    /// Where its notes are, and how many bytes.
    pub(super) notes: Option<(GuestAddress, u64)>,
    /// Whether it is entered as a Multiboot kernel, and not by Linux' boot protocol.
    pub(super) is_multiboot: bool,
}

/// Loads the kernel image at `path` to where it is linked.
pub(super) fn load(memory: &GuestMemoryMmap, path: &Path) -> Result<Kernel, KernelError> {
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
        let elf = elf::load_file(memory, &mut file)?;
        return Ok(Kernel {
            entry: elf.entry,
            end: elf.end,
            header: None,
            notes: elf.notes,
            is_multiboot: false,
        });
    }
    if !BzImage::recognises(&start) {
        start.truncate(4);
        return Err(KernelError::UnknownFormat { size, start });
    }

    let image = BzImage::parse(&start, size)?;
    let elf = load_payload(memory, file, image.payload)?;
    Ok(Kernel {
        entry: elf.entry,
        end: elf.end,
        header: Some(image.header),
        notes: elf.notes,
        is_multiboot: false,
    })
}

/// Loads the ELF file that a bzImage's payload unpacks to, while it is being unpacked.
fn load_payload(
    memory: &GuestMemoryMmap,
    mut file: File,
    payload: Range<u64>,
) -> Result<Loaded, KernelError> {
    let mut trailer = [0; unpack::TRAILER];
    file.read_exact_at(&mut trailer, payload.end - unpack::TRAILER as u64)
        .and_then(|()| file.seek(SeekFrom::Start(payload.start)))
        .map_err(KernelError::Read)?;
    let compressed = BufReader::new(file).take(payload.end - payload.start);
    let mut unpacker = Unpacker::new(compressed, trailer)?;
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
