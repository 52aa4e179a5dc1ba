//! Guests that cannot go on.

use guest_tests::guest::{Guest, Outcome, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("faults":
        a_triple_fault_is_told_with_the_registers,
        an_instruction_that_kvm_cannot_emulate_is_told_with_the_registers,
    )
}

/// What R15 holds at each of these faults.
const R15: u64 = 0x1122_3344_5566_7788;

fn kernel() -> Result<TinyKernel, Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.0.mov(r15, R15)?;
    Ok(kernel)
}

/// Status 1, and each of the words on standard error.
fn expect(outcome: &Outcome, words: &[&str]) -> Result<(), Failed> {
    let Outcome { status, stderr, .. } = outcome;
    if status.code() != Some(1) {
        return Err(format!("{status}\n{stderr}").into());
    }
    match words.iter().find(|word| !stderr.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("no `{word}` in\n{stderr}").into()),
    }
}

fn a_triple_fault_is_told_with_the_registers() -> Result<(), Failed> {
    let outcome = Guest::tiny(kernel()?.triple_fault()?)?.run()?;
    expect(&outcome, &["vCPU 0", "KVM_EXIT_SHUTDOWN: triple fault"])?;
    // Either the registers are the guest's, with UD2 at RIP, or KVM (on AMD) has reset the vCPU, and the
    // report says so.
    expect(
        &outcome,
        &["r15    1122334455667788", "bytes at rip: 0f 0b"],
    )
    .or_else(|_| {
        expect(
            &outcome,
            &["KVM has reset this vCPU", "rip 000000000000fff0"],
        )
    })
}

fn an_instruction_that_kvm_cannot_emulate_is_told_with_the_registers() -> Result<(), Failed> {
    // Mapped by the boot page tables, and beyond the guest's memory: there is no instruction to fetch.
    const NO_MEMORY: u64 = 512 << 20;
    let mut kernel = kernel()?;
    kernel.0.mov(rax, NO_MEMORY)?;
    kernel.0.jmp(rax)?;
    expect(
        &Guest::tiny(&mut kernel)?.run()?,
        &[
            "vCPU 0",
            "KVM_EXIT_INTERNAL_ERROR suberror 1",
            "KVM had to emulate an instruction and cannot",
            "rip 0000000020000000",
            "r15    1122334455667788",
            "bytes at rip: not mapped",
        ],
    )
}
