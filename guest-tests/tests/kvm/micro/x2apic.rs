//! KVM never filters the x2APIC's registers.

use guest_tests::micro::{MicroVm, Op};
use kvm_ioctls::{MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags};
use libtest_mimic::Trial;
use msr_bus::ExitReason;

use super::support::{Outcome, trials};

/// The APIC's version, its spurious-interrupt vector and its end-of-interrupt register (Intel SDM vol. 3,
/// table 12-6).
const VERSION: u32 = 0x803;
const SPURIOUS: u32 = 0x80f;
const EOI: u32 = 0x80b;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::x2apic":
        x2apic_registers_are_never_filtered,
        the_neighbours_of_the_x2apic_registers_are_filtered,
    )
}

/// Denies everything, by default and by a range over the x2APIC's registers and their neighbours. Not by way of
/// msr-filter, which leaves those registers out of its ranges.
fn deny_all(vm: &MicroVm) -> Result<(), kvm_ioctls::Error> {
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: 0x7c0,
        msr_count: 0x180,
        bitmap: &[0; 0x30],
    };
    vm.vm()
        .set_msr_filter(MsrFilterDefaultAction::DENY, &[range])
}

fn x2apic_registers_are_never_filtered() -> Outcome {
    let mut vm = MicroVm::long_mode()
        .x2apic()
        .exits(MsrExitReason::Filter)
        .build()?;
    deny_all(&vm)?;
    let run = vm.run(&[
        Op::Read(VERSION),
        Op::Write(SPURIOUS, 0x1ff),
        Op::Read(SPURIOUS),
        Op::Write(EOI, 0),
        // There is no such register: KVM answers with #GP itself, without an exit.
        Op::Read(0x800),
        Op::Read(0x8ff),
    ])?;
    assert_eq!(run.exits, []);
    // An integrated APIC has version 10H to 15H.
    let version = run.seen[0].value().map(|version| version & 0xff);
    assert!(
        version.is_some_and(|version| (0x10..=0x15).contains(&version)),
        "{version:x?}"
    );
    assert_eq!(run.seen[2].value(), Some(0x1ff));
    assert!(!run.seen[3].faulted());
    assert!(run.seen[4].faulted() && run.seen[5].faulted());
    Ok(())
}

fn the_neighbours_of_the_x2apic_registers_are_filtered() -> Outcome {
    let mut vm = MicroVm::long_mode()
        .x2apic()
        .exits(MsrExitReason::Filter)
        .build()?;
    deny_all(&vm)?;
    let run = vm.run(&[Op::Read(0x7ff), Op::Read(0x900), Op::Write(0x7ff, 0)])?;
    let exits: Vec<_> = run
        .exits
        .iter()
        .map(|a| (a.exit.index, a.exit.reason))
        .collect();
    assert_eq!(
        exits,
        [0x7ff, 0x900, 0x7ff].map(|index| (index, ExitReason::Filter))
    );
    Ok(())
}
