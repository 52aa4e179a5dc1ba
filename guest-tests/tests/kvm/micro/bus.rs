//! Exits reach the bus: fallback, observer, and what a device may ask of its vCPU.

use std::sync::{Arc, Mutex};

use guest_tests::micro::{MicroVm, Op};
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_bus::{
    AnsweredBy, ExitReason, Fallback, GeneralProtection, MsrAccess, MsrBus, MsrDevice, MsrEvent,
    MsrObserver, MsrRange, Unclaimed,
};
use msr_filter::Access;

use super::support::{DEVICE, LSTAR, Notes, Outcome, UNKNOWN, denying, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::bus":
        the_fallback_answers_each_reason_as_it_is_told,
        the_observer_sees_each_access_once,
        a_device_sees_its_vcpu_as_it_stands_at_the_access,
        twenty_thousand_accesses_run_in_one_go,
    )
}

fn the_fallback_answers_each_reason_as_it_is_told() -> Outcome {
    let denied = 0x620;
    for (filter, unknown) in [
        (Unclaimed::Ignore, Unclaimed::Fault),
        (Unclaimed::Fault, Unclaimed::Ignore),
    ] {
        let fallback = Fallback {
            filter,
            unknown,
            ..Fallback::uniform(Unclaimed::Fault)
        };
        let mut vm = MicroVm::long_mode()
            .filter(denying(denied, Access::all()))
            .exits(MsrExitReason::all())
            .bus(MsrBus::builder().fallback(fallback).build()?)
            .build()?;
        let run = vm.run(&[
            Op::Read(denied),
            Op::Write(denied, 1),
            Op::Read(UNKNOWN),
            Op::Write(UNKNOWN, 1),
        ])?;
        assert_eq!(run.exits.len(), 4);
        for (number, answer) in [filter, filter, unknown, unknown].into_iter().enumerate() {
            let seen = run.seen[number];
            match answer {
                Unclaimed::Fault => assert!(seen.faulted(), "{number}"),
                Unclaimed::Ignore => assert!(!seen.faulted(), "{number}"),
            }
        }
        // What is ignored reads as 0.
        let ignored = if filter == Unclaimed::Ignore { 0 } else { 2 };
        assert_eq!(run.seen[ignored].value(), Some(0));
    }
    Ok(())
}

type Event = (
    Access,
    u32,
    ExitReason,
    Result<u64, GeneralProtection>,
    bool,
);

#[derive(Default)]
struct Recorder(Mutex<Vec<Event>>);

impl MsrObserver for Recorder {
    fn observe(&self, event: &MsrEvent<'_>) {
        let claimed = matches!(event.answered_by, AnsweredBy::Device(_));
        self.0.lock().unwrap().push((
            event.kind,
            event.access.index,
            event.access.reason,
            event.outcome,
            claimed,
        ));
    }
}

fn the_observer_sees_each_access_once() -> Outcome {
    let recorder = Arc::new(Recorder::default());
    let bus = MsrBus::builder()
        .device(Notes::answering(DEVICE, 5))
        .observer(recorder.clone())
        .build()?;
    let mut vm = MicroVm::long_mode()
        .filter(denying(DEVICE, Access::all()))
        .exits(MsrExitReason::Filter | MsrExitReason::Unknown)
        .bus(bus)
        .build()?;
    vm.run(&[
        Op::Read(DEVICE),
        Op::Write(DEVICE, 6),
        Op::Read(UNKNOWN),
        // Answered by KVM, so out of the bus's sight.
        Op::Read(LSTAR),
        Op::Read(DEVICE),
    ])?;
    assert_eq!(
        *recorder.0.lock().unwrap(),
        [
            (Access::READ, DEVICE, ExitReason::Filter, Ok(5), true),
            (Access::WRITE, DEVICE, ExitReason::Filter, Ok(6), true),
            (
                Access::READ,
                UNKNOWN,
                ExitReason::Unknown,
                Err(GeneralProtection),
                false
            ),
            (Access::READ, DEVICE, ExitReason::Filter, Ok(5), true),
        ]
    );
    Ok(())
}

/// Answers with what the vCPU has in KVM's own LSTAR, and a write sets it; the value written is also the
/// linear address of memory to be looked at.
#[derive(Default)]
struct Curious {
    memory: Mutex<Vec<u8>>,
}

impl MsrDevice for Curious {
    fn name(&self) -> &str {
        "curious"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![DEVICE.into()]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        access.cpu.kernel_msr(LSTAR).map_err(|_| GeneralProtection)
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let mut memory = vec![0; 16];
        access
            .cpu
            .read_guest(value, &mut memory)
            .map_err(|_| GeneralProtection)?;
        *self.memory.lock().unwrap() = memory;
        access
            .cpu
            .set_kernel_msr(LSTAR, value)
            .map_err(|_| GeneralProtection)
    }
}

fn a_device_sees_its_vcpu_as_it_stands_at_the_access() -> Outcome {
    let curious = Arc::new(Curious::default());
    let bus = MsrBus::builder().device(curious.clone()).build()?;
    let mut vm = MicroVm::long_mode()
        .filter(denying(DEVICE, Access::all()))
        .exits(MsrExitReason::Filter)
        .bus(bus)
        .build()?;
    let (rdmsr, unmapped) = (vm.code().rdmsr, 1 << 40);
    let run = vm.run(&[
        Op::Write(LSTAR, 0x7000),
        Op::Read(DEVICE),
        Op::Write(DEVICE, rdmsr),
        Op::Read(LSTAR),
        Op::Write(DEVICE, unmapped),
    ])?;
    assert_eq!(run.seen[1].value(), Some(0x7000));
    assert_eq!(run.seen[3].value(), Some(rdmsr));
    assert!(run.seen[4].faulted());
    // RDMSR is 0F 32.
    assert_eq!(curious.memory.lock().unwrap()[..2], [0x0f, 0x32]);
    Ok(())
}

fn twenty_thousand_accesses_run_in_one_go() -> Outcome {
    let notes = Notes::answering(DEVICE, 9);
    let mut vm = MicroVm::long_mode()
        .filter(denying(DEVICE, Access::READ))
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()?;
    // One in ten leaves the kernel.
    let ops: Vec<Op> = (0..20_000)
        .map(|n| Op::Read(if n % 10 == 0 { DEVICE } else { LSTAR }))
        .collect();
    let run = vm.run(&ops)?;
    assert_eq!(run.seen.len(), 20_000);
    assert_eq!(run.exits.len(), 2_000);
    assert!(
        run.seen
            .iter()
            .step_by(10)
            .all(|seen| seen.value() == Some(9))
    );
    Ok(())
}
