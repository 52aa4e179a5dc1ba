//! A guest that a process carries on from a snapshot.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use msr_vmm::control_socket::Client;

use super::BootError;
use crate::assets;

/// How long a process may take to serve its control socket, and a guest to end.
const LIMIT: Duration = Duration::from_secs(120);
/// How often is looked.
const PAUSE: Duration = Duration::from_millis(5);

/// `msr-vmm restore`. Dropping it kills the process.
#[derive(Debug)]
pub struct RestoredGuest {
    process: Child,
    socket: PathBuf,
    console: PathBuf,
}

impl RestoredGuest {
    /// Carries `snapshot` on. The process serves a control socket at `socket`, may make snapshots in that folder, and a file
    /// beside it has the console.
    ///
    /// # Errors
    ///
    /// [`BootError::Asset`] and [`BootError::Run`].
    pub fn start(snapshot: &Path, socket: PathBuf) -> Result<Self, BootError> {
        let folder = socket.parent().unwrap_or(Path::new("."));
        let snapshots = [OsStr::new("--snapshots"), folder.as_os_str()];
        Self::with_options(snapshot, socket.clone(), &snapshots)
    }

    /// The same with other options of `msr-vmm restore`.
    ///
    /// # Errors
    ///
    /// [`BootError::Asset`] and [`BootError::Run`].
    pub fn with_options(
        snapshot: &Path,
        socket: PathBuf,
        options: &[&OsStr],
    ) -> Result<Self, BootError> {
        let console = socket.with_extension("console");
        let mut command = Command::new(assets::msr_vmm()?);
        command.arg("restore").arg(snapshot);
        command.arg("--control").arg(&socket).args(options);
        command.stdin(Stdio::null()).stdout(File::create(&console)?);
        Ok(Self {
            process: command.spawn()?,
            socket,
            console,
        })
    }

    /// A client of its control socket, once it is served.
    ///
    /// # Errors
    ///
    /// [`BootError::NotSeen`] where the process ends first, and [`BootError::Hung`].
    pub fn client(&mut self) -> Result<Client, BootError> {
        let begin = Instant::now();
        loop {
            if let Ok(client) = Client::connect(&self.socket) {
                return Ok(client);
            }
            self.look(begin, "a control socket")?;
        }
    }

    /// What the guest has said since it was restored.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read.
    pub fn said(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// Waits until `found` finds something in what the guest has said; `expected` says what.
    ///
    /// # Errors
    ///
    /// [`BootError::NotSeen`] where the guest ends without it, and [`BootError::Hung`].
    pub fn wait_for<T>(
        &mut self,
        expected: &str,
        found: impl Fn(&str) -> Option<T>,
    ) -> Result<T, BootError> {
        let begin = Instant::now();
        loop {
            // Looked at before the console, so that what was said last is seen.
            let looked = self.look(begin, expected);
            if let Some(found) = found(&self.said()?) {
                return Ok(found);
            }
            looked?;
        }
    }

    /// Kills the process as `kill -9` does, and gives what the guest has said.
    ///
    /// # Errors
    ///
    /// Where there is no process to kill.
    pub fn kill(mut self) -> io::Result<String> {
        self.process.kill()?;
        self.process.wait()?;
        self.said()
    }

    /// Waits for the guest's end, and gives the process's status and what the guest has said.
    ///
    /// # Errors
    ///
    /// [`BootError::Hung`].
    pub fn wait(mut self) -> Result<(ExitStatus, String), BootError> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status, self.said()?));
            }
            if begin.elapsed() > LIMIT {
                return Err(self.hung()?);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Gives the process time, if it has some left and lives.
    fn look(&mut self, begin: Instant, expected: &str) -> Result<(), BootError> {
        if let Some(status) = self.process.try_wait()? {
            return Err(BootError::NotSeen {
                expected: expected.to_owned(),
                console: format!("{status}\n{}", self.said()?),
            });
        }
        if begin.elapsed() > LIMIT {
            return Err(self.hung()?);
        }
        thread::sleep(PAUSE);
        Ok(())
    }

    fn hung(&self) -> io::Result<BootError> {
        Ok(BootError::Hung {
            limit: LIMIT,
            console: self.said()?,
        })
    }
}

impl Drop for RestoredGuest {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
