//! The guest's memory and its checksums, while they are written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::slice;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::pages::{PAGE, Pages};
use crate::memory::{GuestMemoryMmap, GuestRegionMmap};

/// What is looked at and written at once, in bytes: it stays in the CPU's cache from the checksum to the copy.
const PIECE: u64 = 1 << 20;

/// The disk is set to work whenever as many bytes have been written, so that it does not wait for the last.
const WRITEBACK: u64 = 8 << 20;

pub(super) const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// The checksum of a page: its CRC-32 as in gzip, exclusive-or'ed with that of a page of zeros. So it is 0 for a hole.
pub(super) fn checksum(page: &[u8]) -> u32 {
    /// Of 4096 zeros.
    const OF_ZEROS: u32 = 0xc71c_0011;
    crc32fast::hash(page) ^ OF_ZEROS
}

/// The file for memory, and what is known of it.
pub(in crate::snapshot) struct Image {
    file: File,
    /// Where each region begins in the file, in bytes.
    starts: Vec<u64>,
    /// Of each page of the file.
    checksums: Vec<u32>,
    /// The pages that are in no hole.
    written: Pages,
    copy: Vec<u8>,
    /// How many bytes have been written since the disk was set to work.
    unsent: u64,
}

/// Has the disk begin to write what was written to a file, without waiting for it. That it fails, as it does for a file system
/// without a disk, is for `fsync` to find.
pub(in crate::snapshot) fn begin_writeback(file: &File) {
    // SAFETY: sync_file_range takes no pointers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

impl Image {
    /// A file that is one hole, of the size of `memory`.
    pub(in crate::snapshot) fn new(file: File, memory: &GuestMemoryMmap) -> io::Result<Self> {
        let mut starts = Vec::new();
        let mut size = 0;
        for region in memory.iter() {
            starts.push(size);
            size += region.len();
        }
        file.set_len(size)?;
        let pages = size.div_ceil(PAGE);
        Ok(Self {
            file,
            starts,
            checksums: vec![0; pages as usize],
            written: Pages::none_of(pages),
            copy: Vec::new(),
            unsent: 0,
        })
    }

    /// Writes `pages` of the region with number `number` as they are, while the guest and the devices stand still.
    pub(in crate::snapshot) fn put_still(
        &mut self,
        memory: &GuestMemoryMmap,
        number: usize,
        pages: &Pages,
    ) -> io::Result<()> {
        self.put_runs(
            memory,
            number,
            pages,
            |image, region, offset, length, at| {
                // SAFETY: `put_runs` gives what is in the region, which is mapped as long as `region` lives. Nobody writes to it:
                // the vCPUs and the devices stand still until the caller lets them go on.
                let data = unsafe {
                    slice::from_raw_parts(region.as_ptr().add(offset as usize), length as usize)
                };
                image.put(data, at)
            },
        )
    }

    /// Writes copies of `pages` of the region with number `number`, which the guest may write to meanwhile.
    pub(in crate::snapshot) fn put_moving(
        &mut self,
        memory: &GuestMemoryMmap,
        number: usize,
        pages: &Pages,
    ) -> io::Result<()> {
        self.put_runs(
            memory,
            number,
            pages,
            |image, region, offset, length, at| {
                let mut copy = std::mem::take(&mut image.copy);
                copy.resize(PIECE as usize, 0);
                let data = &mut copy[..length as usize];
                let read = region.read_slice(data, MemoryRegionAddress(offset));
                let put = read
                    .map_err(io::Error::other)
                    .and_then(|()| image.put(data, at));
                image.copy = copy;
                put
            },
        )
    }

    fn put_runs(
        &mut self,
        memory: &GuestMemoryMmap,
        number: usize,
        pages: &Pages,
        put: impl Fn(&mut Self, &GuestRegionMmap, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(region) = memory.iter().nth(number) else {
            return Ok(());
        };
        for run in pages.runs() {
            let end = run.end.min(region.len());
            let mut offset = run.start;
            while offset < end {
                let length = (end - offset).min(PIECE);
                put(self, region, offset, length, self.starts[number] + offset)?;
                offset += length;
            }
        }
        Ok(())
    }

    /// Writes what is at `at`, whole pages: all but the zeros that are in holes.
    fn put(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        // Of what is to be written and is not yet.
        let mut start = 0;
        for (number, page) in data.chunks(PAGE as usize).enumerate() {
            let index = at / PAGE + number as u64;
            let is_zero = *page == ZEROS[..page.len()];
            if !is_zero || self.written.contains(index) {
                self.checksums[index as usize] = if is_zero { 0 } else { checksum(page) };
                self.written.insert(index);
                continue;
            }
            let offset = number * PAGE as usize;
            self.write(&data[start..offset], at + start as u64)?;
            start = offset + page.len();
        }
        self.write(&data[start..], at + start as u64)
    }

    fn write(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(data, at)?;
        self.unsent += data.len() as u64;
        if self.unsent >= WRITEBACK {
            self.unsent = 0;
            begin_writeback(&self.file);
        }
        Ok(())
    }

    /// How many bytes are not in holes.
    pub(in crate::snapshot) fn written(&self) -> u64 {
        self.written.count() * PAGE
    }

    /// The file, and the checksums of its pages as a file of them holds them: 32 bits each, the lowest byte first.
    pub(in crate::snapshot) fn finish(self) -> (File, Vec<u8>) {
        let mut table = Vec::with_capacity(self.checksums.len() * 4);
        table.extend(self.checksums.iter().flat_map(|sum| sum.to_le_bytes()));
        (self.file, table)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn a_page_of_zeros_has_checksum_0() {
        assert_eq!(checksum(&ZEROS), 0);
        let mut page = ZEROS;
        page[4095] = 1;
        assert_ne!(checksum(&page), 0);
    }

    #[test]
    fn zeros_are_holes_until_they_were_something_else() {
        let ranges = [
            (GuestAddress(0), 8 << 20),
            (GuestAddress(16 << 20), 1 << 20),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let marks = [0x1fff, 0x10_0000, 0x7f_ffff, 0x100_0000];
        for at in marks {
            memory.write_obj(7u8, GuestAddress(at)).unwrap();
        }
        let path = std::env::temp_dir().join(format!("snapshot.image.{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        let mut image = Image::new(file, &memory).unwrap();
        let reader = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let byte = |at| {
            let mut byte = [0];
            reader.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        let mut all = Pages::none_of(2048);
        all.insert_range(0..2048);
        image.put_still(&memory, 0, &all).unwrap();
        // The region is smaller than that.
        image.put_moving(&memory, 1, &all).unwrap();
        assert_eq!(image.written(), 4 * PAGE);
        let metadata = reader.metadata().unwrap();
        assert_eq!(metadata.len(), 9 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
        assert_eq!([0x1fff, 0x10_0000, 0x7f_ffff, 0x80_0000].map(byte), [7; 4]);

        memory.write_obj(0u8, GuestAddress(0x10_0000)).unwrap();
        memory.write_obj(9u8, GuestAddress(0x20_0000)).unwrap();
        let mut again = Pages::none_of(2048);
        [0x100, 0x200, 0x300]
            .into_iter()
            .for_each(|page| again.insert(page));
        image.put_moving(&memory, 0, &again).unwrap();
        assert_eq!(image.written(), 5 * PAGE);
        assert_eq!([0x10_0000, 0x20_0000, 0x30_0000].map(byte), [0, 9, 0]);
        let (_, table) = image.finish();
        let sums: Vec<&[u8]> = table.chunks(4).collect();
        let of_page = |at: u64| {
            let mut page = ZEROS;
            reader.read_exact_at(&mut page, at * PAGE).unwrap();
            checksum(&page).to_le_bytes()
        };
        assert_eq!(sums.len(), 9 << 8);
        for page in 0..9 << 8 {
            assert_eq!(sums[page as usize], of_page(page), "{page:#x}");
        }
    }
}
