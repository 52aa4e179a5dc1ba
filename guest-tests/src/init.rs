//! What the inits of both guests share: thin wrappers of the system calls a PID 1 makes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Mounts a pseudo file system.
pub fn mount(kind: &str, at: &str) -> io::Result<()> {
    mount_from(kind, at, kind, 0)
}

/// Mounts what is on a device, or with other flags moves a mount: mount(2) without data.
pub fn mount_from(source: &str, at: &str, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let [source, at, kind] = [source, at, kind].map(CString::new);
    let (source, at, kind) = (source?, at?, kind?);
    // SAFETY: the strings are NUL-terminated and outlive the call; no data is passed.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Loads an uncompressed kernel module without parameters. One that is loaded already is fine.
pub fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open and the parameter string NUL-terminated.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

/// Waits for a child; orphans that PID 1 inherits are reaped on the way.
pub fn wait_for(child: u32) -> io::Result<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: status is a valid place for the result.
        let pid = unsafe { libc::wait(&raw mut status) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid.cast_unsigned() == child {
            // Both fit: an exit status has 8 bits and a signal number 7.
            return Ok(if libc::WIFEXITED(status) {
                Ended::Exited(libc::WEXITSTATUS(status) as u8)
            } else {
                Ended::Signalled(libc::WTERMSIG(status) as u8)
            });
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
}

/// Tells the VMM that init runs, for `msr-vmm run --boot-timing`; lost where nobody asked for it.
///
/// The kernel executes the OUT. QEMU's TCG takes a TSS for none once KVM has restored it, busy as it is, so that in the outer VM a process of a
/// restored guest gets #GP for its own OUT, whatever ioperm(2) gave it (QEMU 7.2, target/i386/tcg/seg_helper.c, `check_io`).
pub fn stop_boot_timer() -> io::Result<()> {
    let ports = File::options().write(true).open("/dev/port")?;
    ports.write_all_at(&[1], msr_vmm::layout::BOOT_TIMER.into())
}

/// Keeps the kernel's messages, but for emergencies, out of the console, so that they do not end up
/// within the lines written there. The log keeps them: see [`kernel_log`].
pub fn quiet_console() -> io::Result<()> {
    // From syslog(2); libc has no name for it.
    const CONSOLE_LEVEL: libc::c_int = 8;
    const EMERGENCIES_ONLY: libc::c_int = 1;
    // SAFETY: this action takes no buffer.
    if unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), EMERGENCIES_ONLY) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The kernel's log.
pub fn kernel_log() -> io::Result<Vec<u8>> {
    // From syslog(2); libc has no names for them.
    const READ_ALL: libc::c_int = 3;
    const SIZE_BUFFER: libc::c_int = 10;
    // SAFETY: this action takes no buffer.
    let size = unsafe { libc::klogctl(SIZE_BUFFER, std::ptr::null_mut(), 0) };
    let mut log = vec![0u8; usize::try_from(size).map_err(|_| io::Error::last_os_error())?];
    // SAFETY: the buffer is valid for `size` bytes, and the kernel writes no more.
    let length = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), size) };
    log.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(log)
}

/// The time since boot, in nanoseconds.
pub fn uptime() -> io::Result<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to write.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Neither part of a time since boot is negative.
    Ok(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

/// Waits until a terminal has sent everything; nothing to wait for on what is no terminal.
pub fn drain(terminal: &impl AsFd) {
    // SAFETY: the descriptor is open while it is borrowed. The only errors are a file that is no
    // terminal and a signal, for which PID 1 has no handlers.
    unsafe { libc::tcdrain(terminal.as_fd().as_raw_fd()) };
}
