//! The bzImage format: a setup header, and a protected-mode part that unpacks the kernel. The payload in it is the kernel's
//! ELF file, compressed (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::ops::Range;

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use vm_memory::ByteValued;

use super::memory::mib;
use crate::layout;

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
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;
/// Where the 64-bit entry point is in the protected-mode part (boot.rst, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;

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
    /// The protected-mode part does not lie within the file.
    #[error(
        "is a truncated bzImage: its protected-mode part should be at {offset:#x}, {length} bytes long, and the file has {size} bytes"
    )]
    TruncatedCode {
        /// Where the header says that it begins, from the start of the file.
        offset: u64,
        /// The header's `syssize`, in bytes.
        length: u64,
        /// The file's size, in bytes.
        size: u64,
    },
    /// The protected-mode part ends before its entry point.
    #[error(
        "is a bzImage with {length} bytes of code (syssize), and its 64-bit entry point is at byte {ENTRY_64:#x} of them"
    )]
    NoEntry {
        /// The header's `syssize`, in bytes.
        length: u64,
    },
    /// The kernel cannot move, so that it has no KASLR.
    #[error(
        "is a bzImage of a kernel that is not relocatable (CONFIG_RELOCATABLE): it has no KASLR, and boots without vm.kaslr"
    )]
    NotRelocatable,
    /// `kernel_alignment` is no alignment.
    #[error("is a bzImage with a kernel_alignment of {0:#x}; it must be a power of two")]
    Alignment(u32),
    /// The kernel cannot be loaded to where it wants to be.
    #[error(
        "is a bzImage that is to be loaded at {address:#x} (pref_address); that must be a multiple of {alignment:#x} (kernel_alignment), and at least {:#x}",
        layout::HIGH_MEMORY
    )]
    Address {
        /// The header's `pref_address`.
        address: u64,
        /// The header's `kernel_alignment`, in bytes.
        alignment: u32,
    },
    /// The memory that the kernel claims to need does not hold its own code.
    #[error(
        "is a bzImage with {length} bytes of code (syssize), which claims to unpack itself within {init_size} bytes (init_size)"
    )]
    InitSize {
        /// The header's `init_size`, in bytes.
        init_size: u32,
        /// The header's `syssize`, in bytes.
        length: u64,
    },
    /// The guest has less memory than the kernel needs to unpack itself.
    #[error(
        "needs memory from {address:#x} to {end:#x} to unpack itself: at least {} MiB, and the guest has {} MiB there",
        mib(*end), memory >> 20
    )]
    DoesNotFit {
        /// The header's `pref_address`.
        address: u64,
        /// `init_size` bytes further.
        end: u64,
        /// The end of the guest's memory below the device hole.
        memory: u64,
    },
}

/// The code of a bzImage, which unpacks the kernel, moves it, and enters it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// Its bytes in the file.
    pub(super) file: Range<u64>,
    /// Where it is to be loaded.
    pub(super) address: u64,
    /// The address of its 64-bit entry point.
    pub(super) entry: u64,
    /// The end of the memory that it uses until the kernel has its memory map.
    pub(super) end: u64,
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
        // Both are small: no sum of them can overflow.
        let offset = code_offset(&header) + u64::from(header.payload_offset);
        let payload = offset..offset + u64::from(header.payload_length);
        if payload.end > size || header.payload_length < 4 {
            return Err(truncated(offset, header.payload_length));
        }
        Ok(Self { header, payload })
    }

    /// The code, for a file of `size` bytes and a guest whose memory ends at `memory`. It goes to where the kernel
    /// prefers to be: kernels neither run nor unpack themselves below that, and with KASLR they move on from there.
    pub(super) fn code(&self, size: u64, memory: u64) -> Result<Code, BzImageError> {
        let setup_header {
            relocatable_kernel,
            kernel_alignment: alignment,
            pref_address: address,
            init_size,
            syssize,
            ..
        } = self.header;
        // Neither sum can overflow: the numbers have 32 bits.
        let length = u64::from(syssize) * PARAGRAPH;
        let offset = code_offset(&self.header);
        if offset + length > size {
            return Err(BzImageError::TruncatedCode {
                offset,
                length,
                size,
            });
        }
        if length <= ENTRY_64 {
            return Err(BzImageError::NoEntry { length });
        }
        if relocatable_kernel == 0 {
            return Err(BzImageError::NotRelocatable);
        }
        if !alignment.is_power_of_two() {
            return Err(BzImageError::Alignment(alignment));
        }
        if address < layout::HIGH_MEMORY || !address.is_multiple_of(alignment.into()) {
            return Err(BzImageError::Address { address, alignment });
        }
        if u64::from(init_size) < length {
            return Err(BzImageError::InitSize { init_size, length });
        }
        let end = address.saturating_add(init_size.into());
        if end > memory {
            return Err(BzImageError::DoesNotFit {
                address,
                end,
                memory,
            });
        }
        Ok(Code {
            file: offset..offset + length,
            address,
            entry: address + ENTRY_64,
            end,
        })
    }
}

/// Where the protected-mode part begins in the file.
fn code_offset(header: &setup_header) -> u64 {
    let setup_sects = match header.setup_sects {
        0 => 4,
        sectors => sectors,
    };
    (u64::from(setup_sects) + 1) * SECTOR
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
