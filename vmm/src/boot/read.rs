//! Bytes of a file, read straight into guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic;
use std::thread;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::elf::io_error;
use crate::memory::GuestMemoryMmap;

/// From how many bytes on a second thread is sooner done than started: copying, and the host's zeroing of the
/// guest's pages, take about 0.2 ms for each MiB.
const PARALLEL_READ_MIN: u64 = 4 << 20;
/// Where the work is divided: the host gives guest memory in pages of this size, where it has them.
const HUGE_PAGE: u64 = 2 << 20;

/// Reads `size` bytes from `offset` on to `address`, which the memory must have. The file's position does not matter.
///
/// # Errors
///
/// Where the file cannot be read, and [`io::ErrorKind::UnexpectedEof`] where it is shorter.
pub(super) fn read(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    file: &File,
    offset: u64,
    size: u64,
) -> io::Result<()> {
    let part = |from: u64, to: u64| {
        let mut file = FileAt {
            file,
            offset: offset + from,
        };
        let at = GuestAddress(address.0 + from);
        read_all(memory, at, &mut file, (to - from) as usize)
    };
    if size < PARALLEL_READ_MIN {
        return part(0, size);
    }
    let middle = (address.0 + size / 2).next_multiple_of(HUGE_PAGE) - address.0;
    thread::scope(|scope| {
        let name = "loader".to_owned();
        let second = thread::Builder::new().name(name);
        let second = second.spawn_scoped(scope, || part(middle, size));
        part(0, middle)?;
        match second {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panicked| panic::resume_unwind(panicked)),
            // The host has no more threads.
            Err(_) => part(middle, size),
        }
    })
}

/// Reads until all is there: one read(2) may give less, as file systems on a network and in userspace do.
fn read_all(
    memory: &GuestMemoryMmap,
    mut address: GuestAddress,
    file: &mut impl ReadVolatile,
    mut left: usize,
) -> io::Result<()> {
    while left > 0 {
        let count = memory.read_volatile_from(address, file, left);
        match count.map_err(io_error)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                address.0 += count as u64;
                left -= count;
            }
        }
    }
    Ok(())
}

/// A file from a place on, which is its reader's own.
struct FileAt<'a> {
    file: &'a File,
    offset: u64,
}

impl ReadVolatile for FileAt<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let failed = VolatileMemoryError::IOError;
        let offset =
            i64::try_from(self.offset).map_err(|_| failed(io::ErrorKind::UnexpectedEof.into()))?;
        let guard = buf.ptr_guard_mut();
        // SAFETY: the file is open, and `buf` is memory to write `len` bytes to for as long as the guard lives.
        let count = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                guard.as_ptr().cast(),
                buf.len(),
                offset,
            )
        };
        let count = usize::try_from(count).map_err(|_| failed(io::Error::last_os_error()))?;
        buf.bitmap().mark_dirty(0, count);
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    /// A file whose 32-bit words count, and memory that begins at 0.
    fn counting(words: u32) -> (File, GuestMemoryMmap) {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        let bytes: Vec<u8> = (0..words).flat_map(u32::to_le_bytes).collect();
        file.write_all(&bytes).unwrap();
        file.seek(SeekFrom::Start(5)).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        (file, memory)
    }

    #[test]
    fn every_byte_is_read_to_its_place_by_one_thread_or_two() {
        let (file, memory) = counting(2 << 20);
        for size in [
            0,
            4,
            4096,
            PARALLEL_READ_MIN - 4,
            PARALLEL_READ_MIN,
            7 << 20,
        ] {
            let address = GuestAddress(0x1234);
            read(&memory, address, &file, 8, size).unwrap();
            let mut bytes = vec![0; size as usize];
            memory.read_slice(&mut bytes, address).unwrap();
            let expected: Vec<u8> = (2..2 + size as u32 / 4)
                .flat_map(u32::to_le_bytes)
                .collect();
            assert!(bytes == expected, "{size} bytes");
        }
    }

    /// Gives at most three bytes at a time.
    struct Slow<'a>(FileAt<'a>);

    impl ReadVolatile for Slow<'_> {
        fn read_volatile<B: BitmapSlice>(
            &mut self,
            buf: &mut VolatileSlice<'_, B>,
        ) -> Result<usize, VolatileMemoryError> {
            let length = buf.len().min(3);
            self.0.read_volatile(&mut buf.subslice(0, length)?)
        }
    }

    #[test]
    fn a_file_that_gives_a_few_bytes_at_a_time_is_read_to_the_end() {
        let (file, memory) = counting(1024);
        let at = FileAt {
            file: &file,
            offset: 4,
        };
        let address = GuestAddress(0xffe);
        read_all(&memory, address, &mut Slow(at), 4000).unwrap();
        let mut bytes = vec![0; 4000];
        memory.read_slice(&mut bytes, address).unwrap();
        let expected: Vec<u8> = (1..1001).flat_map(u32::to_le_bytes).collect();
        assert!(bytes == expected);
        let at = FileAt {
            file: &file,
            offset: 4,
        };
        let error = read_all(&memory, address, &mut Slow(at), 4093).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_that_ends_early_is_told() {
        let (file, memory) = counting(2 << 20);
        for (offset, size) in [
            (0, (8 << 20) + 1),
            (8 << 20, 1),
            (3 << 20, 6 << 20),
            (u64::MAX, 1),
        ] {
            let error = read(&memory, GuestAddress(0), &file, offset, size).unwrap_err();
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "{offset} {size}"
            );
        }
    }
}
