//! Snapshots: how soon a restored guest executes, how fast memory is saved, for how long the guest stands still, and what a clone
//! costs.
//!
//! The guests are kernels of a few instructions. They fill part of their memory; one then writes to its console for ever, so that
//! its first byte says that it executes, the other to part of its memory. They run on the host where the host's KVM runs micro
//! guests, or else in the outer VM. All processes are new; what they read is in the page cache.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use guest_tests::{assets, backend, pack};
use iced_x86::code_asm::*;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use msr_vmm::control_socket::{Client, Method, SnapshotParams, SnapshotResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// The sizes of memory, in MiB, that restoring must not depend on.
const SIZES: [u64; 2] = [256, 2048];
/// What the guest fills, in bytes: not zero, and so no hole.
const FILL_FROM: u64 = 64 * MIB;
const FILL: u64 = 128 * MIB;
/// What the second guest goes on writing to.
const WORKING_SET: u64 = 8 * MIB;
/// The goals: a restored guest's first byte, in ms, and the throughput of saving beside that of writing the same bytes.
const GOAL: f64 = 5.0;
const GOAL_THROUGHPUT: f64 = 0.9;
const CLONES: usize = 16;
/// What Firecracker's SPECIFICATION.md promises of its threads' memory, without the guest's, in KiB.
const FIRECRACKER_OVERHEAD: u64 = 5 * 1024;

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
    let chatting = folder.file(
        "chatting",
        filling(|kernel| kernel.chatter(true).map(drop))?,
    )?;
    let writing = folder.file("writing", filling(write_for_ever)?)?;
    for size in SIZES {
        let cold = Vm::booted(&chatting, size, folder.path("socket"))?;
        let cold_memory = cold.private_kib()?;
        let snapshot = folder.path("snapshot");
        throughput(&cold, size, rounds.min(9), &folder)?;
        cold.save(&snapshot)?;
        drop(cold);
        first_instruction(&snapshot, size, rounds)?;
        clones(&snapshot, size, cold_memory)?;
        fs::remove_dir_all(&snapshot)?;
        pause(&writing, size, rounds.min(9), &folder)?;
    }
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// The least and the median, in ms.
fn ms(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    (ms(times[0]), ms(times[times.len() / 2]))
}

/// Saves a guest that stands still, and writes as many bytes to another file, in turn.
fn throughput(vm: &Vm, size: u64, rounds: usize, folder: &Folder) -> Outcome<()> {
    let mut client = vm.client()?;
    client.call(&Method::Pause)?;
    let (mut saved, mut written, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let (result, took) = save(&mut client, &folder.path("saved"))?;
        bytes = result.memory;
        saved.push(took);
        fs::remove_dir_all(folder.path("saved"))?;
        written.push(write_as_many(&folder.path("copy"), bytes)?);
    }
    client.call(&Method::Resume)?;
    let ((saved_best, saved), (written_best, written)) = (ms(saved), ms(written));
    let ratio = written / saved;
    println!(
        "{size} MiB: {} MiB that are not zero saved and on the disk in {saved:.0} ms in the median of {rounds} (best {saved_best:.0}), \
         {:.0} MiB/s; as many bytes written and on the disk in {written:.0} ms (best {written_best:.0}): \
         {ratio:.2} of that throughput (goal: at least {GOAL_THROUGHPUT}, {})",
        bytes / MIB,
        bytes as f64 / MIB as f64 / saved * 1e3,
        verdict(ratio >= GOAL_THROUGHPUT),
    );
    Ok(())
}

/// From the exec of `msr-vmm restore` to the guest's first byte, beside what a bare VM takes here.
fn first_instruction(snapshot: &Path, size: u64, rounds: usize) -> Outcome<()> {
    let (mut restored, mut bare, mut exec) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        restored.push(Vm::restored(snapshot)?.first_byte);
        bare.push(bare_vm(size * MIB)?);
        exec.push(bare_process()?);
    }
    let ((best, median), (bare, bare_median)) = (ms(restored), ms(bare));
    let (exec, exec_median) = ms(exec);
    let floor = bare_median + exec_median;
    println!(
        "{size} MiB: from exec to a restored guest's first byte {best:.1} ms at best, {median:.1} ms in the median of {rounds} \
         (goal: at most {GOAL} ms, {}); of that a bare KVM guest takes {bare:.1} ms at best, {bare_median:.1} ms in the median, and a \
         process that prints its version {exec:.1} and {exec_median:.1} ms: {:.1} times as long as both together",
        verdict(median <= GOAL),
        median / floor
    );
    Ok(())
}

/// Memory of many VMs from one snapshot at once.
fn clones(snapshot: &Path, size: u64, cold: Memory) -> Outcome<()> {
    let mut clones = Vec::new();
    for _ in 1..CLONES {
        clones.push(Vm::restored(snapshot)?);
    }
    let before = available_kib()?;
    clones.push(Vm::restored(snapshot)?);
    let host = before.saturating_sub(available_kib()?);
    let last = clones.last().ok_or("no clones")?.private_kib()?;
    let Memory { guest, vmm } = last;
    println!(
        "{size} MiB: of {CLONES} clones at once the last has {} KiB of its own, {guest} KiB of guest memory and {vmm} KiB of the VMM, and \
         the host {host} KiB less; the VM that was booted had {} KiB and {} KiB; Firecracker promises at most {FIRECRACKER_OVERHEAD} KiB \
         beside guest memory ({})",
        guest + vmm,
        cold.guest,
        cold.vmm,
        verdict(vmm <= FIRECRACKER_OVERHEAD)
    );
    Ok(())
}

/// How long a guest stands still that goes on writing to part of its memory.
fn pause(kernel: &Path, size: u64, rounds: usize, folder: &Folder) -> Outcome<()> {
    let vm = Vm::booted(kernel, size, folder.path("socket"))?;
    let mut client = vm.client()?;
    let (mut beside, mut still) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let saved = folder.path("saved");
        beside.push(Duration::from_secs_f64(save(&mut client, &saved)?.0.pause));
        fs::remove_dir_all(&saved)?;
        client.call(&Method::Pause)?;
        still.push(Duration::from_secs_f64(save(&mut client, &saved)?.0.pause));
        client.call(&Method::Resume)?;
        fs::remove_dir_all(&saved)?;
    }
    let ((beside_best, beside), (still_best, still)) = (ms(beside), ms(still));
    println!(
        "{size} MiB: a guest that goes on writing {} of {} MiB stands still for {beside:.1} ms in the median of {rounds} \
         (best {beside_best:.1}) with dirty logging, and for {still:.1} ms (best {still_best:.1}) without",
        WORKING_SET / MIB,
        FILL / MIB,
    );
    Ok(())
}

fn save(client: &mut Client, folder: &Path) -> Outcome<(SnapshotResult, Duration)> {
    let start = Instant::now();
    let result = client.ask(&Method::Snapshot(SnapshotParams {
        folder: folder.to_owned(),
    }))?;
    Ok((result, start.elapsed()))
}

/// A kernel that fills memory, says so on its console, and then does `what`.
fn filling(what: fn(&mut TinyKernel) -> Result<(), IcedError>) -> Outcome<Vec<u8>> {
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
    what(kernel.print("x")?)?;
    Ok(kernel.elf()?)
}

/// Writes a count to each page of the working set.
fn write_for_ever(kernel: &mut TinyKernel) -> Result<(), IcedError> {
    let code = &mut kernel.0;
    let (mut all, mut again) = (code.create_label(), code.create_label());
    code.set_label(&mut all)?;
    code.mov(rdi, FILL_FROM)?;
    code.set_label(&mut again)?;
    code.inc(qword_ptr(rdi))?;
    code.add(rdi, 4096)?;
    code.cmp(rdi, (FILL_FROM + WORKING_SET) as i32)?;
    code.jb(again)?;
    code.jmp(all)
}

/// What no VMM can do without: a VM with as much memory and a vCPU, up to its first exit.
fn bare_vm(size: u64) -> Outcome<Duration> {
    const CODE: [u8; 3] = [0xe6, 0x80, 0xf4]; // out 0x80, al; hlt
    const ENTRY: u64 = 0x1000;
    let start = Instant::now();
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), size as usize)])?;
    memory.write_slice(&CODE, GuestAddress(ENTRY))?;
    let region = kvm_userspace_memory_region {
        memory_size: size,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the memory is unmapped before the VM is closed, but the vCPU, which alone uses it, is dropped before both.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut segments = vcpu.get_sregs()?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = ENTRY;
    vcpu.set_regs(&registers)?;
    match vcpu.run()? {
        VcpuExit::IoOut(0x80, _) => Ok(start.elapsed()),
        other => Err(format!("a bare guest ended in {other:?}").into()),
    }
}

/// From the exec of the same executable to what it prints, without KVM.
fn bare_process() -> Outcome<Duration> {
    let mut command = Command::new(assets::msr_vmm()?);
    command.arg("--version").stdin(Stdio::null());
    Ok(Vm::start(command, None)?.first_byte)
}

/// What is resident of a process and of no other, in KiB.
#[derive(Clone, Copy)]
struct Memory {
    guest: u64,
    vmm: u64,
}

/// A VM whose guest has written its first byte.
struct Vm {
    process: Child,
    socket: Option<PathBuf>,
    /// From exec.
    first_byte: Duration,
}

impl Vm {
    fn booted(kernel: &Path, size: u64, socket: PathBuf) -> Outcome<Self> {
        let mut command = Command::new(assets::msr_vmm()?);
        // The sandbox keeps the process from making files.
        command.args([
            "run",
            "--sandbox=off",
            "--memory",
            &size.to_string(),
            "--kernel",
        ]);
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

    fn client(&self) -> Outcome<Client> {
        Ok(Client::connect(self.socket.as_deref().ok_or("no socket")?)?)
    }

    /// Saves the guest, which stands still from then on.
    fn save(&self, folder: &Path) -> Outcome<()> {
        let mut client = self.client()?;
        client.call(&Method::Pause)?;
        save(&mut client, folder)?;
        Ok(())
    }

    /// What is private in each mapping. That of guest memory alone is kept out of core dumps (`dd`; proc(5)).
    fn private_kib(&self) -> Outcome<Memory> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.process.id()))?;
        let mut memory = Memory { guest: 0, vmm: 0 };
        let mut private = 0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Private_Clean:" | "Private_Dirty:") => {
                    private += words.next().ok_or("no number")?.parse::<u64>()?;
                }
                Some("VmFlags:") => {
                    let of_guest = words.any(|flag| flag == "dd");
                    *(if of_guest {
                        &mut memory.guest
                    } else {
                        &mut memory.vmm
                    }) += private;
                    private = 0;
                }
                _ => {}
            }
        }
        Ok(memory)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the host has left, in KiB.
fn available_kib() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.ok_or("no MemAvailable")?.parse()?)
}

/// How long it takes to write as many bytes that are not zero, as `dd bs=1M conv=fsync` does.
fn write_as_many(copy: &Path, bytes: u64) -> Outcome<Duration> {
    let piece = vec![0x5a; MIB as usize];
    let start = Instant::now();
    let mut file = File::create(copy)?;
    let mut left = bytes as usize;
    while left != 0 {
        let length = left.min(piece.len());
        file.write_all(&piece[..length])?;
        left -= length;
    }
    file.sync_all()?;
    let took = start.elapsed();
    fs::remove_file(copy)?;
    Ok(took)
}
