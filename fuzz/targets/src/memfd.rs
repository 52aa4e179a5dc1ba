//! Files that are in memory only, for code that takes a path.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

/// A file with this content. Its path is valid for as long as it lives.
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    pub(crate) fn new(content: &[u8]) -> Self {
        // SAFETY: the name is a string that ends in a zero byte, and the kernel only reads it.
        let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(content).expect("memory for a small file");
        Self(file)
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}
