//! MSRs that KVM does not know, and accesses it rejects, reach userspace only where that is asked for.

use guest_tests::micro::{MicroVm, Op, Seen};
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_bus::ExitReason;
use msr_filter::Access;

use super::support::{Notes, Outcome, UNKNOWN, denying, trials};

/// IA32_MCG_CTL, which a guest can read only where IA32_MCG_CAP.MCG_CTL_P is set: KVM does not unless told to.
const MCG_CTL: u32 = 0x17b;
/// IA32_EFER.
const EFER: u32 = 0xc000_0080;
/// A reserved bit.
const NO_EFER: u64 = 1 << 63;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::reasons":
        an_unknown_msr_exits_where_that_is_enabled,
        an_unknown_msr_faults_where_that_is_not_enabled,
        a_rejected_access_exits_where_that_is_enabled,
        a_rejected_access_faults_where_that_is_not_enabled,
        the_filter_is_asked_before_kvm_knows_the_msr,
    )
}

fn an_unknown_msr_exits_where_that_is_enabled() -> Outcome {
    let notes = Notes::answering(UNKNOWN, 0xabcd);
    let mut vm = MicroVm::long_mode()
        .exits(MsrExitReason::Unknown)
        .bus(notes.bus())
        .build()?;
    let run = vm.run(&[Op::Read(UNKNOWN), Op::Write(UNKNOWN, 7)])?;
    let reasons: Vec<_> = run.exits.iter().map(|a| a.exit.reason).collect();
    assert_eq!(reasons, [ExitReason::Unknown; 2]);
    assert_eq!(run.seen[0].value(), Some(0xabcd));
    assert!(!run.seen[1].faulted());
    Ok(())
}

fn an_unknown_msr_faults_where_that_is_not_enabled() -> Outcome {
    for reasons in [None, Some(MsrExitReason::Inval | MsrExitReason::Filter)] {
        let mut vm = MicroVm::long_mode();
        if let Some(reasons) = reasons {
            vm = vm.exits(reasons);
        }
        let run = vm
            .build()?
            .run(&[Op::Read(UNKNOWN), Op::Write(UNKNOWN, 7)])?;
        assert_eq!(run.exits, []);
        assert!(
            run.seen.iter().all(Seen::faulted),
            "{reasons:?}: {:?} (is kvm.ignore_msrs on?)",
            run.seen
        );
    }
    Ok(())
}

fn a_rejected_access_exits_where_that_is_enabled() -> Outcome {
    let mut vm = MicroVm::long_mode().exits(MsrExitReason::Inval).build()?;
    let run = vm.run(&[Op::Read(MCG_CTL), Op::Write(EFER, NO_EFER), Op::Read(EFER)])?;
    let exits: Vec<_> = run
        .exits
        .iter()
        .map(|a| (a.exit.kind, a.exit.index, a.exit.reason, a.exit.value))
        .collect();
    assert_eq!(
        exits,
        [
            (Access::READ, MCG_CTL, ExitReason::Invalid, 0),
            (Access::WRITE, EFER, ExitReason::Invalid, NO_EFER),
        ]
    );
    assert!(run.seen[0].faulted() && run.seen[1].faulted());
    assert!(!run.seen[2].faulted());
    Ok(())
}

fn a_rejected_access_faults_where_that_is_not_enabled() -> Outcome {
    let mut vm = MicroVm::long_mode()
        .exits(MsrExitReason::Unknown | MsrExitReason::Filter)
        .build()?;
    let run = vm.run(&[Op::Read(MCG_CTL), Op::Write(EFER, NO_EFER), Op::Read(EFER)])?;
    assert_eq!(run.exits, []);
    let faulted: Vec<bool> = run.seen.iter().map(Seen::faulted).collect();
    assert_eq!(faulted, [true, true, false]);
    Ok(())
}

fn the_filter_is_asked_before_kvm_knows_the_msr() -> Outcome {
    let mut vm = MicroVm::long_mode()
        .filter(denying(UNKNOWN, Access::all()))
        .exits(MsrExitReason::all())
        .build()?;
    let run = vm.run(&[Op::Read(UNKNOWN), Op::Read(UNKNOWN + 1)])?;
    let reasons: Vec<_> = run.exits.iter().map(|a| a.exit.reason).collect();
    assert_eq!(reasons, [ExitReason::Filter, ExitReason::Unknown]);
    Ok(())
}
