//! A VM of the product whose guest executes RDMSR for ever, in batches that a bench asks for and times.

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_tests::micro::{KERNEL_ADDRESS, write_kernel};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ecx};
use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_vmm::config::MemorySize;
use msr_vmm::{Config, RunningVm, Vm, VmBuilder};

/// What the guest reads, and what it gets.
pub(crate) const MSR: u32 = 0x611;
pub(crate) const VALUE: u64 = 0x1234_5678_9abc_def0;
/// Round trips in a batch.
pub(crate) const BATCH: u32 = 1000;

pub(crate) fn micros(batch: Duration) -> f64 {
    batch.as_secs_f64() * 1e6 / f64::from(BATCH)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Threads that are started later stay there as well.
pub(crate) fn stay_on_one_cpu() -> std::io::Result<()> {
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

/// The guest: RDMSR for ever.
pub(crate) fn guest(address: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.mov(ecx, MSR)?;
    a.set_label(&mut again)?;
    a.rdmsr()?;
    a.jmp(again)?;
    a.assemble(address)
}

/// The product's VM, held up between batches by its device.
pub(crate) struct Product {
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
    /// Starts the VM, with what `prepare` adds to it.
    pub(crate) fn new(
        prepare: impl FnOnce(VmBuilder) -> VmBuilder,
    ) -> Result<Self, Box<dyn Error>> {
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
        let builder = Vm::builder(config).msr_device(Arc::new(metronome));
        let running = prepare(builder).build()?.start()?;
        // The first access ends a batch of one.
        times.recv_timeout(Duration::from_secs(10))?;
        Ok(Self {
            go,
            times,
            _running: running,
            _kernel: kernel,
        })
    }

    /// The time of [`BATCH`] round trips.
    pub(crate) fn batch(&mut self) -> Result<Duration, Box<dyn Error>> {
        self.go.send(())?;
        Ok(self.times.recv_timeout(Duration::from_secs(60))?)
    }
}

/// A file that goes away with this value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("msr-vmm-bench-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about a file that is gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}
