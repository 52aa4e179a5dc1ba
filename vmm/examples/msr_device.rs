//! A VM with an MSR device of its own: each vCPU reads how often it has read the register. Nothing else is
//! to be configured: KVM's filter follows from what the device claims.
//!
//! ```text
//! cargo run --example msr_device -- KERNEL [INITRD]
//! ```
//!
//! In the guest, with the `msr` driver loaded: `rdmsr 0x3f00`.

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_vmm::{Config, ShutdownReason, Vm};

/// An index that no processor has.
const COUNT: u32 = 0x3f00;

/// A read-only register for each vCPU.
struct Counter {
    reads: Vec<AtomicU64>,
}

impl MsrDevice for Counter {
    fn name(&self) -> &str {
        "counter"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![MsrRange::from(COUNT)]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        // A device is called by all vCPUs at once: atomics, not a lock, where they do.
        let reads = &self.reads[access.cpu.id().0 as usize];
        Ok(reads.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
        Err(GeneralProtection)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msr_device: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut config = Config::default();
    config.vm.cpus = 2;
    config.vm.kernel = arguments.next().map(Into::into);
    config.vm.initrd = arguments.next().map(Into::into);

    let counter = Arc::new(Counter {
        reads: (0..config.vm.cpus).map(|_| AtomicU64::new(0)).collect(),
    });
    let vm = Vm::builder(config)
        .msr_device(counter.clone())
        .console_output(io::stdout())
        .build()?
        .start()?;
    let reason = vm.wait();
    for (vcpu, reads) in counter.reads.iter().enumerate() {
        eprintln!("vCPU {vcpu} read {COUNT:#x} {reads:?} times");
    }
    match reason {
        ShutdownReason::Fault(fault) => Err(fault.to_string().into()),
        _ => Ok(()),
    }
}
