//! The product replaces the filter of a running VM: two vCPUs of a tiny kernel read MSRs meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_tests::micro::{KERNEL_ADDRESS, write_kernel};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ecx, qword_ptr, rax};
use libtest_mimic::Trial;
use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_filter::{Access, FilterSpec, MsrFilter, Rule, Verdict};
use msr_vmm::config::MemorySize;
use msr_vmm::{Config, Vm};

use super::support::{LSTAR, Outcome, trials};

const SWAPS: usize = 1000;
const VCPUS: usize = 2;
/// IA32_STAR to IA32_FMASK, which are 0 in KVM and which this kernel never writes.
const ALWAYS_DENIED: u32 = LSTAR - 1;
const EITHER: [u32; 2] = [LSTAR, LSTAR + 1];
const NEVER_DENIED: u32 = LSTAR + 2;
const FROM_BUS: u32 = 0x0bad_cafe;
/// How long the guest may take to get on.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::live_swap": a_running_vm_takes_a_thousand_new_filters)
}

/// Counts reads by vCPU and MSR. A write is how the guest tells that it read what nobody can have answered.
#[derive(Default)]
struct Witness {
    reads: [[AtomicU64; 4]; VCPUS],
    complaints: AtomicU64,
}

impl Witness {
    fn reads(&self, vcpu: usize, msr: u32) -> u64 {
        self.reads[vcpu][(msr - ALWAYS_DENIED) as usize].load(Ordering::Relaxed)
    }

    /// Waits until both vCPUs have read the MSR that always exits.
    fn progress(&self, swap: usize) -> Result<(), String> {
        let start = Instant::now();
        for vcpu in 0..VCPUS {
            let before = self.reads(vcpu, ALWAYS_DENIED);
            while self.reads(vcpu, ALWAYS_DENIED) == before {
                if start.elapsed() > TIMEOUT {
                    return Err(format!("vCPU {vcpu} hangs after {swap} swaps"));
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        Ok(())
    }
}

impl MsrDevice for Witness {
    fn name(&self) -> &str {
        "witness"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![MsrRange::new(ALWAYS_DENIED, NEVER_DENIED).expect("in order")]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let vcpu = access.cpu.id().0 as usize;
        self.reads[vcpu][(access.index - ALWAYS_DENIED) as usize].fetch_add(1, Ordering::Relaxed);
        Ok(FROM_BUS.into())
    }

    fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
        self.complaints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads the four MSRs for ever, in 16-bit or 64-bit code.
fn reader(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut complain) = (a.create_label(), a.create_label());
    a.set_label(&mut next)?;
    for msr in [ALWAYS_DENIED, EITHER[0], NEVER_DENIED, EITHER[1]] {
        let mut good = a.create_label();
        a.mov(ecx, msr)?;
        a.rdmsr()?;
        a.cmp(eax, FROM_BUS)?;
        a.je(good)?;
        if msr != ALWAYS_DENIED {
            a.test(eax, eax)?;
            a.je(good)?;
        }
        a.jmp(complain)?;
        a.set_label(&mut good)?;
        a.nop()?;
    }
    a.jmp(next)?;
    a.set_label(&mut complain)?;
    a.mov(ecx, ALWAYS_DENIED)?;
    a.wrmsr()?;
    a.jmp(next)
}

/// The boot CPU puts the 16-bit reader where the other CPU will start, starts it, and reads too.
fn kernel() -> Result<Vec<u8>, IcedError> {
    /// The page a start-up IPI names.
    const TRAMPOLINE: u64 = 0x8000;
    const SPURIOUS: u32 = 0xfee0_00f0;
    const ICR_LOW: u32 = 0xfee0_0300;
    const ICR_HIGH: u32 = 0xfee0_0310;
    let mut trampoline = CodeAssembler::new(16)?;
    reader(&mut trampoline)?;
    let trampoline = trampoline.assemble(0)?;

    let mut a = CodeAssembler::new(64)?;
    for (at, bytes) in (TRAMPOLINE..).step_by(8).zip(trampoline.chunks(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        a.mov(rax, u64::from_le_bytes(word))?;
        a.mov(qword_ptr(at), rax)?;
    }
    // The APIC is enabled, or KVM delivers none of its IPIs to a single APIC. Then INIT, and start-up at the
    // page's number, to the APIC with id 1 (Intel SDM vol. 3, section 11.6.1).
    for (register, value) in [
        (SPURIOUS, 0x1ff),
        (ICR_HIGH, 1 << 24),
        (ICR_LOW, 0x4500),
        (ICR_LOW, 0x4600 | (TRAMPOLINE >> 12) as u32),
    ] {
        a.mov(ecx, register)?;
        a.mov(eax, value)?;
        a.mov(dword_ptr(ecx), eax)?;
    }
    reader(&mut a)?;
    a.assemble(KERNEL_ADDRESS)
}

fn denying(msrs: [u32; 2]) -> MsrFilter {
    msrs.into_iter()
        .fold(FilterSpec::new(Verdict::Allow), |spec, msr| {
            spec.rule(Rule::new(msr, Access::all(), Verdict::Deny))
        })
        .compile()
        .expect("a few MSRs next to each other")
}

fn a_running_vm_takes_a_thousand_new_filters() -> Outcome {
    let file = Scratch::new();
    write_kernel(&file.0, &kernel()?)?;
    let mut config = Config::default();
    config.vm.kernel = Some(file.0.clone());
    config.vm.memory = MemorySize(64 << 20);
    config.vm.cpus = VCPUS as u32;
    let witness = Arc::new(Witness::default());
    let running = Vm::builder(config)
        .msr_device(witness.clone())
        .build()?
        .start()?;
    witness.progress(0)?;

    let filters = EITHER.map(|msr| denying([ALWAYS_DENIED, msr]));
    running.set_msr_filter(&filters[0])?;
    // The filter that comes with the device denies this too, but from now on none does.
    let never = || -> u64 {
        (0..VCPUS)
            .map(|vcpu| witness.reads(vcpu, NEVER_DENIED))
            .sum()
    };
    let never_before = never();
    let mut either_before = 0;
    for swap in 1..=SWAPS {
        running.set_msr_filter(&filters[swap % 2])?;
        if swap % 100 == 0 {
            witness.progress(swap)?;
            let either = (0..VCPUS)
                .flat_map(|vcpu| EITHER.map(|msr| witness.reads(vcpu, msr)))
                .sum();
            assert!(either > either_before, "no filter of the two is in force");
            either_before = either;
        }
    }
    witness.progress(SWAPS)?;
    assert_eq!(never(), never_before, "an access met neither filter");
    assert_eq!(witness.complaints.load(Ordering::Relaxed), 0);
    running.stop();
    let counts: Vec<u64> = (0..VCPUS)
        .map(|vcpu| witness.reads(vcpu, ALWAYS_DENIED))
        .collect();
    println!("live swap: {SWAPS} swaps, rounds of four reads by each vCPU: {counts:?}");
    Ok(())
}

/// A file that goes away with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("msr-vmm-live-swap-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about a file that is gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}
