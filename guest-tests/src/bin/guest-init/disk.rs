//! What is done to a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{RECORD_LEN, intact_records, record};
use guest_tests::init;

/// How long a disk may take to be there, once its driver is.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What Linux takes for a direct read of any disk.
const BLOCK: usize = 4096;

/// Mounts an ext4 file system for writing, or for reading only where its disk is.
pub(crate) fn mount(disk: &str, at: &str) -> io::Result<()> {
    await_disk(disk);
    fs::create_dir_all(at)?;
    match init::mount_from(disk, at, "ext4", 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EROFS)) => {
            init::mount_from(disk, at, "ext4", libc::MS_RDONLY)
        }
        mounted => mounted,
    }
}

/// Waits until a disk is there, or until none will be.
fn await_disk(disk: &str) {
    let begin = Instant::now();
    while !Path::new(disk).exists() && begin.elapsed() < TIMEOUT {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a disk's last block until it cannot be read.
pub(crate) fn read_last_block(disk: &str) -> io::Error {
    loop {
        if let Err(error) = direct_read(disk) {
            return error;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads pieces from a device's start on, past the page cache where it is a disk, and tells how long that took.
pub(crate) fn time_reads(path: &str, piece: usize, times: usize) -> io::Result<Duration> {
    await_disk(path);
    let is_disk = fs::metadata(path)?.file_type().is_block_device();
    let direct = if is_disk { libc::O_DIRECT } else { 0 };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(direct)
        .open(path)?;
    let mut room = vec![0; piece + BLOCK];
    let aligned = room.as_ptr().align_offset(BLOCK);
    let begin = Instant::now();
    for _ in 0..times {
        file.read_exact(&mut room[aligned..aligned + piece])?;
    }
    Ok(begin.elapsed())
}

fn direct_read(disk: &str) -> io::Result<()> {
    #[repr(align(4096))]
    struct Aligned([u8; BLOCK]);
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk)?;
    file.seek(SeekFrom::End(-(BLOCK as i64)))?;
    file.read_exact(&mut Aligned([0; BLOCK]).0)
}

/// Writes records until it cannot, with a load beside them.
pub(crate) fn write_records(directory: &Path) -> io::Error {
    thread::scope(|scope| {
        // It ends when the machine does.
        scope.spawn(|| churn(directory));
        append(directory)
    })
}

fn append(directory: &Path) -> io::Error {
    let forever = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("records"))?;
        let mut contents = Vec::new();
        file.read_to_end(&mut contents)?;
        let found = intact_records(&contents);
        let end = found * RECORD_LEN as u64;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        // The file's name as well.
        File::open(directory)?.sync_all()?;
        println!("found {found}");
        for number in found.. {
            file.write_all(&record(number))?;
            file.sync_all()?;
            println!("fsynced {}", number + 1);
        }
        Ok(())
    };
    forever().expect_err("there are always more numbers")
}

/// Makes, renames and removes files of changing lengths, and syncs the disk now and then.
fn churn(directory: &Path) {
    const FILES: u64 = 16;
    for round in 0_u64.. {
        let new = directory.join(format!("new-{}", round % FILES));
        let old = directory.join(format!("old-{}", round * 7 % FILES));
        let length = (round * 7919 % 64 * 1024) as usize;
        // A full disk, say, is part of the load.
        let _ = fs::write(&new, vec![round as u8; length]);
        let _ = fs::rename(&new, &old);
        if round % 3 == 0 {
            let _ = fs::remove_file(directory.join(format!("old-{}", round % FILES)));
        }
        if round % 32 == 31
            && let Ok(file) = File::open(directory)
        {
            // SAFETY: the descriptor is open.
            unsafe { libc::syncfs(file.as_raw_fd()) };
        }
    }
}
