//! What the product adds to an RDMSR exit: the round trip through its vCPU loop, bus and a device, next to
//! a bare loop around KVM_RUN that answers the same exit of the same guest.
//!
//! Both run in batches that alternate, on one CPU of the host, so that what else the host does hits both
//! alike. The result is the median of the pairs' ratios; the goal is at most 1.02.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_tests::micro::{MicroVcpu, MicroVm};
use kvm_ioctls::{MsrExitReason, VcpuExit};
use msr_filter::{Access, FilterSpec, Rule, Verdict};
use vm_memory::{Bytes, GuestAddress};

mod product;

use product::{BATCH, MSR, Product, VALUE, guest, median, micros, stay_on_one_cpu};

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
    let mut product = Product::new(|builder| builder)?;
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
