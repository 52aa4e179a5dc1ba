//! The filter's verdict decides whether the kernel answers.

use guest_tests::micro::{MicroVm, Op, Seen};
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_bus::{ExitReason, VcpuId};
use msr_filter::{Access, FilterSpec, Rule, Verdict};

use super::support::{DEVICE, LSTAR, MODES, Noted, Notes, Outcome, denying, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::filter":
        an_allowed_access_is_answered_by_kvm,
        a_denied_access_exits_and_is_answered_by_the_bus,
        a_denied_access_faults_where_the_capability_is_not_enabled,
        a_denied_access_faults_where_its_reason_is_not_enabled,
        a_read_only_range_leaves_writes_to_the_default,
        a_write_only_range_leaves_reads_to_the_default,
        deny_by_default_denies_what_no_rule_allows,
    )
}

fn an_allowed_access_is_answered_by_kvm() -> Outcome {
    for mode in MODES {
        let mut vm = MicroVm::builder(mode)
            .filter(denying(LSTAR + 1, Access::all()))
            .exits(MsrExitReason::all())
            .build()?;
        let run = vm.run(&[Op::Write(LSTAR, 0x1122_3344_5566), Op::Read(LSTAR)])?;
        assert_eq!(run.exits, [], "{mode:?}");
        assert_eq!(run.seen[1].value(), Some(0x1122_3344_5566), "{mode:?}");
    }
    Ok(())
}

fn a_denied_access_exits_and_is_answered_by_the_bus() -> Outcome {
    for mode in MODES {
        let notes = Notes::answering(LSTAR, 0xfeed_face_dead_beef);
        let mut vm = MicroVm::builder(mode)
            .filter(denying(LSTAR, Access::all()))
            .exits(MsrExitReason::Filter)
            .bus(notes.bus())
            .build()?;
        let run = vm.run(&[Op::Write(LSTAR, 0x1122_3344_5566_7788), Op::Read(LSTAR)])?;
        let (reason, cpu) = (ExitReason::Filter, VcpuId(0));
        assert_eq!(
            notes.noted(),
            [
                Noted::Write(LSTAR, reason, cpu, 0x1122_3344_5566_7788),
                Noted::Read(LSTAR, reason, cpu),
            ]
        );
        assert_eq!(run.exits.len(), 2);
        assert_eq!(run.seen[1].value(), Some(0xfeed_face_dead_beef), "{mode:?}");
    }
    Ok(())
}

fn a_denied_access_faults_where_the_capability_is_not_enabled() -> Outcome {
    for mode in MODES {
        let mut vm = MicroVm::builder(mode)
            .filter(denying(LSTAR, Access::all()))
            .build()?;
        let run = vm.run(&[Op::Write(LSTAR, 1), Op::Read(LSTAR), Op::Read(LSTAR + 1)])?;
        assert_eq!(run.exits, []);
        let faulted: Vec<bool> = run.seen.iter().map(Seen::faulted).collect();
        assert_eq!(faulted, [true, true, false], "{mode:?}");
    }
    Ok(())
}

fn a_denied_access_faults_where_its_reason_is_not_enabled() -> Outcome {
    let mut vm = MicroVm::long_mode()
        .filter(denying(LSTAR, Access::all()))
        .exits(MsrExitReason::Unknown | MsrExitReason::Inval)
        .build()?;
    let run = vm.run(&[Op::Write(LSTAR, 1), Op::Read(LSTAR)])?;
    assert_eq!(run.exits, []);
    assert!(run.seen.iter().all(Seen::faulted), "{:?}", run.seen);
    Ok(())
}

fn a_read_only_range_leaves_writes_to_the_default() -> Outcome {
    let notes = Notes::answering(LSTAR, 42);
    let mut vm = MicroVm::long_mode()
        .filter(denying(LSTAR, Access::READ))
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()?;
    let run = vm.run(&[Op::Write(LSTAR, 0x5000), Op::Read(LSTAR)])?;
    assert_eq!(
        notes.noted(),
        [Noted::Read(LSTAR, ExitReason::Filter, VcpuId(0))]
    );
    assert!(!run.seen[0].faulted());
    assert_eq!(run.seen[1].value(), Some(42));
    Ok(())
}

fn a_write_only_range_leaves_reads_to_the_default() -> Outcome {
    let notes = Notes::answering(LSTAR, 42);
    let mut vm = MicroVm::long_mode()
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()?;
    vm.run(&[Op::Write(LSTAR, 0x5000)])?;
    denying(LSTAR, Access::WRITE).install(vm.vm())?;
    let run = vm.run(&[Op::Write(LSTAR, 0x6000), Op::Read(LSTAR)])?;
    assert_eq!(
        notes.noted(),
        [Noted::Write(LSTAR, ExitReason::Filter, VcpuId(0), 0x6000)]
    );
    // The write never reached KVM.
    assert_eq!(run.seen[1].value(), Some(0x5000));
    Ok(())
}

fn deny_by_default_denies_what_no_rule_allows() -> Outcome {
    let filter = FilterSpec::new(Verdict::Deny)
        .rule(Rule::new(LSTAR, Access::READ, Verdict::Allow))
        .compile()?;
    let mut vm = MicroVm::long_mode()
        .filter(filter)
        .exits(MsrExitReason::Filter)
        .build()?;
    let denied = [
        Op::Read(0),
        Op::Read(DEVICE),
        Op::Read(LSTAR - 1),
        Op::Write(LSTAR, 0),
        Op::Read(LSTAR + 1),
        Op::Read(u32::MAX),
    ];
    let mut ops = denied.to_vec();
    ops.insert(3, Op::Read(LSTAR));
    let run = vm.run(&ops)?;
    let exited: Vec<_> = run
        .exits
        .iter()
        .map(|a| (a.exit.kind, a.exit.index))
        .collect();
    let expected: Vec<_> = denied.iter().map(|op| (op.access(), op.index())).collect();
    assert_eq!(exited, expected);
    assert!(
        run.exits
            .iter()
            .all(|a| a.exit.reason == ExitReason::Filter)
    );
    assert!(!run.seen[3].faulted());
    Ok(())
}
