//! Boots the outer VM, runs one program in it, and returns that program's exit status.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::choice::{self, Choice, ChoiceError, Reason};
use super::control::{Event, JOB_PATH, Job};
use super::cpio::Archive;
use super::qemu::{Machine, Qemu};
use super::trial;
use crate::assets::{self, AssetError};
use crate::kernel::Kernel;

/// The outer VM, to be filled and run.
///
/// ```no_run
/// use guest_tests::assets;
/// use guest_tests::nested::outer::OuterVm;
///
/// let mut vm = OuterVm::new(["/bin/msr-vmm", "check"]);
/// vm.file("/bin/msr-vmm", assets::msr_vmm()?);
/// let status = vm.run(&assets::outer_kernel()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct OuterVm {
    files: Vec<(String, Contents)>,
    disks: Vec<PathBuf>,
    job: Job,
    with_kvm: bool,
    kaslr: bool,
    memory_mib: u32,
    limit: Duration,
    silence: Duration,
    verbose: bool,
    choice: Option<Choice>,
    output: Output,
    name: Option<String>,
}

/// What happens to what the program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// It is passed on as it comes.
    Streamed,
    /// It is passed on by whole lines: other outer VMs write too.
    Lines,
    /// Nobody sees it.
    Hidden,
}

#[derive(Debug)]
enum Contents {
    Of(PathBuf),
    Bytes(Vec<u8>),
}

/// Why the outer VM brought back no exit status.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// A file to be packed cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file on the host.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An executable, the kernel or a module is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// There is no QEMU to choose.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// QEMU cannot be started or watched.
    #[error("cannot run QEMU: {0}")]
    Qemu(#[source] io::Error),
    /// The guest of a trial cannot be made.
    #[error("cannot make a guest to try this QEMU with: {0}")]
    Trial(String),
    /// No guest boots under this QEMU, whatever the paging.
    #[error(
        "no guest boots under QEMU {version}; QEMU= names another, OUTER_PAGING=nested|shadow decides how to use it\n{failures}"
    )]
    NoGuestBoots {
        /// The version.
        version: String,
        /// What happened with each paging, a paragraph each.
        failures: String,
    },
    /// The init could not run the program.
    #[error("outer VM: {0}")]
    Init(String),
    /// The VM ended before the program did: a kernel panic, a crash of its init or of QEMU.
    #[error("the outer VM ended without a status after {stage} ({qemu}); its console:\n{console}")]
    NoStatus {
        /// The last thing it got done.
        stage: &'static str,
        /// How QEMU ended.
        qemu: String,
        /// The end of the kernel's console.
        console: String,
    },
    /// It gave no sign of life.
    #[error("the outer VM hangs: no sign of life for {} s after {stage}; its registers:\n{registers}\nits console:\n{console}", silent.as_secs())]
    Silent {
        /// Since when.
        silent: Duration,
        /// The last thing it got done.
        stage: &'static str,
        /// What QEMU says of the CPUs.
        registers: String,
        /// The end of the kernel's console.
        console: String,
    },
    /// The program neither ended nor did anything.
    #[error(
        "the program in the outer VM is stuck: no CPU had work for {seconds} s; the CPUs:\n{registers}\nwhat each task waits for:\n{console}"
    )]
    Stuck {
        /// For how long.
        seconds: u64,
        /// What QEMU says of the CPUs.
        registers: String,
        /// What the kernel says of its tasks.
        console: String,
    },
    /// The safety limit passed.
    #[error("the outer VM was stopped after {} s; its console:\n{console}", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The end of the kernel's console.
        console: String,
    },
}

/// The modules that make a KVM of the outer VM, without their dependencies.
const KVM_MODULES: &[&str] = &["kvm-amd"];

/// The modules that disks need, without their dependencies.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// How often the time that passed is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long the outer VM may give no sign of life: its init sends one every
/// [`HEARTBEAT`](super::control::HEARTBEAT), and before there is one the kernel prints.
const SILENCE: Duration = Duration::from_secs(30);

/// How much of the kernel's console an error shows.
const CONSOLE_TAIL_LINES: usize = 60;

impl OuterVm {
    /// An outer VM with 3 GiB, whose init loads KVM and runs this program.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            files: Vec::new(),
            disks: Vec::new(),
            job: Job {
                argv: argv.into_iter().map(Into::into).collect(),
                env: vec![("PATH".to_owned(), "/bin".to_owned())],
                cwd: "/".to_owned(),
                modules: Vec::new(),
            },
            with_kvm: true,
            kaslr: false,
            memory_mib: 3072,
            limit: Duration::from_secs(30 * 60),
            silence: SILENCE,
            verbose: std::env::var_os("VERBOSE").is_some_and(|v| v == "1"),
            choice: None,
            output: Output::Streamed,
            name: None,
        }
    }

    /// Puts a file of the host into the VM, executable or not as it is there.
    pub fn file(&mut self, guest: impl Into<String>, host: impl Into<PathBuf>) -> &mut Self {
        self.files.push((guest.into(), Contents::Of(host.into())));
        self
    }

    /// Puts a file with these contents into the VM.
    pub fn contents(&mut self, guest: impl Into<String>, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.files
            .push((guest.into(), Contents::Bytes(bytes.into())));
        self
    }

    /// Gives the VM a raw image as its next disk, `/dev/vda` and so on. What is written to the disk
    /// goes with the VM: the image stays as it is.
    pub fn disk(&mut self, image: impl Into<PathBuf>) -> &mut Self {
        self.disks.push(image.into());
        self
    }

    /// Sets an environment variable of the program.
    pub fn env(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.job.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory of the program; it is created.
    pub fn cwd(&mut self, directory: impl Into<String>) -> &mut Self {
        self.job.cwd = directory.into();
        self
    }

    /// Leaves KVM's modules out, for programs that need none.
    pub fn without_kvm(&mut self) -> &mut Self {
        self.with_kvm = false;
        self
    }

    /// Has the kernel move itself to where chance wants it.
    pub fn with_kaslr(&mut self) -> &mut Self {
        self.kaslr = true;
        self
    }

    /// Sets how long the whole may take before it counts as hung.
    pub fn limit(&mut self, limit: Duration) -> &mut Self {
        self.limit = limit;
        self
    }

    /// Sets how long it may give no sign of life before it counts as hung.
    pub fn silence(&mut self, silence: Duration) -> &mut Self {
        self.silence = silence;
        self
    }

    /// Says which QEMU and what paging to use; [`choice::choose`] does otherwise.
    pub(super) fn choice(&mut self, choice: Choice) -> &mut Self {
        self.choice = Some(choice);
        self
    }

    /// Lets nobody see what the program writes.
    pub(super) fn hide_output(&mut self) -> &mut Self {
        self.output = Output::Hidden;
        self
    }

    /// Names this outer VM among others that run at the same time: its progress lines have the name, and
    /// what its program writes is passed on by whole lines.
    pub fn named(&mut self, name: impl Into<String>) -> &mut Self {
        self.name = Some(name.into());
        self.output = Output::Lines;
        self
    }

    /// Boots, runs the program with its output streamed to standard output, and returns its exit
    /// status; 128 and the signal's number if a signal ended it, as shells have it.
    ///
    /// Stages and their times go to standard error. The kernel's own console shows only with
    /// `VERBOSE=1` in the environment, or in the error.
    pub fn run(mut self, kernel: &Kernel) -> Result<u8, OuterError> {
        let choice = match self.choice.take() {
            Some(choice) => choice,
            None => match choice::choose()? {
                guess if guess.reason == Reason::Guessed => trial::confirm(guess, kernel)?,
                choice => choice,
            },
        };
        let started = Instant::now();
        let initramfs = self.initramfs(kernel)?;
        let progress = Progress(self.name.take());
        progress.say(format_args!("{choice}"));
        progress.say(format_args!(
            "booting {}, initramfs {} MiB",
            kernel.version(),
            initramfs.len() >> 20
        ));
        let machine = Machine {
            choice: &choice,
            kernel: kernel.image(),
            initramfs: &initramfs,
            memory_mib: self.memory_mib,
            kaslr: self.kaslr,
            disks: &self.disks,
        };
        let qemu = Qemu::spawn(&machine).map_err(OuterError::Qemu)?;
        drop(initramfs);
        Watch::over(qemu, self.verbose, self.output, progress)?.until_the_end(
            started,
            self.limit,
            self.silence,
        )
    }

    fn initramfs(&mut self, kernel: &Kernel) -> Result<Vec<u8>, OuterError> {
        let mut archive = Archive::new();
        archive
            .character_device("/dev/console", 0o600, 5, 1)
            .directory("/proc")
            .directory("/sys")
            .directory("/tmp")
            .directory(&self.job.cwd)
            .file("/init", 0o755, &read(&assets::executable("outer-init")?)?);
        let mut modules = Vec::new();
        if self.with_kvm {
            modules.extend(KVM_MODULES);
        }
        if !self.disks.is_empty() {
            modules.extend(DISK_MODULES);
        }
        for module in kernel.modules(&modules).map_err(AssetError::from)? {
            let path = format!("/lib/modules/{}.ko", module.name);
            archive.file(&path, 0o644, &module.elf);
            self.job.modules.push(path);
        }
        for (guest, contents) in &self.files {
            match contents {
                Contents::Of(host) => archive.file(guest, mode(host)?, &read(host)?),
                Contents::Bytes(bytes) => archive.file(guest, 0o644, bytes),
            };
        }
        let job = serde_json::to_vec(&self.job).expect("strings always serialize");
        archive.file(JOB_PATH, 0o644, &job);
        Ok(archive.finish())
    }
}

/// Says on standard error what an outer VM does, with its name if it has one.
pub(super) struct Progress(pub(super) Option<String>);

impl Progress {
    /// One line, apart from the output of what runs in the VM.
    pub(super) fn say(&self, text: std::fmt::Arguments<'_>) {
        match &self.0 {
            Some(name) => eprintln!("outer VM of {name}: {text}"),
            None => eprintln!("outer VM: {text}"),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, OuterError> {
    fs::read(path).map_err(|source| OuterError::Read {
        path: path.to_owned(),
        source,
    })
}

fn mode(path: &Path) -> Result<u32, OuterError> {
    use std::os::unix::fs::PermissionsExt;
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.permissions().mode() & 0o777),
        Err(source) => Err(OuterError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The threads that read QEMU's pipes, and what they have seen.
struct Watch {
    qemu: Qemu,
    events: mpsc::Receiver<Event>,
    console: thread::JoinHandle<String>,
    output: thread::JoinHandle<()>,
    progress: Progress,
    /// When there was something from the VM last.
    alive: Alive,
}

/// When there was a sign of life last.
#[derive(Clone)]
struct Alive(Arc<Mutex<Instant>>);

impl Alive {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn mark(&self) {
        // An instant is whole after every statement.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn elapsed(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

impl Watch {
    fn over(
        qemu: Qemu,
        verbose: bool,
        how: Output,
        progress: Progress,
    ) -> Result<Self, OuterError> {
        let (sender, events) = mpsc::channel();
        let control = qemu.control.try_clone().map_err(OuterError::Qemu)?;
        let console = qemu.console.try_clone().map_err(OuterError::Qemu)?;
        let output = qemu.output.try_clone().map_err(OuterError::Qemu)?;
        let alive = Alive::new();
        let (events_alive, console_alive) = (alive.clone(), alive.clone());
        thread::spawn(move || forward_events(control, &sender, &events_alive));
        Ok(Self {
            qemu,
            events,
            alive,
            console: thread::spawn(move || collect_console(console, verbose, &console_alive)),
            progress,
            output: thread::spawn(move || match how {
                Output::Streamed => forward_output(output),
                Output::Lines => forward_lines(output),
                // Read, so that its writer never waits.
                Output::Hidden => drop(io::copy(&mut &output, &mut io::sink())),
            }),
        })
    }

    fn until_the_end(
        mut self,
        started: Instant,
        limit: Duration,
        silence: Duration,
    ) -> Result<u8, OuterError> {
        let mut stage = "its start";
        let mut status = None;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let elapsed = || format!("{:.1} s", started.elapsed().as_secs_f32());
            match self.events.recv_timeout(left.min(LOOK)) {
                Ok(Event::Alive) => {}
                Ok(Event::Up) => {
                    stage = "the boot of its kernel";
                    self.progress.say(format_args!("kernel up, {}", elapsed()));
                }
                Ok(Event::Ready) => {
                    stage = "the start of the program";
                    self.progress
                        .say(format_args!("program starts, {}", elapsed()));
                }
                Ok(Event::Exited(code)) => {
                    status = Some(Ok(code));
                    self.progress
                        .say(format_args!("program exited with {code}, {}", elapsed()));
                }
                Ok(Event::Signalled(signal)) => {
                    status = Some(Ok(128 + signal));
                    self.progress.say(format_args!(
                        "program killed by signal {signal}, {}",
                        elapsed()
                    ));
                }
                Ok(Event::Stuck(seconds)) => {
                    let registers = self.qemu.registers();
                    // The init ends the VM when the kernel has said it all.
                    drop(self.qemu.wait());
                    let console = self.console.join().unwrap_or_default();
                    return Err(OuterError::Stuck {
                        seconds,
                        registers,
                        console,
                    });
                }
                Ok(Event::Failed(text)) => status = Some(Err(OuterError::Init(text))),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.alive.elapsed() > silence => {
                    let silent = self.alive.elapsed();
                    let registers = self.qemu.registers();
                    drop(self.qemu);
                    let console = tail(&self.console.join().unwrap_or_default());
                    return Err(OuterError::Silent {
                        silent,
                        stage,
                        registers,
                        console,
                    });
                }
                Err(RecvTimeoutError::Timeout) if started.elapsed() < limit => {}
                Err(RecvTimeoutError::Timeout) => {
                    drop(self.qemu);
                    let console = tail(&self.console.join().unwrap_or_default());
                    return Err(OuterError::TimedOut { limit, console });
                }
            }
        }
        let qemu = self.qemu.wait().map_err(OuterError::Qemu)?;
        // A panic in a reading thread was printed by it; what it had read is lost.
        let _ = self.output.join();
        let console = self.console.join().unwrap_or_default();
        status.unwrap_or_else(|| {
            Err(OuterError::NoStatus {
                stage,
                qemu: qemu.to_string(),
                console: tail(&console),
            })
        })
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n")
}

fn forward_events(control: impl Read, events: &Sender<Event>, alive: &Alive) {
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        alive.mark();
        let event = line
            .parse()
            .unwrap_or_else(|error| Event::Failed(format!("{error}")));
        if events.send(event).is_err() {
            return;
        }
    }
}

fn collect_console(console: impl Read, verbose: bool, alive: &Alive) -> String {
    let mut text = String::new();
    let mut reader = BufReader::new(console);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        alive.mark();
        let shown = String::from_utf8_lossy(&line);
        if verbose {
            eprintln!("{}", shown.trim_end());
        }
        text.push_str(&shown);
        line.clear();
    }
    text
}

fn forward_lines(output: impl Read) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        // One call for a line, so that lines of other outer VMs come before or after it.
        let _ = io::stdout().lock().write_all(&line);
        line.clear();
    }
}

fn forward_output(mut output: impl Read) {
    let mut stdout = io::stdout();
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut bytes) {
        // A closed standard output is no reason to stop the test run.
        let _ = stdout
            .write_all(&bytes[..length])
            .and_then(|()| stdout.flush());
    }
}
