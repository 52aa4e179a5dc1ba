//! Snapshots: how soon a restored guest executes, how fast memory is saved, and what a clone costs.
//!
//! The guest is a kernel of a few instructions that fills part of its memory and then writes to its console for ever, so that
//! its first byte says that it executes. It runs on the host where the host's KVM runs micro guests, or else in the outer VM.
//! All processes are new; what they read is in the page cache.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use guest_tests::{assets, backend, pack};
use iced_x86::code_asm::*;
use msr_vmm::control_socket::{Client, Method, SnapshotParams, SnapshotResult};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// The sizes of memory, in MiB, that restoring must not depend on.
const SIZES: [u64; 2] = [256, 2048];
/// What the guest fills, in bytes: not zero, and so no hole.
const FILL_FROM: u64 = 64 * MIB;
const FILL: u64 = 128 * MIB;
/// The goals: a restored guest's first byte, in ms, and the throughput of saving beside that of writing the same bytes.
const GOAL: f64 = 5.0;
const GOAL_THROUGHPUT: f64 = 0.9;
const CLONES: usize = 16;

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let bench = std::env::args().any(|argument| argument == "--bench");
    if !backend::in_outer_vm() && !msr_kvm::check::probe().can_run_micro_guests() {
        let passed_on = if bench {
            vec!["--bench".to_owned()]
        } else {
            vec![]
        };
        if let Some(status) = backend::run_elsewhere(&passed_on, pack::basics) {
            return status;
        }
    }
    match measure(if bench { 25 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snapshot: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize) -> Outcome<()> {
    let folder = Folder::new()?;
    let kernel = folder.file("kernel", filling()?.elf()?)?;
    for size in SIZES {
        let snapshot = folder.path(&format!("snapshot-{size}"));
        let cold = Vm::booted(&kernel, size, folder.path("socket"))?;
        let cold_kib = cold.private_kib()?;
        let saved = cold.save(&snapshot)?;
        drop(cold);
        let written = write_the_same(&snapshot.join("memory"), &folder.path("copy"))?;
        let bytes = saved.memory as f64;
        let ratio = written.as_secs_f64() / saved.took.as_secs_f64();
        println!(
            "{size} MiB: {} MiB not zero saved in {:.0} ms, {:.0} MiB/s, during which the guest stands still; writing the \
             same bytes takes {:.0} ms: {ratio:.2} of its throughput (goal: at least {GOAL_THROUGHPUT}, {})",
            saved.memory / MIB,
            saved.took.as_secs_f64() * 1e3,
            bytes / MIB as f64 / saved.took.as_secs_f64(),
            written.as_secs_f64() * 1e3,
            verdict(ratio >= GOAL_THROUGHPUT),
        );
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(Vm::restored(&snapshot)?.first_byte.as_secs_f64() * 1e3);
        }
        times.sort_unstable_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        println!(
            "{size} MiB: from exec to a restored guest's first byte {best:.1} ms at best, {median:.1} ms in the median of \
             {rounds} (goal: at most {GOAL} ms, {})",
            verdict(best <= GOAL)
        );
        let clones: Vec<Vm> = (0..CLONES)
            .map(|_| Vm::restored(&snapshot))
            .collect::<Outcome<_>>()?;
        let last = clones.last().ok_or("no clones")?.private_kib()?;
        println!(
            "{size} MiB: of {CLONES} clones at once the last has {last} KiB of its own; the VM that was booted had {cold_kib} KiB"
        );
        drop(clones);
        fs::remove_dir_all(&snapshot)?;
    }
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Fills memory, and then writes to the console for ever.
fn filling() -> Outcome<TinyKernel> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    let mut again = code.create_label();
    code.mov(rdi, FILL_FROM)?;
    code.mov(rax, 0x5a5a_5a5a_5a5a_5a5au64)?;
    code.set_label(&mut again)?;
    code.mov(qword_ptr(rdi), rax)?;
    code.add(rdi, 8)?;
    code.cmp(rdi, (FILL_FROM + FILL) as i32)?;
    code.jb(again)?;
    kernel.chatter(true)?;
    Ok(kernel)
}

/// A VM whose guest has written its first byte.
struct Vm {
    process: Child,
    socket: Option<PathBuf>,
    /// From exec.
    first_byte: Duration,
}

struct Saved {
    memory: u64,
    took: Duration,
}

impl Vm {
    fn booted(kernel: &Path, size: u64, socket: PathBuf) -> Outcome<Self> {
        let mut command = Command::new(assets::msr_vmm()?);
        command.args(["run", "--memory", &size.to_string(), "--kernel"]);
        command.arg(kernel).arg("--control").arg(&socket);
        Self::start(command, Some(socket))
    }

    fn restored(snapshot: &Path) -> Outcome<Self> {
        let mut command = Command::new(assets::msr_vmm()?);
        command.arg("restore").arg(snapshot);
        Self::start(command, None)
    }

    fn start(mut command: Command, socket: Option<PathBuf>) -> Outcome<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut vm = Self {
            process: command.spawn()?,
            socket,
            first_byte: Duration::ZERO,
        };
        let console = vm.process.stdout.as_mut().ok_or("no console")?;
        console.read_exact(&mut [0])?;
        vm.first_byte = start.elapsed();
        Ok(vm)
    }

    /// Saves the guest, which stands still from then on.
    fn save(&self, folder: &Path) -> Outcome<Saved> {
        let socket = self.socket.as_deref().ok_or("no socket")?;
        let mut client = Client::connect(socket)?;
        client.call(&Method::Pause)?;
        let start = Instant::now();
        let result: SnapshotResult = client.ask(&Method::Snapshot(SnapshotParams {
            folder: folder.to_owned(),
        }))?;
        Ok(Saved {
            memory: result.memory,
            took: start.elapsed(),
        })
    }

    /// What is resident of the process and of no other, guest memory included.
    fn private_kib(&self) -> Outcome<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let field = |name: &str| -> Outcome<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            Ok(value.ok_or("no such field")?.parse()?)
        };
        Ok(field("Private_Clean:")? + field("Private_Dirty:")?)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How long it takes to write what `memory` holds beside its holes to another file, as `dd bs=1M conv=fsync` does.
fn write_the_same(memory: &Path, copy: &Path) -> Outcome<Duration> {
    let bytes = fs::read(memory)?;
    let data: Vec<&[u8]> = bytes
        .chunks(MIB as usize)
        .filter(|piece| piece.iter().any(|byte| *byte != 0))
        .collect();
    let start = Instant::now();
    let mut file = File::create(copy)?;
    for piece in data {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    let took = start.elapsed();
    fs::remove_file(copy)?;
    Ok(took)
}
