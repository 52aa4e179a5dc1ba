//! The guest's memory, mapped from a snapshot.

use std::fs::File;
use std::path::Path;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress};

use crate::config::VmConfig;
use crate::memory::{GuestMemoryMmap, GuestRegionMmap, keep_out_of_core_dumps, ranges};
use crate::snapshot::RestoreError;

/// Opens a file that must have `expected` bytes.
pub(super) fn open(path: &Path, expected: u64) -> Result<File, RestoreError> {
    let read = |source| RestoreError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe would be waited for.
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() || metadata.len() != expected {
        return Err(RestoreError::Size {
            path: path.to_owned(),
            found: metadata.len(),
            expected,
        });
    }
    File::open(path).map_err(read)
}

/// Maps the memory of `config` from the file at `path`, privately: what the guest writes stays out of it.
pub(in crate::snapshot) fn map(
    config: &VmConfig,
    path: &Path,
) -> Result<GuestMemoryMmap, RestoreError> {
    let file = open(path, config.memory.0)?;
    let (mut at, mut regions) = (0, Vec::new());
    for (start, length) in ranges(config.memory) {
        let too_large =
            || RestoreError::Damaged(format!("{} of memory are too much", config.memory));
        let size = usize::try_from(length).map_err(|_| too_large())?;
        let file = file.try_clone().map_err(|source| RestoreError::Read {
            path: path.to_owned(),
            source,
        })?;
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
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::config::MemorySize;

    #[test]
    fn what_is_written_to_a_mapping_stays_out_of_the_file_and_of_others() {
        let config = VmConfig {
            memory: MemorySize(8 << 20),
            ..VmConfig::default()
        };
        let path = std::env::temp_dir().join(format!("snapshot.mapping.{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1], 0x1fff).unwrap();
        let mapped = map(&config, &path).unwrap();
        let read = |mapped: &GuestMemoryMmap, at| mapped.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!(
            [0x1fff, 0x2000, 0x7f_ffff].map(|at| read(&mapped, at)),
            [1, 0, 0]
        );
        mapped.write_obj(9u8, GuestAddress(0x1fff)).unwrap();
        let other = map(&config, &path).unwrap();
        assert_eq!([read(&mapped, 0x1fff), read(&other, 0x1fff)], [9, 1]);

        file.set_len((8 << 20) - 1).unwrap();
        let cut = map(&config, &path).unwrap_err();
        assert!(matches!(cut, RestoreError::Size { .. }), "{cut}");
        std::fs::remove_file(path).unwrap();
    }
}
