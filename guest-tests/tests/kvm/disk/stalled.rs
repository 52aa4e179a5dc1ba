//! A disk whose host does not answer: the disk's thread is held where it enters the system call that writes, as a file system that is
//! frozen or a server that is gone would hold it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{BlockRequest, Folder, Guest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::Failed;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::life::control::{ctl, ensure, said};

/// What the VMM waits for a host that does not answer.
const LIMIT: Duration = Duration::from_secs(5);
/// What a busy machine may add.
const MORE: Duration = Duration::from_secs(10);
const GO: u32 = 0x3f00;
/// `orig_rax` in `struct user_regs_struct` (arch/x86/include/asm/user_64.h), in bytes.
const ORIG_RAX: usize = 15 * 8;

/// The disk's thread, held at its next write. Dropped, it goes on.
struct Held(Pid);

impl Held {
    /// Takes hold of the thread; `write` has the guest write then.
    fn at_its_write(vmm: u32, write: impl FnOnce() -> Result<(), Failed>) -> Result<Self, Failed> {
        let thread = thread_named(vmm, "virtio-0")?;
        ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD)?;
        let held = Self(thread);
        ptrace::interrupt(thread)?;
        wait(thread)?;
        write()?;
        // Of each call, its entry and its end.
        while ptrace::read_user(thread, ORIG_RAX as _)? != libc::SYS_pwritev {
            ptrace::syscall(thread, None)?;
            wait(thread)?;
        }
        Ok(held)
    }

    /// Waits for the end of the thread, which is its tracer's to know of first: before that its process is not gone.
    fn ends(self) -> Result<(), Failed> {
        let begin = Instant::now();
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                    return Ok(());
                }
                other => ensure(begin.elapsed() < LIMIT + MORE, other)?,
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails where the process has ended.
        let _ = ptrace::detach(self.0, None::<Signal>);
    }
}

fn wait(thread: Pid) -> Result<WaitStatus, Errno> {
    waitpid(thread, Some(WaitPidFlag::__WALL))
}

fn thread_named(process: u32, name: &str) -> Result<Pid, Failed> {
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.trim_end() == name {
            let id = task.file_name().to_string_lossy().parse()?;
            return Ok(Pid::from_raw(id));
        }
    }
    Err(format!("there is no thread {name}").into())
}

/// A guest that writes twice to its disk, each time that it is told to, and asks for a flush after that.
fn kernel() -> Result<TinyKernel, Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.print("up\n")?.start_block()?;
    for (number, value) in [(1, 1), (2, 2)] {
        let mut again = kernel.0.create_label();
        kernel.0.set_label(&mut again)?;
        kernel.0.mov(ecx, GO)?;
        kernel.0.rdmsr()?;
        kernel.0.cmp(eax, value)?;
        kernel.0.jne(again)?;
        kernel.block(number, BlockRequest::Write, 0)?;
        kernel.print(" written\n")?;
    }
    kernel.power_off()?;
    Ok(kernel)
}

fn tell(socket: &Path, value: &str) -> Result<(), Failed> {
    said(socket, &["write", "0x3f00", value]).map(drop)
}

pub(super) fn a_stalled_disk_holds_up_neither_pause_nor_snapshot_nor_stop() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let image = folder.file("image", [0; 1 << 16])?;
    let socket = folder.path("socket");
    let snapshots = folder.path("snapshots");
    fs::create_dir(&snapshots)?;
    let guest = Guest::tiny(&mut kernel()?)?;
    let config = "[[msr.device]]\ntype = \"scratch\"\nmsr = \"0x3f00\"\n";
    let config = guest.folder().file("config.toml", config)?;
    let mut guest = guest
        .option("--config", config)
        .option("--disk", &image)
        .option("--control", &socket)
        .option("--sandbox", "on")
        .option("--snapshots", &snapshots)
        .start()?;
    guest.wait_for("up")?;

    let held = Held::at_its_write(guest.pid(), || tell(&socket, "1"))?;
    let snapshot = snapshots.join("snapshot").display().to_string();
    for command in [["pause"].as_slice(), &["snapshot", &snapshot]] {
        let begin = Instant::now();
        let output = ctl(&socket, command)?;
        let (took, words) = (begin.elapsed(), String::from_utf8_lossy(&output.stderr));
        println!("{command:?}: {took:.1?}: {}", words.trim_end());
        let expected = format!(
            "disk {}: the host has not finished a write for ",
            image.display()
        );
        ensure(
            !output.status.success() && words.contains(&expected),
            &output,
        )?;
        ensure((LIMIT..LIMIT + MORE).contains(&took), took)?;
    }
    ensure(!Path::new(&snapshot).exists(), "there is half a snapshot")?;
    ensure(
        said(&socket, &["status"])?.contains("running"),
        "not as it was",
    )?;
    drop(held);
    guest.wait_for("0 written")?;
    // As if nothing had been.
    said(&socket, &["pause"])?;
    said(&socket, &["resume"])?;

    let held = Held::at_its_write(guest.pid(), || tell(&socket, "2"))?;
    let begin = Instant::now();
    said(&socket, &["stop"])?;
    held.ends()?;
    let outcome = guest.wait()?;
    let took = begin.elapsed();
    println!("stop: {took:.1?}: {}", outcome.stderr.trim_end());
    ensure(took < LIMIT + MORE, took)?;
    // It was stopped, and did not switch itself off.
    ensure(outcome.status.code() == Some(1), outcome.status)?;
    ensure(
        outcome
            .stderr
            .contains("the thread virtio-0 is left behind"),
        &outcome.stderr,
    )
}
