//! Boots the outer VM, runs one program in it, and returns that program's exit status.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::choice::{self, Choice, Reason};
use super::control::{JOB_PATH, Job};
use super::cpio::Archive;
use super::error::OuterError;
use super::lost_interrupt::lost_interrupt;
use super::qemu::{Machine, Qemu};
use super::trial;
use super::watch::{Output, Progress, Watch};
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

#[derive(Debug)]
enum Contents {
    Of(PathBuf),
    Bytes(Vec<u8>),
}

/// The modules that make a KVM of the outer VM, without their dependencies.
const KVM_MODULES: &[&str] = &["kvm-amd"];

/// The modules that disks need, without their dependencies.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// How long the outer VM may give no sign of life: its init sends one every
/// [`HEARTBEAT`](super::control::HEARTBEAT), and before there is one the kernel prints.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a program may leave the CPUs next to idle: longer than the tests wait for a guest that does nothing, so that the
/// test tells of it and the others go on.
const IDLE_LIMIT: Duration = Duration::from_secs(5 * 60);

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
                idle_limit: IDLE_LIMIT,
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

    /// Sets how long the program may leave the CPUs next to idle before it counts as waiting for something that never comes.
    pub fn idle_limit(&mut self, limit: Duration) -> &mut Self {
        self.job.idle_limit = limit;
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
        let run = |progress: &Progress| {
            let qemu = Qemu::spawn(&machine).map_err(OuterError::Qemu)?;
            let watch = Watch::over(qemu, self.verbose, self.output, progress)?;
            watch.until_the_end(started, self.limit, self.silence)
        };
        match run(&progress) {
            Err(OuterError::Silent { registers, .. }) if lost_interrupt(&registers).is_some() => {
                let cpu = lost_interrupt(&registers).unwrap_or_default();
                progress.say(format_args!(
                    "CPU {cpu} is halted with an interrupt pending that would end the halt: QEMU has lost it, and all begins anew"
                ));
                run(&progress)
            }
            result => result,
        }
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
