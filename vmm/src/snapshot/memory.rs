//! The guest's memory as a sparse file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress,
};

use super::error::RestoreError;
use crate::config::VmConfig;
use crate::memory::{keep_out_of_core_dumps, ranges};

/// What is looked at for being zero, in bytes: the page.
const PAGE: usize = 4096;
/// What is read and written at once, in bytes.
const PIECE: usize = 1 << 20;

/// Writes all of memory to `file`, leaving holes for pages that are zero, and gives how many bytes are not in holes.
pub(super) fn write(memory: &GuestMemoryMmap, file: &File) -> io::Result<u64> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(total)?;
    let (mut piece, mut written) = (vec![0; PIECE], 0);
    let mut at = 0;
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let length = (region.len() - offset).min(PIECE as u64);
            let piece = &mut piece[..length as usize];
            // Memory is copied out before it is looked at: it is the guest's, and nothing else holds it still.
            region
                .read_slice(piece, MemoryRegionAddress(offset))
                .map_err(io::Error::other)?;
            written += write_piece(piece, file, at + offset)?;
            offset += length;
        }
        at += region.len();
    }
    Ok(written)
}

/// Writes the runs of pages that are not zero.
fn write_piece(piece: &[u8], file: &File, at: u64) -> io::Result<u64> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let (mut start, mut written) = (0, 0);
    let pages = piece.chunks(PAGE).map(is_zero).chain([true]);
    for (number, zero) in pages.enumerate() {
        let end = (number * PAGE).min(piece.len());
        if zero {
            file.write_all_at(&piece[start..end], at + start as u64)?;
            written += (end - start) as u64;
            start = (end + PAGE).min(piece.len());
        }
    }
    Ok(written)
}

/// Maps the memory of `config` from the file at `path`, privately: what the guest writes stays out of it.
pub(super) fn map(config: &VmConfig, path: &Path) -> Result<GuestMemoryMmap, RestoreError> {
    let read = |source| RestoreError::Read {
        path: path.to_owned(),
        source,
    };
    let found = std::fs::metadata(path).map_err(read)?.len();
    let expected = config.memory.0;
    if found != expected {
        return Err(RestoreError::MemorySize {
            path: path.to_owned(),
            found,
            expected,
        });
    }
    let (mut at, mut regions) = (0, Vec::new());
    for (start, length) in ranges(config.memory) {
        let too_large =
            || RestoreError::Damaged(format!("{} of memory are too much", config.memory));
        let size = usize::try_from(length).map_err(|_| too_large())?;
        let file = File::open(path).map_err(read)?;
        let mapping = MmapRegionBuilder::new(size)
            .with_file_offset(FileOffset::new(file, at))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .map_err(RestoreError::Map)?;
        keep_out_of_core_dumps(&mapping);
        regions.push(GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(too_large)?);
        at += length;
    }
    GuestMemoryMmap::from_regions(regions)
        .map_err(|error| RestoreError::Damaged(format!("memory: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::config::MemorySize;

    #[test]
    fn what_is_zero_is_a_hole_and_everything_comes_back() {
        let config = VmConfig {
            memory: MemorySize(64 << 20),
            ..VmConfig::default()
        };
        let memory = crate::memory::map(&config).unwrap();
        let marks = [
            0,
            0x1fff,
            0x10_0000,
            0x3fff_ffff_u64 & 0x3f_f000,
            (64 << 20) - 1,
        ];
        for (number, at) in (1u8..).zip(marks) {
            memory.write_obj(number, GuestAddress(at)).unwrap();
        }
        let path = std::env::temp_dir().join(format!("snapshot.memory.{}", std::process::id()));
        let file = File::create(&path).unwrap();
        assert_eq!(write(&memory, &file).unwrap(), 5 * 4096);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());

        let mapped = map(&config, &path).unwrap();
        for (number, at) in (1u8..).zip(marks) {
            assert_eq!(mapped.read_obj::<u8>(GuestAddress(at)).unwrap(), number);
        }
        assert_eq!(mapped.read_obj::<u8>(GuestAddress(0x2000)).unwrap(), 0);
        // Written privately.
        mapped.write_obj(9u8, GuestAddress(0)).unwrap();
        let other = map(&config, &path).unwrap();
        assert_eq!(other.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);

        file.set_len((64 << 20) - 1).unwrap();
        let cut = map(&config, &path).unwrap_err();
        assert!(matches!(cut, RestoreError::MemorySize { .. }), "{cut}");
        std::fs::remove_file(path).unwrap();
    }
}
