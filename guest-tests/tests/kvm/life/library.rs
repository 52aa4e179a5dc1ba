//! A running VM in another program's hands: `msr_vmm::RunningVm` while every vCPU hammers MSRs.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_filter::{Access, FilterSpec, MsrFilter, Rule, Verdict};
use msr_vmm::config::{Config, MemorySize};
use msr_vmm::{RunningVm, ShutdownReason, Vm};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("library":
        each_access_is_answered_once_by_the_old_filter_or_the_new,
        a_paused_vm_stands_still_with_no_answer_lost_or_repeated,
        a_vm_that_is_dropped_leaves_no_thread,
        the_examples_boot_a_kernel,
    )
}

const VCPUS: usize = 2;
/// IA32_LSTAR, which KVM has and this guest does not use: who answers is the filter's to decide.
const EITHER: u32 = 0xc000_0082;
const FROM_BUS: u64 = 0x0bad_cafe_0bad_cafe;
/// After reset.
const FROM_KVM: u64 = 0;
/// Reads count up; what was read is written to the next.
const SEQUENCE: u32 = 0x3f00;
const ECHO: u32 = 0x3f01;
/// Where the guest writes what it read from `EITHER`.
const SEEN: u32 = 0x3f02;

/// What one vCPU's guest did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// How often it read `SEQUENCE`, and wrote it back.
    read: u64,
    echoed: u64,
    from_bus: u64,
    from_kvm: u64,
    wrong: Option<(u32, u64)>,
}

/// The device behind all of them.
#[derive(Default)]
struct Witness([Mutex<Tally>; VCPUS]);

impl Witness {
    fn tallies(&self) -> [Tally; VCPUS] {
        std::array::from_fn(|vcpu| *self.0[vcpu].lock().expect("no holder panics"))
    }
}

impl MsrDevice for Witness {
    fn name(&self) -> &str {
        "witness"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![
            MsrRange::from(EITHER),
            MsrRange::new(SEQUENCE, SEEN).expect("three MSRs in a row"),
        ]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let mut tally = self.0[access.cpu.id().0 as usize]
            .lock()
            .expect("no holder panics");
        match access.index {
            EITHER => Ok(FROM_BUS),
            SEQUENCE => {
                tally.read += 1;
                Ok(tally.read)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let mut tally = self.0[access.cpu.id().0 as usize]
            .lock()
            .expect("no holder panics");
        match (access.index, value) {
            (ECHO, value) if value == tally.read && value == tally.echoed + 1 => {
                tally.echoed = value;
            }
            (SEEN, FROM_BUS) => tally.from_bus += 1,
            (SEEN, FROM_KVM) => tally.from_kvm += 1,
            (index, value) => {
                tally.wrong = Some((index, value));
                return Err(GeneralProtection);
            }
        }
        Ok(())
    }
}

/// Reads `SEQUENCE` to `ECHO` and `EITHER` to `SEEN`, for ever. The same in real and long mode.
fn hammer(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = code.create_label();
    code.set_label(&mut again)?;
    for (from, to) in [(SEQUENCE, ECHO), (EITHER, SEEN)] {
        code.mov(ecx, from)?;
        code.rdmsr()?;
        code.mov(ecx, to)?;
        code.wrmsr()?;
    }
    code.jmp(again)
}

/// A kernel that wakes the other CPU and hammers on both.
fn kernel() -> Result<TinyKernel, IcedError> {
    /// In the first megabyte, where nothing of the boot data is; SIPI's vector is its page.
    const TRAMPOLINE: u32 = 0x1000;
    const APIC_BASE: u32 = 0x1b;
    const X2APIC_ENABLE: i32 = 1 << 10;
    const X2APIC_ICR: u32 = 0x830;
    const ALL_BUT_SELF: u32 = 0b11 << 18 | 1 << 14;
    const INIT: u32 = 0b101 << 8;
    const SIPI: u32 = 0b110 << 8;

    let mut real = CodeAssembler::new(16)?;
    hammer(&mut real)?;
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    for (at, byte) in (TRAMPOLINE..).zip(real.assemble(0)?) {
        code.mov(edi, at)?;
        code.mov(al, u32::from(byte))?;
        code.mov(byte_ptr(rdi), al)?;
    }
    code.mov(ecx, APIC_BASE)?;
    code.rdmsr()?;
    code.or(eax, X2APIC_ENABLE)?;
    code.wrmsr()?;
    code.mov(ecx, X2APIC_ICR)?;
    code.xor(edx, edx)?;
    for command in [INIT, SIPI | TRAMPOLINE >> 12] {
        code.mov(eax, ALL_BUT_SELF | command)?;
        code.wrmsr()?;
    }
    hammer(code)?;
    Ok(kernel)
}

fn start() -> Result<(RunningVm, Arc<Witness>), Failed> {
    let folder = Folder::new()?;
    let mut config = Config::default();
    config.vm.cpus = VCPUS as u32;
    config.vm.memory = MemorySize(32 << 20);
    config.vm.kernel = Some(folder.file("kernel", kernel()?.elf()?)?);
    let witness = Arc::new(Witness::default());
    let vm = Vm::builder(config).msr_device(witness.clone()).build()?;
    let running = vm.start()?;
    progress(&running, &witness)?;
    Ok((running, witness))
}

/// Waits until every vCPU has gone round its loop again.
fn progress(vm: &RunningVm, witness: &Witness) -> Result<(), Failed> {
    let before = witness.tallies();
    let start = Instant::now();
    loop {
        let now = witness.tallies();
        if let Some(wrong) = now.iter().find_map(|tally| tally.wrong) {
            return Err(format!("neither filter explains {wrong:x?}").into());
        }
        if before
            .iter()
            .zip(&now)
            .all(|(b, n)| n.echoed > b.echoed + 1)
        {
            return Ok(());
        }
        if vm.shutdown_event().read().is_ok() {
            return Err("the guest ended".into());
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("no progress from {before:?} to {now:?}").into());
        }
        thread::yield_now();
    }
}

fn stop(vm: RunningVm) -> Result<(), Failed> {
    vm.stop();
    match vm.wait() {
        ShutdownReason::Stopped => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn denying(msrs: &[MsrRange]) -> MsrFilter {
    msrs.iter()
        .fold(FilterSpec::new(Verdict::Allow), |spec, range| {
            spec.rule(Rule::new(*range, Access::all(), Verdict::Deny))
        })
        .compile()
        .expect("a few MSRs")
}

fn each_access_is_answered_once_by_the_old_filter_or_the_new() -> Result<(), Failed> {
    const SWAPS: usize = 1000;
    let (vm, witness) = start()?;
    let ours = MsrRange::new(SEQUENCE, SEEN)?;
    let filters = [denying(&[ours, EITHER.into()]), denying(&[ours])];
    let start = Instant::now();
    for swap in 1..=SWAPS {
        vm.set_msr_filter(&filters[swap % 2])?;
        // Both filters are met by every vCPU, which takes some swaps less close together.
        if swap % 100 < 2 {
            progress(&vm, &witness)?;
        }
    }
    let took = start.elapsed();
    progress(&vm, &witness)?;
    stop(vm)?;
    for (vcpu, tally) in witness.tallies().iter().enumerate() {
        println!("swap: vCPU {vcpu}: {SWAPS} swaps in {took:?}, {tally:?}");
        if tally.from_bus == 0 || tally.from_kvm == 0 || tally.wrong.is_some() {
            return Err(format!("vCPU {vcpu}: {tally:?}").into());
        }
        // Each echo is followed by one answer to the other read, except the last.
        if tally.echoed.abs_diff(tally.from_bus + tally.from_kvm) > 1 {
            return Err(format!("vCPU {vcpu}: {tally:?}").into());
        }
    }
    Ok(())
}

fn a_paused_vm_stands_still_with_no_answer_lost_or_repeated() -> Result<(), Failed> {
    let (vm, witness) = start()?;
    let still = || -> Result<(), Failed> {
        let before = witness.tallies().map(|tally| (tally.read, tally.echoed));
        thread::sleep(Duration::from_millis(2));
        let after = witness.tallies().map(|tally| (tally.read, tally.echoed));
        if before == after {
            Ok(())
        } else {
            Err(format!("while paused, {before:?} became {after:?}").into())
        }
    };
    for _ in 0..200 {
        vm.pause()?;
        still()?;
        vm.resume();
        progress(&vm, &witness)?;
    }
    // Pauses count, and neither the filter's replacement nor one resume too few ends one.
    vm.pause()?;
    vm.pause()?;
    vm.set_msr_filter(&denying(&[MsrRange::new(SEQUENCE, SEEN)?]))?;
    still()?;
    vm.resume();
    still()?;
    vm.resume();
    vm.resume();
    progress(&vm, &witness)?;
    // A paused VM can be stopped.
    vm.pause()?;
    stop(vm)
}

fn a_vm_that_is_dropped_leaves_no_thread() -> Result<(), Failed> {
    let threads = || -> Result<usize, Failed> { Ok(std::fs::read_dir("/proc/self/task")?.count()) };
    let files = || -> Result<usize, Failed> { Ok(std::fs::read_dir("/proc/self/fd")?.count()) };
    let before = (threads()?, files()?);
    for paused in [false, true] {
        let (vm, _) = start()?;
        if threads()? < before.0 + VCPUS {
            return Err("no threads to be left".into());
        }
        if paused {
            vm.pause()?;
        }
        drop(vm);
    }
    let after = (threads()?, files()?);
    if before == after {
        Ok(())
    } else {
        Err(format!("{before:?} threads and files became {after:?}").into())
    }
}

fn the_examples_boot_a_kernel() -> Result<(), Failed> {
    /// The register of the example's device.
    const COUNT: u32 = 0x3f00;
    let mut kernel = TinyKernel::new()?;
    for _ in 0..3 {
        kernel.0.mov(ecx, COUNT)?;
        kernel.0.rdmsr()?;
    }
    // The third read gives 3.
    kernel.0.add(al, i32::from(b'0'))?;
    kernel.0.mov(dx, 0x3f8)?;
    kernel.0.out(dx, al)?;
    let counts = kernel.print(" reads\n")?.power_off()?.elf()?;
    let says = TinyKernel::new()?.print("up\n")?.power_off()?.elf()?;
    let folder = Folder::new()?;
    for (example, elf, console, words) in [
        ("smallest", says, "up\n", "switched itself off"),
        (
            "msr_device",
            counts,
            "3 reads\n",
            "vCPU 0 read 0x3f00 3 times",
        ),
    ] {
        let kernel = folder.file(example, elf)?;
        let output = std::process::Command::new(assets::example(example)?)
            .arg(kernel)
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success()
            || output.stdout != console.as_bytes()
            || !stderr.contains(words)
        {
            return Err(format!("{example}: {output:?}").into());
        }
    }
    Ok(())
}
