//! AMD's four legacy performance counters under the Zen 3 model: registers that hold what is written, or KVM's PMU where
//! `[cpu] pmu = true` asks for it.

use std::fs;

use guest_tests::guest::TinyKernel;
use iced_x86::code_asm::*;
use libtest_mimic::Failed;

use super::{expect, run};

/// `PerfEvtSel0` and `PerfCtr0` (AMD APM, volume 2, 13.2.1).
const SELECT: u32 = 0xc001_0000;
const COUNTER: u32 = 0xc001_0004;
/// Event C0h, retired instructions, of user and kernel, enabled (AMD APM, volume 2, figure 13-3; PPR, PMCx0C0).
const INSTRUCTIONS: u32 = 1 << 22 | 1 << 17 | 1 << 16 | 0xc0;
/// How many the guest executes at least.
const LOOP: u32 = 1000;

/// A kernel that tells whether the counter has counted a loop, from 5 on.
fn counts() -> Result<TinyKernel, Failed> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    let (mut again, mut stands_still, mut end) = (
        code.create_label(),
        code.create_label(),
        code.create_label(),
    );
    for (msr, value) in [(COUNTER, 5), (SELECT, INSTRUCTIONS)] {
        code.mov(ecx, msr)?;
        code.mov(eax, value)?;
        code.xor(edx, edx)?;
        code.wrmsr()?;
    }
    code.mov(ebx, LOOP)?;
    code.set_label(&mut again)?;
    code.dec(ebx)?;
    code.jnz(again)?;
    code.mov(ecx, COUNTER)?;
    code.rdmsr()?;
    code.cmp(eax, 5)?;
    code.je(stands_still)?;
    code.cmp(eax, LOOP as i32)?;
    let mut wrong = code.create_label();
    code.jb(wrong)?;
    kernel.print("it counts\n")?;
    kernel.0.jmp(end)?;
    kernel.0.set_label(&mut stands_still)?;
    kernel.print("it holds what was written\n")?;
    kernel.0.jmp(end)?;
    kernel.0.set_label(&mut wrong)?;
    kernel.print("neither\n")?;
    kernel.0.set_label(&mut end)?;
    // Where a label ends a program there must be an instruction.
    kernel.0.nop()?;
    kernel.power_off()?;
    Ok(kernel)
}

/// Whether this machine's KVM has counters, by its module's parameter, which KVM itself clears where the host has none
/// (arch/x86/kvm/pmu.h, `kvm_init_pmu_capability`).
fn kvm_has_counters() -> Result<bool, Failed> {
    let path = "/sys/module/kvm/parameters/enable_pmu";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(text.trim() == "Y")
}

pub(super) fn counters() -> Result<(), Failed> {
    let mut kernel = counts()?;
    let model = ["--model", "zen3-server"];
    let outcome = run(&mut kernel, "", &model)?;
    expect(&outcome, 0, "it holds what was written", &[])?;
    let outcome = run(&mut kernel, "[cpu]\npmu = true\n", &model)?;
    if kvm_has_counters()? {
        println!("this KVM has performance counters");
        return expect(&outcome, 0, "it counts", &[]);
    }
    println!("this KVM has no performance counters");
    let told = "this host's KVM has no performance counters for guests";
    expect(&outcome, 2, "", &[told, "cpu.pmu"])
}
