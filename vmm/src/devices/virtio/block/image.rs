use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use libc::iovec;

use super::SECTOR_SIZE;
use super::flusher::{FlushError, Flusher};
use crate::devices::virtio::buffers::Iovecs;
use crate::sandbox::ThreadFilters;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is nothing at this path.
    #[error("disk {}: there is no such file", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A directory, a terminal, a pipe.
    #[error(
        "disk {}: this is {what}, and a disk is a raw image file or a block device",
        path.display()
    )]
    NotADisk {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file can be read, but not written.
    #[error(
        "disk {0}: it cannot be written ({source}); to use it read-only, say --disk {0},ro, or \
         readonly = true in the config",
        path.display()
    )]
    NotWritable {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Some other program uses the disk, and one of the two wants to write.
    #[error(
        "disk {}: it is in use by another program, and a disk that one of them writes to cannot \
         be shared",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is not one sector.
    #[error("disk {}: {bytes} bytes are less than one sector of 512", path.display())]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// The size.
        bytes: u64,
    },
    /// Anything else.
    #[error("disk {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A raw disk image or a block device, locked against other users as long as it is open.
#[derive(Debug)]
pub(super) struct Image {
    file: Arc<File>,
    flusher: Flusher,
    readonly: bool,
    sectors: u64,
    physical_block: u64,
    /// The system call that is under way, one of [`CALLS`] by its place.
    under_way: AtomicU8,
}

/// What the disk's thread may be at.
const CALLS: [&str; 5] = [
    "a request",
    "a read",
    "a write",
    "a discard",
    "a write of zeroes",
];
const READ: u8 = 1;
const WRITE: u8 = 2;
const DISCARD: u8 = 3;
const ZERO: u8 = 4;

impl Image {
    pub(super) fn open(path: &Path, readonly: bool) -> Result<Self, DiskError> {
        let io = |source| DiskError::Io {
            path: path.into(),
            source,
        };
        let file = open_file(path, readonly)?;
        let metadata = file.metadata().map_err(io)?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk {
                path: path.into(),
                what: if kind.is_dir() {
                    "a directory"
                } else {
                    "a character device, pipe or socket"
                },
            });
        }
        lock(&file, path, readonly)?;
        // A block device's metadata do not have its size, but its end can be found.
        let bytes = (&file).seek(SeekFrom::End(0)).map_err(io)?;
        let sectors = bytes / SECTOR_SIZE;
        if sectors == 0 {
            return Err(DiskError::TooSmall {
                path: path.into(),
                bytes,
            });
        }
        if bytes % SECTOR_SIZE != 0 {
            log::warn!(
                "disk {}: the last {} bytes are no whole sector, the guest does not see them",
                path.display(),
                bytes % SECTOR_SIZE
            );
        }
        let file = Arc::new(file);
        let synced = file.clone();
        Ok(Self {
            flusher: Flusher::start(Box::new(move || synced.sync_data())).map_err(io)?,
            file,
            readonly,
            sectors,
            physical_block: metadata.blksize(),
            under_way: AtomicU8::new(0),
        })
    }

    /// Has the thread that flushes enter its filter.
    pub(super) fn confine(&self, filters: &ThreadFilters) {
        self.flusher.confine(filters);
    }

    pub(super) fn readonly(&self) -> bool {
        self.readonly
    }

    /// The capacity in sectors, as it was when the image was opened.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The size in bytes of the blocks that are written best.
    pub(super) fn physical_block(&self) -> u64 {
        self.physical_block
    }

    /// Reads from byte `offset` on into `pieces` of guest memory, and returns how many bytes that
    /// were: 0 at the end of the file, which may have moved since it was opened.
    pub(super) fn read(&self, offset: u64, pieces: &Iovecs<'_>) -> io::Result<usize> {
        let pieces = pieces.as_slice();
        let offset = file_offset(offset)?;
        self.call(READ, || {
            // SAFETY: the pieces are guest memory that stays mapped while `Iovecs` lives, there are as many as said, and the kernel writes nowhere else. The guest
            // may use them meanwhile: nothing here relies on what is in them.
            unsafe {
                libc::preadv64(
                    self.file.as_raw_fd(),
                    pieces.as_ptr(),
                    count(pieces),
                    offset,
                )
            }
        })
    }

    /// Writes from byte `offset` on what is in `pieces` of guest memory, and returns how many bytes
    /// that were.
    pub(super) fn write(&self, offset: u64, pieces: &Iovecs<'_>) -> io::Result<usize> {
        let pieces = pieces.as_slice();
        let offset = file_offset(offset)?;
        self.call(WRITE, || {
            // SAFETY: as in `read`, and the kernel only reads the pieces.
            unsafe {
                libc::pwritev64(
                    self.file.as_raw_fd(),
                    pieces.as_ptr(),
                    count(pieces),
                    offset,
                )
            }
        })
    }

    /// Waits until everything written so far is on stable storage, or until `stop` is set.
    pub(super) fn sync(&self, stop: &AtomicBool) -> Result<(), FlushError> {
        self.flusher.flush(stop)
    }

    /// An image whose flushes are `sync`.
    #[cfg(test)]
    pub(super) fn with_sync(mut self, sync: super::flusher::SyncFn) -> Self {
        self.flusher = Flusher::start(sync).unwrap();
        self
    }

    /// Gives up what is in `len` bytes from `offset` on: they read as zeroes.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(DISCARD, libc::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    /// Makes `len` bytes from `offset` on zeroes, with room for data set aside.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(ZERO, libc::FALLOC_FL_ZERO_RANGE, offset, len)
    }

    fn allocate(&self, what: u8, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (file_offset(offset)?, file_offset(len)?);
        self.call(what, || {
            // SAFETY: fallocate takes no pointer.
            let result = unsafe {
                libc::fallocate64(
                    self.file.as_raw_fd(),
                    mode | libc::FALLOC_FL_KEEP_SIZE,
                    offset,
                    len,
                )
            };
            result as isize
        })
        .map(drop)
    }

    /// What the disk's thread asks of the host just now, in words.
    pub(super) fn under_way(&self) -> &'static str {
        let call = self.under_way.load(Ordering::Relaxed);
        CALLS.get(usize::from(call)).unwrap_or(&CALLS[0])
    }

    /// Calls `system_call` until no signal interrupts it, and tells meanwhile what it is.
    fn call(&self, what: u8, system_call: impl Fn() -> isize) -> io::Result<usize> {
        self.under_way.store(what, Ordering::Relaxed);
        let result = retry(system_call);
        self.under_way.store(0, Ordering::Relaxed);
        result
    }
}

fn open_file(path: &Path, readonly: bool) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    // A pipe without a writer must not hold us up; for a file or a block device it changes nothing.
    options
        .read(true)
        .write(!readonly)
        .custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|source| {
        let path = path.to_path_buf();
        match source.kind() {
            ErrorKind::NotFound => DiskError::Missing { path },
            ErrorKind::IsADirectory => DiskError::NotADisk {
                path,
                what: "a directory",
            },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                if !readonly && File::open(&path).is_ok() =>
            {
                DiskError::NotWritable { path, source }
            }
            _ => DiskError::Io { path, source },
        }
    })
}

/// Takes an open file description lock on the whole file, shared for a reader and exclusive for a
/// writer. It goes with the descriptor, however the process ends, and conflicts with QEMU's locks
/// too.
fn lock(file: &File, path: &Path, readonly: bool) -> Result<(), DiskError> {
    let kind = if readonly {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    // SAFETY: `flock` is plain data, for which zeroes are a valid value.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    // Both constants are small enough; their types differ between libc's definitions.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open and `lock` is what F_OFD_SETLK expects, and is only read.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::InUse { path: path.into() }),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => {
            log::warn!(
                "disk {}: this file system has no locks, so nothing keeps other programs from \
                 using the disk",
                path.display()
            );
            Ok(())
        }
        _ => Err(DiskError::Io {
            path: path.into(),
            source,
        }),
    }
}

fn file_offset(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| ErrorKind::InvalidInput.into())
}

fn count(pieces: &[iovec]) -> libc::c_int {
    // The kernel refuses more than 1024, so a count that does not fit is refused as well.
    libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX)
}

/// Calls `system_call` until no signal interrupts it.
fn retry(system_call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(system_call()) {
            Ok(value) => return Ok(value),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
