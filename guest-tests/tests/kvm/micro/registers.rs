//! What an answered access does to the guest's registers.

use guest_tests::micro::{Fault, MicroVm, Op, Outcome as Ended};
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_filter::Access;

use super::support::{DEVICE, MODES, Noted, Notes, Outcome, denying, trials};

const UPPER: u64 = 0xffff_ffff_0000_0000;
const VALUE: u64 = 0x8877_6655_f432_1001;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::registers":
        a_read_clears_the_upper_halves_of_rax_and_rdx,
        a_write_takes_its_value_from_edx_and_eax,
        an_error_is_gp_and_the_instruction_is_not_executed,
        an_error_in_real_mode_is_gp_too,
        immediate_exit_completes_an_answered_read,
        immediate_exit_completes_a_read_answered_with_an_error,
    )
}

fn vm_with(notes: &std::sync::Arc<Notes>) -> Result<MicroVm, guest_tests::micro::MicroError> {
    MicroVm::long_mode()
        .filter(denying(DEVICE, Access::all()))
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()
}

fn a_read_clears_the_upper_halves_of_rax_and_rdx() -> Outcome {
    let run = vm_with(&Notes::answering(DEVICE, VALUE))?.run(&[Op::Read(DEVICE)])?;
    let seen = run.seen[0];
    assert_eq!(seen.outcome, Ended::Completed);
    assert_eq!(seen.rax, VALUE & !UPPER);
    assert_eq!(seen.rdx, VALUE >> 32);
    assert_eq!(seen.rcx, u64::from(DEVICE));
    Ok(())
}

fn a_write_takes_its_value_from_edx_and_eax() -> Outcome {
    let notes = Notes::answering(DEVICE, 0);
    let run = vm_with(&notes)?.run(&[Op::Write(DEVICE, VALUE)])?;
    assert!(
        matches!(notes.noted()[..], [Noted::Write(DEVICE, _, _, VALUE)]),
        "{:x?}",
        notes.noted()
    );
    let seen = run.seen[0];
    assert_eq!(seen.outcome, Ended::Completed);
    assert_eq!(seen.rax, UPPER | VALUE);
    assert_eq!(seen.rdx, UPPER | VALUE >> 32);
    Ok(())
}

fn an_error_is_gp_and_the_instruction_is_not_executed() -> Outcome {
    let notes = Notes::faulting(DEVICE);
    let mut vm = vm_with(&notes)?;
    let run = vm.run(&[Op::Read(DEVICE), Op::Write(DEVICE, VALUE)])?;
    assert_eq!(notes.noted().len(), 2);
    let [read, write] = run.seen[..] else {
        panic!("{:?}", run.seen)
    };
    let fault = |rip| Ended::Fault(Fault { rip, error_code: 0 });
    assert_eq!(read.outcome, fault(vm.code().rdmsr));
    assert_eq!((read.rax, read.rdx), (u64::MAX, u64::MAX));
    assert_eq!(read.rcx, u64::from(DEVICE));
    assert_eq!(write.outcome, fault(vm.code().wrmsr));
    assert_eq!((write.rax, write.rdx), (UPPER | VALUE, UPPER | VALUE >> 32));
    Ok(())
}

fn an_error_in_real_mode_is_gp_too() -> Outcome {
    let notes = Notes::faulting(DEVICE);
    let mut vm = MicroVm::builder(MODES[0])
        .filter(denying(DEVICE, Access::all()))
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()?;
    let run = vm.run(&[Op::Read(DEVICE), Op::Write(DEVICE, VALUE)])?;
    let at = |rip| Ended::Fault(Fault { rip, error_code: 0 });
    assert_eq!(run.seen[0].outcome, at(vm.code().rdmsr));
    assert_eq!(run.seen[1].outcome, at(vm.code().wrmsr));
    assert_eq!(run.seen[0].rax, !UPPER);
    Ok(())
}

/// Before a vCPU's state is saved, a pending answer has to reach its registers.
fn immediate_exit_completes_an_answered_read() -> Outcome {
    let mut vm = vm_with(&Notes::answering(DEVICE, VALUE))?;
    let rdmsr = vm.code().rdmsr;
    let vcpu = &mut vm.vcpus[0];
    vcpu.load(&[Op::Read(DEVICE)])?;
    assert!(vcpu.answer_next()?.is_some());
    let before = vcpu.fd.get_regs()?;
    assert_eq!(before.rip, rdmsr);

    vcpu.fd.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.fd.run().unwrap_err().errno(), libc::EINTR);
    let after = vcpu.fd.get_regs()?;
    // RDMSR is two bytes long, and the next instruction has not run.
    assert_eq!(after.rip, rdmsr + 2);
    assert_eq!((after.rax, after.rdx), (VALUE & !UPPER, VALUE >> 32));

    vcpu.fd.set_kvm_immediate_exit(0);
    assert_eq!(vcpu.answer_next()?, None);
    assert_eq!(vcpu.seen(1)?[0].value(), Some(VALUE));
    Ok(())
}

fn immediate_exit_completes_a_read_answered_with_an_error() -> Outcome {
    let mut vm = vm_with(&Notes::faulting(DEVICE))?;
    let rdmsr = vm.code().rdmsr;
    let vcpu = &mut vm.vcpus[0];
    vcpu.load(&[Op::Read(DEVICE)])?;
    assert!(vcpu.answer_next()?.is_some());
    vcpu.fd.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.fd.run().unwrap_err().errno(), libc::EINTR);
    let after = vcpu.fd.get_regs()?;
    assert_eq!((after.rip, after.rax), (rdmsr, u64::MAX));
    let exception = vcpu.fd.get_vcpu_events()?.exception;
    assert_eq!((exception.nr, exception.has_error_code), (13, 1));
    assert!(exception.injected == 1 || exception.pending == 1);

    vcpu.fd.set_kvm_immediate_exit(0);
    assert_eq!(vcpu.answer_next()?, None);
    assert!(vcpu.seen(1)?[0].faulted());
    Ok(())
}
