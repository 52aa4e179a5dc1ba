//! A bzImage's payload, unpacked.
//!
//! The kernel's build compresses with a command-line tool and appends the unpacked size, four bytes, little-endian
//! (scripts/Makefile.lib, `size_append`); gzip's own format ends in that size already.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::bzimage::BzImage;
use super::kernel::KernelError;

/// The most a payload may unpack to, in bytes.
const MAX_UNPACKED: u64 = 1 << 30;
/// How much of the unpacked size is allocated before any of it is seen, in bytes.
const MAX_RESERVED: u64 = 64 << 20;
/// The most a decoder may take, in KiB. The kernel's build uses dictionaries of at most 128 MiB.
const XZ_MEMORY_KIB: u32 = 192 << 10;
/// The largest window a zstd payload may ask for, in bytes: that of the build's `zstd -22 --ultra`.
const ZSTD_WINDOW: u64 = 128 << 20;
/// How many bytes the appended size takes.
const TRAILER: usize = 4;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: `CONFIG_KERNEL_UNCOMPRESSED`.
    None,
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_XZ`: LZMA2 behind the x86 branch filter.
    Xz,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame format.
    Lz4,
}

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// It is compressed in a way not supported here.
    #[error("its payload is compressed with {0}; gzip, xz, zstd and lz4 are supported")]
    Unsupported(&'static str),
    /// It is not compressed in any way known.
    #[error("its payload begins with {}, which is no known compression", hex(.0))]
    Unknown(Vec<u8>),
    /// It cannot be read.
    #[error("its payload cannot be read: {0}")]
    Read(io::Error),
    /// The compressed data is damaged.
    #[error("its {compression} payload is damaged: {error}")]
    Damaged {
        /// How the payload is compressed.
        compression: Compression,
        /// What the decoder says.
        error: io::Error,
    },
    /// It unpacks to another size than it claims.
    #[error("its payload should unpack to {claimed} bytes and unpacks to {actual}{}",
        if actual > claimed { " or more" } else { "" })]
    Size {
        /// The size appended to the payload, in bytes.
        claimed: u64,
        /// How much came out, in bytes.
        actual: u64,
    },
    /// The kernel in it has a segment that lies beyond the size it claims. Found before anything is unpacked but the
    /// headers.
    #[error(
        "its payload claims to unpack to {claimed} bytes, and a segment of the kernel in it ends at byte {end}"
    )]
    BeyondEnd {
        /// The size appended to the payload, in bytes.
        claimed: u64,
        /// Where the segment ends, in bytes from the start of the kernel's ELF file.
        end: u64,
    },
    /// It claims to unpack to more than any kernel does.
    #[error("its payload claims to unpack to {0} bytes; at most {MAX_UNPACKED} are taken")]
    TooLarge(u64),
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        })
    }
}

impl Compression {
    /// The compression of a payload that begins with `start`.
    ///
    /// # Errors
    ///
    /// [`UnpackError::Unsupported`] and [`UnpackError::Unknown`].
    pub fn detect(start: &[u8]) -> Result<Self, UnpackError> {
        const SUPPORTED: [(&[u8], Compression); 5] = [
            (&super::elf::MAGIC, Compression::None),
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
        ];
        const UNSUPPORTED: [(&[u8], &str); 3] = [
            (b"BZh", "bzip2"),
            (&[0x5d, 0, 0], "lzma"),
            (&[0x89, b'L', b'Z', b'O'], "lzo"),
        ];
        if let Some((_, compression)) = SUPPORTED.iter().find(|(m, _)| start.starts_with(m)) {
            return Ok(*compression);
        }
        if let Some((_, name)) = UNSUPPORTED.iter().find(|(m, _)| start.starts_with(m)) {
            return Err(UnpackError::Unsupported(name));
        }
        Err(UnpackError::Unknown(start[..start.len().min(6)].to_vec()))
    }
}

/// A payload being unpacked. Memory is taken for the decoder's window only.
pub(super) struct Unpacker<'a> {
    compression: Compression,
    stream: Box<dyn BufRead + 'a>,
    /// What it claims to unpack to, in bytes.
    claimed: u64,
}

impl<'a> Unpacker<'a> {
    /// Begins to unpack the payload at these bytes of `file`, as [`BzImage::parse`] found them.
    pub(super) fn of_file(mut file: &'a File, payload: Range<u64>) -> Result<Self, KernelError> {
        let mut trailer = [0; TRAILER];
        file.read_exact_at(&mut trailer, payload.end - TRAILER as u64)
            .and_then(|()| file.seek(SeekFrom::Start(payload.start)))
            .map_err(KernelError::Read)?;
        let compressed = BufReader::new(file).take(payload.end - payload.start);
        Ok(Self::new(compressed, trailer)?)
    }

    /// Begins to unpack `payload`, whose last bytes are `trailer`.
    fn new<R: BufRead + 'a>(
        mut payload: io::Take<R>,
        trailer: [u8; TRAILER],
    ) -> Result<Self, UnpackError> {
        let claimed = u64::from(u32::from_le_bytes(trailer));
        let start = payload.fill_buf().map_err(UnpackError::Read)?;
        let compression = Compression::detect(start)?;
        if claimed > MAX_UNPACKED {
            return Err(UnpackError::TooLarge(claimed));
        }
        if compression != Compression::Gzip {
            payload.set_limit(payload.limit().saturating_sub(TRAILER as u64));
        }
        Ok(Self {
            compression,
            stream: decoder(compression, payload)?,
            claimed,
        })
    }

    /// How many bytes it claims to unpack to.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed
    }

    /// What it unpacks to.
    pub(super) fn stream(&mut self) -> &mut (dyn BufRead + 'a) {
        &mut *self.stream
    }

    /// The error that stands for what the stream says.
    pub(super) fn damaged(&self, error: io::Error) -> UnpackError {
        UnpackError::Damaged {
            compression: self.compression,
            error,
        }
    }

    /// Reads on to the end, where the checksums are, after `read` bytes have been read.
    pub(super) fn finish(mut self, read: u64) -> Result<(), UnpackError> {
        let rest = (self.claimed + 1).saturating_sub(read);
        let skipped = io::copy(&mut (&mut self.stream).take(rest), &mut io::sink())
            .map_err(|error| self.damaged(error))?;
        self.check_size(read + skipped)
    }

    fn check_size(&self, actual: u64) -> Result<(), UnpackError> {
        let claimed = self.claimed;
        if actual == claimed {
            Ok(())
        } else {
            Err(UnpackError::Size { claimed, actual })
        }
    }
}

fn decoder<'a>(
    compression: Compression,
    payload: impl BufRead + 'a,
) -> Result<Box<dyn BufRead + 'a>, UnpackError> {
    Ok(match compression {
        Compression::None => Box::new(payload),
        Compression::Gzip => Box::new(BufReader::new(flate2::bufread::GzDecoder::new(payload))),
        Compression::Xz => Box::new(BufReader::new(lzma_rust2::XzReader::new_mem_limit(
            payload,
            false,
            XZ_MEMORY_KIB,
        ))),
        Compression::Zstd => {
            let decoder =
                ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, ZSTD_WINDOW);
            Box::new(BufReader::new(decoder.map_err(|error| {
                UnpackError::Damaged {
                    compression,
                    error: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
                }
            })?))
        }
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(payload)),
    })
}

/// The ELF file in a bzImage.
///
/// # Errors
///
/// [`KernelError`] where `image` is no bzImage, or a damaged one.
///
/// # Examples
///
/// ```
/// let error = msr_vmm::boot::unpack(b"#!/bin/sh\n").unwrap_err();
/// assert!(error.to_string().contains("neither an ELF file nor a bzImage"));
/// ```
pub fn unpack(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    if !BzImage::recognises(image) {
        return Err(KernelError::UnknownFormat {
            size: image.len() as u64,
            start: image[..image.len().min(4)].to_vec(),
        });
    }
    let image_size = image.len() as u64;
    let range = BzImage::parse(&image[..image.len().min(BzImage::START)], image_size)?.payload;
    // `parse` found the range to lie within the image, whose size is a `usize`, and to hold the trailer.
    let payload = &image[range.start as usize..range.end as usize];
    let trailer = payload.last_chunk().copied().unwrap_or_default();
    let size = payload.len() as u64;
    let mut unpacker = Unpacker::new(Cursor::new(payload).take(size), trailer)?;
    let claimed = unpacker.claimed;
    let mut elf = Vec::with_capacity(claimed.min(MAX_RESERVED) as usize);
    (&mut unpacker.stream)
        .take(claimed + 1)
        .read_to_end(&mut elf)
        .map_err(|error| unpacker.damaged(error))?;
    unpacker.check_size(elf.len() as u64)?;
    Ok(elf)
}

/// `bytes` in hexadecimal, for messages.
pub(super) fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}
