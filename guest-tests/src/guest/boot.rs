//! Boots a Linux guest under `msr-vmm` and brings back what it said.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::initrd::{Initrd, InitrdError};
use super::plan::Plan;
use super::report::{Report, ReportError};
use super::tiny::TinyKernel;
use super::watch::Watch;
use crate::assets::{self, AssetError};
use crate::kernel::Kernel;

/// The longest a guest may take. Under emulation the slowest needs half a minute. One that hangs is told much sooner,
/// see [`Watch`].
const LIMIT: Duration = Duration::from_secs(240);

/// What the tests' guests boot with: quiet, because every character of the console is an exit.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 msr.allow_writes=on";

/// Why a guest brought back nothing.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The initrd cannot be made.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// `msr-vmm` cannot be run.
    #[error("cannot run msr-vmm: {0}")]
    Run(#[from] io::Error),
    /// The guest took too long.
    #[error("the guest was not done within {limit:?}; it said\n{console}")]
    Hung {
        /// The time it had.
        limit: Duration,
        /// What there was.
        console: String,
    },
    /// The guest gets nowhere.
    #[error("the guest hangs: silent for {} s, and no vCPU leaves KVM_RUN\n{vcpus}\nits console:\n{console}", silent.as_secs())]
    NoProgress {
        /// Since when it said nothing.
        silent: Duration,
        /// What the vCPUs do: their registers, and the instruction they are at.
        vcpus: String,
        /// What there was.
        console: String,
    },
    /// The console did not show what was waited for.
    #[error("the guest ended without `{expected}`; it said\n{console}")]
    NotSeen {
        /// The text waited for.
        expected: String,
        /// What there was, and what `msr-vmm` said itself.
        console: String,
    },
}

/// A folder for one guest's files, which goes with the value.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty folder.
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("msr-guest.{}.{number}", std::process::id()));
        fs::create_dir_all(&path).map(|()| Self(path))
    }

    /// Writes a file in it and returns its path.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, contents).map(|()| path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A Linux guest to be booted.
#[derive(Debug)]
pub struct Guest {
    folder: Folder,
    arguments: Vec<OsString>,
    plan: Plan,
    limit: Duration,
    typed_to: bool,
    shown: bool,
}

/// What a guest left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status of `msr-vmm`.
    pub status: ExitStatus,
    /// The guest's console.
    pub console: String,
    /// What `msr-vmm` said itself.
    pub stderr: String,
    /// What the guest was to do.
    pub plan: Plan,
}

impl Outcome {
    /// The guest's answers.
    pub fn report(&self) -> Result<Report, ReportError> {
        Report::parse(&self.plan, &self.console)
    }
}

impl Guest {
    /// A guest that follows `plan`, with this configuration (TOML), the tests' kernel and an initrd of its
    /// own.
    pub fn new(config: &str, plan: Plan) -> Result<Self, BootError> {
        Self::with_kernel(&assets::kernel()?, config, plan)
    }

    /// The same with another kernel.
    pub fn with_kernel(kernel: &Kernel, config: &str, plan: Plan) -> Result<Self, BootError> {
        let initrd = Initrd::new(&plan, kernel)?;
        Self::with_initrd(kernel, config, plan, initrd)
    }

    /// The same with an initrd that holds more than the plan's own files.
    pub fn with_initrd(
        kernel: &Kernel,
        config: &str,
        plan: Plan,
        initrd: Initrd,
    ) -> Result<Self, BootError> {
        let folder = Folder::new()?;
        let initrd = folder.file("initrd", initrd.finish())?;
        let config = folder.file("config.toml", config)?;
        let guest = Self::of(folder, plan)
            .option("--config", config)
            .option("--kernel", kernel.image())
            .option("--initrd", initrd);
        Ok(guest.option("--cmdline", COMMAND_LINE))
    }

    /// A guest of a few instructions.
    pub fn tiny(kernel: &mut TinyKernel) -> Result<Self, BootError> {
        let folder = Folder::new()?;
        let image = folder.file("kernel", kernel.elf().map_err(io::Error::other)?)?;
        let guest = Self::of(folder, Plan::default());
        Ok(guest.option("--kernel", image).option("--memory", "32"))
    }

    /// A guest of this kernel image, with nothing else said.
    pub fn bare(image: &Path) -> Result<Self, BootError> {
        let guest = Self::of(Folder::new()?, Plan::default());
        Ok(guest.option("--kernel", image))
    }

    /// A guest that is nothing but a kernel.
    pub fn without_initrd(image: &Path) -> Result<Self, BootError> {
        let guest = Self::of(Folder::new()?, Plan::default());
        Ok(guest
            .option("--kernel", image)
            .option("--cmdline", COMMAND_LINE))
    }

    /// A guest that starts the system on its first disk, which is to be given as an option. It is
    /// [typed to](RunningGuest::enter), and may take longer than others.
    pub fn with_root_disk(kernel: &Kernel) -> Result<Self, BootError> {
        let folder = Folder::new()?;
        let initrd = folder.file("initrd", Initrd::for_root_disk(kernel)?.finish())?;
        let mut guest = Self::of(folder, Plan::default())
            .option("--kernel", kernel.image())
            .option("--initrd", initrd)
            .option("--cmdline", COMMAND_LINE);
        guest.limit = 4 * LIMIT;
        guest.typed_to = true;
        Ok(guest)
    }

    fn of(folder: Folder, plan: Plan) -> Self {
        Self {
            folder,
            arguments: Vec::new(),
            plan,
            limit: LIMIT,
            typed_to: false,
            shown: false,
        }
    }

    /// Adds an option of `msr-vmm run` with its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl Into<OsString>) -> Self {
        self.argument(name).argument(value)
    }

    /// Adds parameters to the kernel's command line.
    #[must_use]
    pub fn kernel_parameters(mut self, more: &str) -> Self {
        let at = self
            .arguments
            .iter()
            .position(|argument| argument == "--cmdline");
        match at.and_then(|at| self.arguments.get_mut(at + 1)) {
            Some(cmdline) => cmdline.push(format!(" {more}")),
            None => return self.option("--cmdline", more),
        }
        self
    }

    /// Adds an argument for `msr-vmm run`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets the longest that it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Shows the console on standard output, and what `msr-vmm` says on standard error, as they come.
    #[must_use]
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// Connects the console's input, so that the guest can be [typed to](RunningGuest::enter).
    #[must_use]
    pub fn typed_to(mut self) -> Self {
        self.typed_to = true;
        self
    }

    /// The folder with the guest's files: `initrd` and `config.toml`.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Boots it and waits for its end.
    pub fn run(self) -> Result<Outcome, BootError> {
        self.start()?.wait()
    }

    /// The command that boots it, for a test that arranges what is around it. Its files are gone when `self`
    /// is.
    pub fn command(&self) -> Result<Command, BootError> {
        let mut command = Command::new(assets::msr_vmm()?);
        command.arg("run").args(&self.arguments);
        Ok(command)
    }

    /// Boots it.
    pub fn start(self) -> Result<RunningGuest, BootError> {
        let mut child = self
            .command()?
            .stdin(if self.typed_to {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Both were just asked for.
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = (
            stdout.expect("stdout is piped"),
            stderr.expect("stderr is piped"),
        );
        let (console, stderr) = if self.shown {
            (
                Collector::new(stdout, io::stdout()),
                Collector::new(stderr, io::stderr()),
            )
        } else {
            (
                Collector::new(stdout, io::sink()),
                Collector::new(stderr, io::sink()),
            )
        };
        Ok(RunningGuest {
            child,
            console,
            stderr,
            started: Instant::now(),
            watch: Watch::new(),
            guest: self,
        })
    }
}

/// A guest that runs. Dropping it kills `msr-vmm`.
#[derive(Debug)]
pub struct RunningGuest {
    child: Child,
    console: Collector,
    stderr: Collector,
    started: Instant,
    watch: Watch,
    guest: Guest,
}

impl RunningGuest {
    /// The process of `msr-vmm`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The console so far.
    pub fn console(&self) -> String {
        self.console.so_far()
    }

    /// What `msr-vmm` has said itself so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Kills `msr-vmm` as `kill -9` does, and returns the console once the process is gone.
    pub fn kill(mut self) -> io::Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.console.all())
    }

    /// Waits until the console shows `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<(), BootError> {
        loop {
            // Looked at before the console, so that what was said last is seen.
            let ended = self.child.try_wait()?.is_some();
            let console = self.console.so_far();
            if console.contains(text) {
                return Ok(());
            }
            if ended {
                return Err(BootError::NotSeen {
                    expected: text.to_owned(),
                    console: format!("{}\n{}", self.console.all(), self.stderr.all()),
                });
            }
            self.pause(&console)?;
        }
    }

    /// Types a line on the console.
    pub fn enter(&mut self, line: &str) -> io::Result<()> {
        let Some(stdin) = &mut self.child.stdin else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits for the guest's end.
    pub fn wait(mut self) -> Result<Outcome, BootError> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            let console = self.console.so_far();
            self.pause(&console)?;
        };
        Ok(Outcome {
            status,
            console: self.console.all(),
            stderr: self.stderr.all(),
            plan: self.guest.plan.clone(),
        })
    }

    fn pause(&mut self, console: &str) -> Result<(), BootError> {
        let pid = self.child.id().cast_signed();
        let ask = || {
            // SAFETY: kill takes no pointers; the process is this one's child and not yet waited for.
            unsafe { libc::kill(pid, libc::SIGUSR1) };
        };
        let stderr = self.stderr.so_far();
        if let Some((silent, vcpus)) = self.watch.hangs(console.len(), &stderr, ask) {
            return Err(BootError::NoProgress {
                silent,
                vcpus,
                console: console.to_owned(),
            });
        }
        if self.started.elapsed() > self.guest.limit {
            let said = format!("{console}\n{}", self.stderr.so_far());
            return Err(BootError::Hung {
                limit: self.guest.limit,
                console: said,
            });
        }
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end in a thread of its own, so that its writer never waits.
#[derive(Debug)]
struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Reads `pipe`, and writes all of it to `copy` as well.
    fn new(mut pipe: impl Read + Send + 'static, mut copy: impl Write + Send + 'static) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let into = text.clone();
        let thread = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut piece) {
                into.lock()
                    .expect("no holder panics")
                    .extend_from_slice(&piece[..length]);
                // With nobody there to see it, it is collected all the same.
                let _ = copy.write_all(&piece[..length]).and_then(|()| copy.flush());
            }
        });
        Self {
            text,
            thread: Some(thread),
        }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no holder panics")).into_owned()
    }

    fn all(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.so_far()
    }
}
