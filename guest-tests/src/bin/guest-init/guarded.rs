//! Memory that ends where nothing is mapped.

use std::io;
use std::ptr::{self, NonNull};

const PAGE: usize = 4096;

/// A copy of bytes of which the last is the last one mapped.
pub(crate) struct Guarded {
    mapping: NonNull<u8>,
    /// Of the mapping, in bytes, with the unmapped page at its end.
    length: usize,
    start: usize,
}

impl Guarded {
    pub(crate) fn new(bytes: &[u8]) -> io::Result<Self> {
        let mapped = bytes.len().next_multiple_of(PAGE);
        let length = mapped + PAGE;
        // SAFETY: a new anonymous mapping wherever there is room touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let Some(mapping) =
            NonNull::new(address.cast::<u8>()).filter(|_| address != libc::MAP_FAILED)
        else {
            return Err(io::Error::last_os_error());
        };
        let memory = Self {
            mapping,
            length,
            start: mapped - bytes.len(),
        };
        // SAFETY: the bytes end at `mapped`, within the mapping, which is new and thus apart from them.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                mapping.as_ptr().add(memory.start),
                bytes.len(),
            );
        }
        // SAFETY: the page is the mapping's last, and nothing refers to it.
        if unsafe { libc::mprotect(mapping.as_ptr().add(mapped).cast(), PAGE, libc::PROT_NONE) } < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(memory)
    }

    /// The linear address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        (self.mapping.as_ptr() as usize + self.start) as u64
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.length) };
    }
}
