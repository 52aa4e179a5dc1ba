//! The QEMU process behind the outer VM: its command line, its pipes, and its certain end.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::choice::Choice;
use super::control::{CONTROL_PORT, EXIT_PORT};
use super::tsc;

/// A running QEMU. It does not outlive this value, nor the thread that spawned it.
pub(super) struct Qemu {
    child: Child,
    /// The kernel's console, and QEMU's own complaints.
    pub(super) console: PipeReader,
    /// What the job writes.
    pub(super) output: PipeReader,
    /// Lines of [`super::control::Event`].
    pub(super) control: PipeReader,
    monitor: UnixStream,
}

/// What the emulated machine has.
pub(super) struct Machine<'a> {
    /// The emulator, and how it does SVM.
    pub(super) choice: &'a Choice,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a [u8],
    pub(super) memory_mib: u32,
    /// Whether the kernel moves itself (KASLR).
    pub(super) kaslr: bool,
    /// Raw images, whose changes go with the machine.
    pub(super) disks: &'a [PathBuf],
}

/// Options that save time under emulation, where every retpoline and every probe of absent
/// hardware is dear. With `panic=-1` and `-no-reboot`, a kernel panic ends QEMU. The init brings up the
/// CPUs but the first (`src/bin/outer-init.rs`).
const KERNEL_PARAMETERS: &str = "console=ttyS0 panic=-1 mitigations=off tsc=reliable \
                                 no_timer_check random.trust_cpu=on i8042.noprobe maxcpus=1";

/// How many CPUs the outer VM has.
const CPUS: u32 = 2;

impl Qemu {
    pub(super) fn spawn(machine: &Machine<'_>) -> io::Result<Self> {
        let (console, console_writer) = io::pipe()?;
        let (output, output_writer) = io::pipe()?;
        let (control, control_writer) = io::pipe()?;
        let (monitor, monitor_of_qemu) = UnixStream::pair()?;
        let initramfs = memory_file(machine.initramfs)?;
        let inherited = [
            console_writer.as_raw_fd(),
            output_writer.as_raw_fd(),
            control_writer.as_raw_fd(),
            initramfs.as_raw_fd(),
            monitor_of_qemu.as_raw_fd(),
        ];

        let mut parameters = KERNEL_PARAMETERS.to_owned();
        if !machine.kaslr {
            parameters += " nokaslr";
        }
        if let Some(khz) = tsc::frequency_khz() {
            parameters += &format!(" tsc_early_khz={khz}");
        }
        let mut command = Command::new(&machine.choice.program);
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-accel", "tcg,thread=multi"])
            .args(["-cpu", machine.choice.paging.cpu()])
            .args([
                "-smp",
                &CPUS.to_string(),
                "-m",
                &machine.memory_mib.to_string(),
            ])
            .arg("-kernel")
            .arg(machine.kernel)
            .args(["-initrd", &descriptor_path(initramfs.as_raw_fd())])
            .args(["-append", &parameters]);
        for (number, disk) in machine.disks.iter().enumerate() {
            // In an option's value a comma is written twice.
            let file = disk.display().to_string().replace(',', ",,");
            let drive = format!("if=none,id=disk{number},format=raw,snapshot=on,file={file}");
            let device = format!("virtio-blk-pci,drive=disk{number}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        for (id, writer) in [
            ("console", &console_writer),
            ("output", &output_writer),
            ("control", &control_writer),
        ] {
            let path = descriptor_path(writer.as_raw_fd());
            command.args(["-chardev", &format!("file,id={id},path={path}")]);
        }
        let socket = format!("socket,id=monitor,fd={}", monitor_of_qemu.as_raw_fd());
        command
            .args(["-chardev", &socket, "-mon", "chardev=monitor"])
            .args(["-serial", "chardev:console", "-serial", "chardev:output"])
            .args([
                "-device",
                &format!("isa-debugcon,iobase={CONTROL_PORT:#x},chardev=control"),
            ])
            .args([
                "-device",
                &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(console_writer.try_clone()?);
        tie_to_this_thread(&mut command, inherited);

        // The command and the writing ends go out of scope here: only QEMU holds them from now on,
        // and its end is the end of each pipe.
        Ok(Self {
            child: command.spawn()?,
            console,
            output,
            control,
            monitor,
        })
    }

    /// The registers of the emulated CPUs, as QEMU's monitor prints them, or why it does not.
    pub(super) fn registers(&mut self) -> String {
        let mut answers = String::new();
        for command in ["info registers -a", "info lapic 0", "info lapic 1"] {
            answers += &self
                .ask_monitor(command)
                .unwrap_or_else(|error| format!("QEMU's monitor does not answer: {error}"));
        }
        answers
    }

    /// Has the monitor execute a command. Its answer has no end but the next prompt, so this waits for silence.
    fn ask_monitor(&mut self, command: &str) -> io::Result<String> {
        const SILENCE: Duration = Duration::from_secs(1);
        self.monitor.set_read_timeout(Some(SILENCE))?;
        self.monitor.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match self.monitor.read(&mut piece) {
                Ok(length @ 1..) => answer.extend_from_slice(&piece[..length]),
                Err(error) if answer.is_empty() => return Err(error),
                Ok(0) | Err(_) => break,
            }
        }
        let text = String::from_utf8_lossy(&answer);
        // Before it come a greeting and the echo, letter by letter with control sequences.
        let start = text.find("CPU#0").unwrap_or(0);
        Ok(text[start..].replace('\r', ""))
    }

    /// Waits for the end of QEMU.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn descriptor_path(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Lets the child inherit the descriptors, and has the kernel kill it when this thread ends in
/// whatever way: Ctrl-C, SIGTERM and SIGKILL of the parent included.
fn tie_to_this_thread<const N: usize>(command: &mut Command, inherited: [RawFd; N]) {
    let parent = std::process::id().cast_signed();
    let in_child = move || {
        for fd in inherited {
            // SAFETY: fcntl takes no pointers here, and is async-signal-safe.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: prctl takes no pointers here, and is async-signal-safe.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the call above.
        // SAFETY: getppid has no preconditions, and is async-signal-safe.
        if unsafe { libc::getppid() } != parent {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe calls only and allocates nothing; constructing
    // an io::Error from an OS error or a kind does not allocate.
    unsafe { command.pre_exec(in_child) };
}

/// An anonymous file in memory: nothing is left behind, whatever ends this process.
fn memory_file(contents: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a valid C string.
    let fd = unsafe { libc::memfd_create(c"initramfs".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fd was just made and belongs to nothing else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(contents)?;
    Ok(file)
}
