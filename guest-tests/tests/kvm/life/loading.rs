//! Signals while a VM is still being made: a kernel may take seconds to load, and one on a network longer to open.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, Guest};
use libtest_mimic::{Failed, Trial};

use super::{kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    listed!("loading": a_signal_ends_what_still_opens_its_kernel)
}

/// How long the host keeps who opens a leased file waiting at most, in seconds: longer than the test takes, shorter than
/// its own patience would be.
const LEASE_BREAK_SECONDS: &str = "/proc/sys/fs/lease-break-time";

/// fcntl(2); the crate `libc` does not have it.
const F_SETSIG: libc::c_int = 10;

/// A file whose next open(2) waits until the value goes, or the time of [`LEASE_BREAK_SECONDS`] is over: fcntl(2), "Leases".
struct Leased(std::fs::File);

impl Leased {
    fn new(path: &std::path::Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        let leased = Self(file);
        // Told of by a signal that is ignored unless asked for, in place of SIGIO, which ends a process.
        leased.fcntl(F_SETSIG, libc::SIGURG)?;
        leased.fcntl(libc::F_SETLEASE, libc::F_WRLCK)?;
        Ok(leased)
    }

    /// Whether somebody waits to open it.
    fn is_waited_for(&self) -> io::Result<bool> {
        Ok(self.fcntl(libc::F_GETLEASE, 0)? != libc::F_WRLCK)
    }

    fn fcntl(&self, command: libc::c_int, value: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: these commands take an integer, and the file is open.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), command, value) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    }
}

fn a_signal_ends_what_still_opens_its_kernel() -> Result<(), Failed> {
    let longest = Duration::from_secs(
        std::fs::read_to_string(LEASE_BREAK_SECONDS)?
            .trim()
            .parse()?,
    );
    let folder = Folder::new()?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let kernel = folder.file("kernel", "a kernel on a network that does not answer")?;
        let leased = Leased::new(&kernel)?;
        let running = Guest::bare(&kernel)?.start()?;
        let start = Instant::now();
        while !leased.is_waited_for()? {
            if start.elapsed() > longest / 2 {
                return Err("msr-vmm does not open its kernel".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Who asks what the vCPUs do is told that there are none, as often as they ask.
        for asked in 1..=2 {
            kill(running.pid(), libc::SIGUSR1)?;
            while running.stderr().matches("no vCPU runs yet").count() < asked {
                if start.elapsed() > longest / 2 {
                    return Err(format!("no answer to SIGUSR1: {}", running.stderr()).into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        kill(running.pid(), signal)?;
        let outcome = running.wait()?;
        if outcome.status.signal() != Some(signal) {
            let (status, stderr) = (outcome.status, outcome.stderr);
            return Err(format!("signal {signal}: {status}\n{stderr}").into());
        }
        // Not because the file opened in the end.
        if start.elapsed() >= longest {
            return Err(format!("signal {signal}: it took {:?}", start.elapsed()).into());
        }
    }
    Ok(())
}
