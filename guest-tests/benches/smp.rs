//! Two vCPUs that hammer MSR devices, the same one or one each: answers per second, next to those of one vCPU.
//!
//! Nothing on the way of an access is shared, so that two should give twice as many as one; the goal is 1.9 times.
//! Rounds with one and with two alternate, and the best of each counts. A host that is busy otherwise has no CPU for the
//! second vCPU and misses the goal: the answers per second of CPU time, beside it, tell that from a device that costs
//! more with two.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::micro::{MicroError, MicroVcpu, MicroVm};

use guest_tests::{backend, pack};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use kvm_ioctls::MsrExitReason;
use msr_bus::{DeviceConfig, DeviceModel, MsrBus, Topology};
use msr_filter::{Access, FilterSpec, Rule, Verdict};
use vm_memory::{Bytes, GuestAddress};

const GOAL: f64 = 1.9;
/// The MSRs of the two devices.
const MSRS: [u32; 2] = [0xc001_1f00, 0xc001_1f01];
/// Where the guest's code is.
const CODE: u64 = 0x7000;

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let passed_on = if bench {
        vec!["--bench".to_owned()]
    } else {
        vec![]
    };
    if !msr_kvm::check::probe().can_run_micro_guests()
        && let Some(status) = backend::run_elsewhere(&passed_on, pack::basics)
    {
        return status;
    }
    let (rounds, round) = if bench { (15, 200) } else { (1, 20) };
    match measure(rounds, Duration::from_millis(round)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smp: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: u32, round: Duration) -> Result<(), Box<dyn Error>> {
    println!("MSR answers per ms, best of {rounds} rounds of {round:?}; WRMSR and RDMSR in turn:");
    println!("  vCPUs on           one      two    ratio    ratio by CPU time");
    for (what, msrs) in [("one device", [MSRS[0]; 2]), ("two devices", MSRS)] {
        let mut vcpus = vcpus(msrs)?;
        let (mut one, mut two) = (Rate::default(), Rate::default());
        for _ in 0..rounds {
            one = one.best(hammer(&mut vcpus[..1], round)?);
            two = two.best(hammer(&mut vcpus, round)?);
        }
        let (ratio, by_cpu) = (two.per_time / one.per_time, two.per_cpu / one.per_cpu);
        let verdict = if ratio >= GOAL { "met" } else { "missed" };
        println!(
            "  {what:<12} {:>9.1}{:>9.1}{ratio:>9.2}{by_cpu:>21.2}   (goal: {GOAL}, {verdict})",
            one.per_time, two.per_time
        );
    }
    Ok(())
}

/// Answers per millisecond.
#[derive(Clone, Copy, Default)]
struct Rate {
    per_time: f64,
    /// Per millisecond of a CPU, added up for all vCPUs.
    per_cpu: f64,
}

impl Rate {
    fn best(self, other: Self) -> Self {
        Self {
            per_time: self.per_time.max(other.per_time),
            per_cpu: self.per_cpu.max(other.per_cpu),
        }
    }
}

/// Two vCPUs, each to access one of `msrs` for ever, and two devices that answer them.
fn vcpus(msrs: [u32; 2]) -> Result<Vec<MicroVcpu>, Box<dyn Error>> {
    let filter = FilterSpec::new(Verdict::Allow)
        .rule(Rule::new(MSRS[0], Access::all(), Verdict::Deny))
        .rule(Rule::new(MSRS[1], Access::all(), Verdict::Deny))
        .compile()?;
    let mut vm = MicroVm::long_mode()
        .vcpus(2)
        .filter(filter)
        .exits(MsrExitReason::all())
        .bus(bus()?)
        .build()?;
    let code = guest()?;
    for (vcpu, msr) in vm.vcpus.iter().zip(msrs) {
        vcpu.memory().write_slice(&code, GuestAddress(CODE))?;
        let mut regs = vcpu.fd.get_regs()?;
        (regs.rip, regs.rflags, regs.rcx) = (CODE, 2, msr.into());
        vcpu.fd.set_regs(&regs)?;
    }
    Ok(std::mem::take(&mut vm.vcpus))
}

fn guest() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.wrmsr()?;
    a.rdmsr()?;
    a.jmp(again)?;
    a.assemble(CODE)
}

/// Has the vCPUs access MSRs at the same time.
fn hammer(vcpus: &mut [MicroVcpu], round: Duration) -> Result<Rate, MicroError> {
    let start = Barrier::new(vcpus.len());
    let rates: Vec<Result<Rate, MicroError>> = thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| scope.spawn(|| rate(vcpu, &start, round)))
            .collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|rate| rate.expect("no vCPU panics")).collect()
    });
    rates.into_iter().try_fold(Rate::default(), |sum, rate| {
        let rate = rate?;
        Ok(Rate {
            per_time: sum.per_time + rate.per_time,
            per_cpu: sum.per_cpu + rate.per_cpu,
        })
    })
}

fn rate(vcpu: &mut MicroVcpu, start: &Barrier, round: Duration) -> Result<Rate, MicroError> {
    start.wait();
    let (cpu, began) = (thread_cpu_time(), Instant::now());
    let mut answers = 0;
    while began.elapsed() < round {
        for _ in 0..16 {
            vcpu.answer_next()?;
        }
        answers += 16;
    }
    let per = |time: Duration| f64::from(answers) / (time.as_secs_f64() * 1e3);
    Ok(Rate {
        per_time: per(began.elapsed()),
        per_cpu: per(thread_cpu_time() - cpu),
    })
}

fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to write; every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// A bus with two registers that are the package's, so that both vCPUs write to the same place.
fn bus() -> Result<MsrBus, Box<dyn Error>> {
    let context = msr_bus::testing::context(Topology::flat(2));
    let mut bus = MsrBus::builder();
    for (name, msr) in ["a", "b"].into_iter().zip(MSRS) {
        let device: DeviceConfig = toml::from_str(&format!(
            "type = \"scratch\"\nname = \"{name}\"\nmsr = \"{msr:#x}\"\nscope = \"package\"\n"
        ))?;
        bus = bus.device(device.build(DeviceModel::all(), &context)?);
    }
    Ok(bus.build()?)
}
