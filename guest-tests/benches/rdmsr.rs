//! What the product adds to an RDMSR exit: the round trip through its vCPU loop, bus and a device, next to
//! a bare loop around KVM_RUN that answers the same exit of the same guest.
//!
//! Both run in batches that alternate, on one CPU of the host, so that what else the host does hits both
//! alike. The result is the median of the pairs' ratios; the goal is at most 1.02.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use guest_tests::micro::{KERNEL_ADDRESS, MicroVcpu, MicroVm, write_kernel};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ecx};
use kvm_ioctls::{MsrExitReason, VcpuExit};
use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_filter::{Access, FilterSpec, Rule, Verdict};
use msr_vmm::config::MemorySize;
use msr_vmm::{Config, RunningVm, Vm};
use vm_memory::{Bytes, GuestAddress};

const MSR: u32 = 0x611;
const VALUE: u64 = 0x1234_5678_9abc_def0;
/// Round trips in a batch.
const BATCH: u32 = 1000;
const GOAL: f64 = 1.02;

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let batches = if std::env::args().any(|argument| argument == "--bench") {
        401
    } else {
        3
    };
    match compare(batches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdmsr: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(batches: usize) -> Result<(), Box<dyn Error>> {
    stay_on_one_cpu()?;
    let mut bare = Bare::new()?;
    let mut product = Product::new()?;
    // The first batches pay for what is set up when it is first used.
    bare.batch()?;
    product.batch()?;
    let mut pairs = Vec::new();
    for number in 0..batches {
        // Neither is always the one that follows the other.
        pairs.push(if number % 2 == 0 {
            (bare.batch()?, product.batch()?)
        } else {
            let time = product.batch()?;
            (bare.batch()?, time)
        });
    }
    // What slows the host down for a while slows both of a pair, so their ratio is steadier than that of
    // the medians.
    let ratio = median(
        pairs
            .iter()
            .map(|(bare, product)| product.as_secs_f64() / bare.as_secs_f64()),
    );
    let bare = median(pairs.iter().map(|(bare, _)| micros(*bare)));
    let product = median(pairs.iter().map(|(_, product)| micros(*product)));
    println!("RDMSR exit and back, median of {batches} pairs of batches of {BATCH}:");
    println!("  bare KVM_RUN loop         {bare:>9.3} us");
    println!("  vCPU loop, bus, device    {product:>9.3} us");
    let verdict = if ratio <= GOAL { "met" } else { "missed" };
    println!("  ratio {ratio:.4} (goal: at most {GOAL}, {verdict})");
    Ok(())
}

fn micros(batch: Duration) -> f64 {
    batch.as_secs_f64() * 1e6 / f64::from(BATCH)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Threads that are started later stay there as well.
fn stay_on_one_cpu() -> std::io::Result<()> {
    // SAFETY: a CPU set is plain bits, for which zero is valid, and its size is passed along.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let cpu = libc::sched_getcpu();
        libc::CPU_SET(usize::try_from(cpu).unwrap_or(0), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    match outcome {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The guest of both: RDMSR for ever.
fn guest(address: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.mov(ecx, MSR)?;
    a.set_label(&mut again)?;
    a.rdmsr()?;
    a.jmp(again)?;
    a.assemble(address)
}

/// The least that answers the exit.
struct Bare {
    // Behind the vCPU's file descriptors, nothing of the VM is needed but its life.
    vcpu: MicroVcpu,
    _vm: MicroVm,
}

impl Bare {
    fn new() -> Result<Self, Box<dyn Error>> {
        const CODE: u64 = 0x7000;
        let filter = FilterSpec::new(Verdict::Allow)
            .rule(Rule::new(MSR, Access::all(), Verdict::Deny))
            .compile()?;
        let mut vm = MicroVm::long_mode()
            .x2apic()
            .filter(filter)
            .exits(MsrExitReason::all())
            .build()?;
        let vcpu = vm.vcpus.remove(0);
        vcpu.memory()
            .write_slice(&guest(CODE)?, GuestAddress(CODE))?;
        let mut regs = vcpu.fd.get_regs()?;
        regs.rip = CODE;
        regs.rflags = 2;
        vcpu.fd.set_regs(&regs)?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// The time of [`BATCH`] round trips, from one exit's answer to the arrival of the last.
    fn batch(&mut self) -> Result<Duration, Box<dyn Error>> {
        let fd = &mut self.vcpu.fd;
        let start = Instant::now();
        let mut left = BATCH;
        while left > 0 {
            match fd.run() {
                Ok(VcpuExit::X86Rdmsr(exit)) => {
                    *exit.data = VALUE;
                    left -= 1;
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                exit => return Err(format!("unexpected {exit:?}").into()),
            }
        }
        Ok(start.elapsed())
    }
}

/// The product's VM, held up between batches by its device.
struct Product {
    go: Sender<()>,
    times: Receiver<Duration>,
    _running: RunningVm,
    _kernel: Scratch,
}

/// A register that counts: at the end of a batch the vCPU that reads it has to wait.
struct Metronome {
    left: AtomicU32,
    batch: Mutex<Batch>,
}

struct Batch {
    start: Instant,
    go: Receiver<()>,
    times: Sender<Duration>,
}

impl Metronome {
    #[cold]
    fn next_batch(&self) {
        let mut batch = self.batch.lock().expect("nobody panics with it");
        // Where the bench has ended, the VM is about to be stopped.
        let _ = batch.times.send(batch.start.elapsed());
        let _ = batch.go.recv();
        batch.start = Instant::now();
        self.left.store(BATCH, Ordering::Relaxed);
    }
}

impl MsrDevice for Metronome {
    fn name(&self) -> &str {
        "metronome"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![MSR.into()]
    }

    fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        // One vCPU, so that this needs no atomic subtraction.
        let left = self.left.load(Ordering::Relaxed) - 1;
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.next_batch();
        }
        Ok(VALUE)
    }

    fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
        Err(GeneralProtection)
    }
}

impl Product {
    fn new() -> Result<Self, Box<dyn Error>> {
        let kernel = Scratch::new();
        write_kernel(&kernel.0, &guest(KERNEL_ADDRESS)?)?;
        let mut config = Config::default();
        config.vm.kernel = Some(kernel.0.clone());
        config.vm.memory = MemorySize(64 << 20);
        let (go, gone) = channel();
        let (finished, times) = channel();
        let metronome = Metronome {
            left: AtomicU32::new(1),
            batch: Mutex::new(Batch {
                start: Instant::now(),
                go: gone,
                times: finished,
            }),
        };
        let running = Vm::builder(config)
            .msr_device(Arc::new(metronome))
            .build()?
            .start()?;
        // The first access ends a batch of one.
        times.recv_timeout(Duration::from_secs(10))?;
        Ok(Self {
            go,
            times,
            _running: running,
            _kernel: kernel,
        })
    }

    fn batch(&mut self) -> Result<Duration, Box<dyn Error>> {
        self.go.send(())?;
        Ok(self.times.recv_timeout(Duration::from_secs(60))?)
    }
}

/// A file that goes away with this value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("msr-vmm-bench-rdmsr-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about a file that is gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}
