//! Which pages of a guest's memory may be other than zero, found without reading them.
//!
//! `/proc/self/pagemap` tells which pages of a mapping are there (Documentation/admin-guide/mm/pagemap.rst). Of anonymous memory the
//! others are zero. Of memory that is mapped privately from a snapshot, those that the guest has written to are anonymous, and
//! the others are the file's: zero where it has holes. `mincore` will not do: it does not tell a page that was swapped out from
//! one that never was.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryRegion;

use super::pages::{PAGE, Pages};
use super::verify::data_runs;
use crate::memory::GuestRegionMmap;

/// Bits of an entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE_OR_SHARED: u64 = 1 << 61;
/// How many entries are read at once.
const ENTRIES: usize = 1 << 16;

/// Where it is looked. Without a page map, as in a sandbox without /proc, every page may be other than zero: memory is then
/// read, which takes longer, and costs page tables for what the guest has not touched.
pub(in crate::snapshot) struct Contents {
    pagemap: Option<File>,
}

impl Contents {
    pub(in crate::snapshot) fn open() -> Self {
        let pagemap = File::open("/proc/self/pagemap");
        if let Err(error) = &pagemap {
            log::debug!("/proc/self/pagemap: {error}: all of memory is read for the snapshot");
        }
        Self {
            pagemap: pagemap.ok(),
        }
    }

    /// The pages of `region` that may be other than zero now.
    pub(in crate::snapshot) fn of(&self, region: &GuestRegionMmap) -> io::Result<Pages> {
        let count = region.len().div_ceil(PAGE);
        let mut pages = Pages::none_of(count);
        let Some(pagemap) = &self.pagemap else {
            pages.insert_range(0..count);
            return Ok(pages);
        };
        let file = region.file_offset();
        let first = region.as_ptr().addr() as u64 / PAGE;
        let mut buffer = vec![0; ENTRIES * 8];
        let mut page = 0;
        while page < count {
            let entries = ((count - page) as usize).min(ENTRIES);
            let buffer = &mut buffer[..entries * 8];
            pagemap.read_exact_at(buffer, (first + page) * 8)?;
            for entry in buffer.as_chunks::<8>().0 {
                let entry = u64::from_ne_bytes(*entry);
                let here = match file {
                    None => entry & (PRESENT | SWAPPED) != 0,
                    Some(_) => {
                        entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE_OR_SHARED) == PRESENT
                    }
                };
                if here {
                    pages.insert(page);
                }
                page += 1;
            }
        }
        if let Some(file) = file {
            for run in data_runs(file.file(), file.start()..file.start() + region.len()) {
                let run = run?;
                let start = (run.start - file.start()) / PAGE;
                pages.insert_range(start..(run.end - file.start()).div_ceil(PAGE));
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::config::{MemorySize, VmConfig};
    use crate::snapshot::memory::{Image, map};

    #[test]
    fn what_was_not_touched_is_not_looked_at_in_a_new_vm_and_in_a_restored_one() {
        let config = VmConfig {
            memory: MemorySize(64 << 20),
            ..VmConfig::default()
        };
        let memory = crate::memory::map(&config).unwrap();
        memory.write_obj(1u8, GuestAddress(0x20_0000)).unwrap();
        let region = memory.iter().next().unwrap();
        let pages = Contents::open().of(region).unwrap();
        assert!(pages.contains(0x200));
        // A huge page at most.
        assert!(pages.count() <= 512, "{}", pages.count());
        let all = Contents { pagemap: None }.of(region).unwrap();
        assert_eq!(all.count(), 64 << 8);

        let path = std::env::temp_dir().join(format!("snapshot.contents.{}", std::process::id()));
        let mut image = Image::new(File::create(&path).unwrap(), &memory).unwrap();
        image.put_still(&memory, 0, &pages).unwrap();
        let mapped = map(&config, &path).unwrap();
        std::fs::remove_file(path).unwrap();
        let region = mapped.iter().next().unwrap();
        let read = |at| mapped.read_obj::<u8>(GuestAddress(at)).unwrap();
        // Reading a hole makes a page of the file's, which is zero.
        assert_eq!([read(0x20_0000), read(0x100_0000)], [1, 0]);
        mapped.write_obj(2u8, GuestAddress(0x200_0000)).unwrap();
        let pages = Contents::open().of(region).unwrap();
        assert!(pages.contains(0x200) && pages.contains(0x2000));
        assert!(!pages.contains(0x1000));
        assert!(pages.count() < 64, "{}", pages.count());
    }
}
