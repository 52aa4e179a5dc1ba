//! The bzImage format: a setup header, and a payload that is the kernel's ELF file, compressed
//! (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::ops::Range;

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use vm_memory::ByteValued;

/// Where the setup header begins.
const HEADER: usize = 0x1f1;
/// `boot_flag`, at 0x1fe.
const BOOT_FLAG: u16 = 0xaa55;
/// `header`, at 0x202: "HdrS".
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Where the header's length is counted from; the byte before it holds the length.
const HEADER_LENGTH_BASE: usize = 0x202;
/// The protocol that brought `xloadflags`, and with it the 64-bit entry point. 2.08 brought the payload's fields.
const MIN_PROTOCOL: u16 = 0x20c;
/// The unit of `setup_sects`.
const SECTOR: u64 = 512;

/// What is wrong with a bzImage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// Its boot protocol is too old.
    #[error(
        "is a bzImage of boot protocol {}.{:02}; the 64-bit protocol needs 2.12 (Linux 3.8) or later",
        version >> 8, version & 0xff
    )]
    Protocol {
        /// The header's `version`: major, then minor number.
        version: u16,
    },
    /// It holds a 32-bit kernel.
    #[error("is a bzImage of a 32-bit kernel (xloadflags {xloadflags:#x})")]
    Not64Bit {
        /// The header's `xloadflags`.
        xloadflags: u16,
    },
    /// The payload does not lie within the file.
    #[error(
        "is a truncated bzImage: its payload should be at {offset:#x}, {length} bytes long, and the file has {size} bytes"
    )]
    Truncated {
        /// Where the header says that the payload begins, from the start of the file.
        offset: u64,
        /// The header's `payload_length`, in bytes.
        length: u32,
        /// The file's size, in bytes.
        size: u64,
    },
}

/// A bzImage's header, and where its payload is.
#[derive(Debug)]
pub(super) struct BzImage {
    /// The setup header; what the image does not define of it is zero.
    pub(super) header: setup_header,
    /// The payload's bytes in the file. The last four are the size of what it unpacks to.
    pub(super) payload: Range<u64>,
}

impl BzImage {
    /// As much of the file as its header can take.
    pub(super) const START: usize = HEADER + size_of::<setup_header>();

    /// Whether a file that begins with `start` claims to be a bzImage.
    pub(super) fn recognises(start: &[u8]) -> bool {
        header(start).is_some_and(|h| h.boot_flag == BOOT_FLAG && h.header == HEADER_MAGIC)
    }

    /// Reads the header of a file that [`recognises`](Self::recognises) accepts and that has `size` bytes.
    pub(super) fn parse(start: &[u8], size: u64) -> Result<Self, BzImageError> {
        let truncated = |offset, length| BzImageError::Truncated {
            offset,
            length,
            size,
        };
        let header = header(start).ok_or_else(|| truncated(HEADER as u64, 0))?;
        if header.version < MIN_PROTOCOL {
            return Err(BzImageError::Protocol {
                version: header.version,
            });
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit {
                xloadflags: header.xloadflags,
            });
        }
        let setup_sects = if header.setup_sects == 0 {
            4
        } else {
            header.setup_sects
        };
        // All three are small: no sum of them can overflow.
        let offset = (u64::from(setup_sects) + 1) * SECTOR + u64::from(header.payload_offset);
        let payload = offset..offset + u64::from(header.payload_length);
        if payload.end > size || header.payload_length < 4 {
            return Err(truncated(offset, header.payload_length));
        }
        Ok(Self { header, payload })
    }
}

/// The setup header of a file that begins with `start`. An older header is shorter; what lies beyond its end is code.
fn header(start: &[u8]) -> Option<setup_header> {
    let length = usize::from(*start.get(HEADER_LENGTH_BASE - 1)?);
    let end = (HEADER_LENGTH_BASE + length).min(BzImage::START);
    let defined = start.get(HEADER..end)?;
    let mut header = setup_header::default();
    header.as_mut_slice()[..defined.len()].copy_from_slice(defined);
    Some(header)
}
