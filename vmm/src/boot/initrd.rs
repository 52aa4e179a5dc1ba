//! The initial RAM disk: at the top of the memory that the kernel can take it from.

use std::fs::File;
use std::io;
use std::path::Path;

use vm_memory::GuestAddress;

use super::kernel::Kernel;
use super::memory::{low_end, mib};
use super::read::read;
use crate::memory::GuestMemoryMmap;

/// The highest address for a RAM disk's last byte that every x86-64 kernel accepts: `initrd_addr_max` of kernels that do
/// not say otherwise.
const ADDRESS_MAX: u32 = 0x7fff_ffff;
const PAGE: u64 = 0x1000;

/// Why an initial RAM disk cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// It cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("is not a regular file")]
    NotAFile,
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// There is not enough memory for it.
    #[error("has {size} bytes ({} MiB), and between the kernel and {limit:#x} there is room for {room} ({} MiB)",
        mib(*size), room >> 20)]
    DoesNotFit {
        /// Its size, in bytes.
        size: u64,
        /// How many bytes of memory are left for it.
        room: u64,
        /// The end of the memory that it may be in.
        limit: u64,
    },
}

/// Where the initial RAM disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initrd {
    /// Its first byte's address, at the start of a page.
    pub(super) address: GuestAddress,
    /// Its size, in bytes.
    pub(super) size: u64,
}

/// Loads the RAM disk at `path` as high as `kernel` can take it.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel: &Kernel,
) -> Result<Initrd, InitrdError> {
    // Without this, opening a FIFO would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(InitrdError::Open)?;
    if !metadata.is_file() {
        return Err(InitrdError::NotAFile);
    }
    let file = File::open(path).map_err(InitrdError::Open)?;
    let size = file.metadata().map_err(InitrdError::Read)?.len();
    let initrd = place(size, low_end(memory), kernel)?;
    read(memory, initrd.address, &file, 0, size).map_err(InitrdError::Read)?;
    Ok(initrd)
}

fn place(size: u64, memory_end: u64, kernel: &Kernel) -> Result<Initrd, InitrdError> {
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let address_max = kernel
        .header
        .map(|header| header.initrd_addr_max)
        .filter(|max| *max != 0)
        .unwrap_or(ADDRESS_MAX);
    let limit = memory_end.min(u64::from(address_max) + 1) & !(PAGE - 1);
    let room = limit.saturating_sub(kernel.end.next_multiple_of(PAGE));
    if size > room {
        return Err(InitrdError::DoesNotFit { size, room, limit });
    }
    Ok(Initrd {
        address: GuestAddress((limit - size) & !(PAGE - 1)),
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::loader::bootparam::setup_header;

    fn kernel(end: u64, initrd_addr_max: u32) -> Kernel {
        Kernel {
            entry: GuestAddress(0x10_0000),
            end,
            notes: None,
            header: Some(setup_header {
                initrd_addr_max,
                ..setup_header::default()
            }),
            is_multiboot: false,
        }
    }

    #[test]
    fn it_goes_to_the_highest_page_that_leaves_room() {
        for (size, memory_end, kernel_end, address_max, address) in [
            (1, 64 << 20, 2 << 20, 0, (64 << 20) - 0x1000),
            (0x1000, 64 << 20, 2 << 20, 0x7fff_ffff, (64 << 20) - 0x1000),
            (0x1001, 64 << 20, 2 << 20, 0x7fff_ffff, (64 << 20) - 0x2000),
            (0x1000, 3 << 30, 2 << 20, 0x7fff_ffff, 0x7fff_f000),
            (0x1000, 3 << 30, 2 << 20, 0x37ff_ffff, 0x37ff_f000),
            (0x1000, 3 << 30, 2 << 20, 0xffff_ffff, (3 << 30) - 0x1000),
            (0x1000, 0x20_2fff, 0x20_0001, 0, 0x20_1000),
        ] {
            let placed = place(size, memory_end, &kernel(kernel_end, address_max)).unwrap();
            assert_eq!(placed.address.0, address, "{size:#x} below {memory_end:#x}");
            assert_eq!(placed.size, size);
        }
    }

    #[test]
    fn one_that_would_reach_into_the_kernel_is_refused_with_both_sizes() {
        let error = place(0x2000, 0x20_2fff, &kernel(0x20_0001, 0)).unwrap_err();
        assert!(
            matches!(
                error,
                InitrdError::DoesNotFit {
                    size: 0x2000,
                    room: 0x1000,
                    limit: 0x20_2000,
                }
            ),
            "{error}"
        );
        let error = place(u64::MAX, 64 << 20, &kernel(2 << 20, 0)).unwrap_err();
        assert!(
            error.to_string().contains("room for 65011712 (62 MiB)"),
            "{error}"
        );
        assert!(place(1, 1 << 20, &kernel(2 << 20, 0)).is_err());
    }

    #[test]
    fn an_empty_one_is_refused() {
        assert!(matches!(
            place(0, 64 << 20, &kernel(2 << 20, 0)),
            Err(InitrdError::Empty)
        ));
    }
}
