//! The MSRs of a guest are saved and go on in another VM.

use std::thread;
use std::time::Duration;

use guest_tests::micro::{MicroVm, Op};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_lapic_state};
use kvm_ioctls::Kvm;
use libtest_mimic::Trial;
use msr_kvm::state::{MsrState, MsrStatePlan, RestoreMsrsError, SavedMsr, TscOffsets};

use super::support::{LSTAR, Outcome, UNKNOWN, trials};

const TSC: u32 = 0x10;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
/// The LVT entry of the timer, in x2APIC mode.
const X2APIC_LVT_TIMER: u32 = 0x832;
const LVT_TSC_DEADLINE: u64 = 0b10 << 17 | 0xec;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::msr_state":
        what_one_guest_wrote_another_reads,
        the_tsc_goes_on_where_it_was,
        a_deadline_survives_with_the_local_apic_and_is_refused_without,
        a_timer_without_a_deadline_fires_once,
        an_msr_that_was_not_planned_is_refused_before_anything_changes,
        a_value_that_kvm_refuses_is_named_with_what_the_guest_would_see,
        what_is_kept_elsewhere_is_left_out,
        without_cpuid_there_is_no_plan,
        vcpus_keep_the_distance_of_their_tscs,
        the_example_saves_restores_and_names_what_it_cannot_restore,
    )
}

fn plan(vm: &MicroVm) -> Result<MsrStatePlan, Box<dyn std::error::Error>> {
    Ok(MsrStatePlan::new(&Kvm::new()?, &vm.vcpus[0].fd, |_| false)?)
}

fn what_one_guest_wrote_another_reads() -> Outcome {
    // Of KVM's list, of its own range, and of what the list omits: a variable MTRR, a fixed one, a machine-check bank.
    let written = [
        (LSTAR, 0xffff_8000_1234_5678),
        (0xc000_0102, 0x7fff_dead_b000),
        // 32 bits: AMD has no more.
        (0x176, 0x8000_1000),
        (PAT, 0x0007_0406_0007_0106),
        (0x4b56_4d05, 0),
        (0x200, 0xc000_0006),
        (0x201, 0xf_c000_0800),
        (0x250, 0x0606_0606_0606_0000),
        (0x2ff, 0xc06),
        (0x404, u64::MAX),
    ];
    let mut vm = MicroVm::long_mode().x2apic().build()?;
    let writes = written.map(|(index, value)| Op::Write(index, value));
    let reads = written.map(|(index, _)| Op::Read(index));
    let mut other = MicroVm::long_mode().x2apic().build()?;
    let fresh = other.run(&reads)?;
    let run = vm.run(&writes)?;
    for (seen, (index, _)) in run.seen.iter().zip(written) {
        assert!(
            !seen.faulted(),
            "KVM refuses the guest's write of {index:#x}"
        );
    }
    let plan = plan(&vm)?;
    let restored = plan.restore(&other.vcpus[0].fd, &plan.save(&vm.vcpus[0].fd)?)?;
    assert_eq!((restored.tolerated, restored.defaulted), (vec![], vec![]));
    let run = other.run(&reads)?;
    for ((seen, before), (index, value)) in run.seen.iter().zip(&fresh.seen).zip(written) {
        assert_eq!(seen.value(), Some(value), "{index:#x}");
        assert_ne!(
            before.value(),
            Some(value),
            "{index:#x} has that value anyway"
        );
    }
    Ok(())
}

fn the_tsc_goes_on_where_it_was() -> Outcome {
    const AHEAD: u64 = 1 << 50;
    // Far from where a new VM's TSC is, and so near that KVM takes the write for a synchronization of vCPUs.
    for start in [AHEAD, 0] {
        let mut vm = MicroVm::long_mode().build()?;
        vm.run(&[Op::Write(TSC, start)])?;
        thread::sleep(Duration::from_millis(100));
        let plan = plan(&vm)?;
        let state = plan.save(&vm.vcpus[0].fd)?;
        let saved = state.value(TSC).ok_or("no TSC in the state")?;
        assert!(saved >= start);
        let mut other = MicroVm::long_mode().build()?;
        plan.restore(&other.vcpus[0].fd, &state)?;
        let read = other.run(&[Op::Read(TSC)])?.seen[0].value();
        let read = read.ok_or("#GP")?;
        // At any frequency up to 8 GHz, a minute later at most.
        assert!(
            (saved..saved + (60 << 33)).contains(&read),
            "{saved} became {read}"
        );
    }
    Ok(())
}

/// A VM whose CPUID has the TSC-deadline timer, of which KVM's own proposal leaves out the bit.
fn with_deadline_timer() -> Result<MicroVm, Box<dyn std::error::Error>> {
    const TSC_DEADLINE_TIMER: u32 = 1 << 24;
    let vm = MicroVm::long_mode().x2apic().build()?;
    let mut cpuid = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for leaf in cpuid.as_mut_slice() {
        if leaf.function == 1 {
            leaf.ecx |= TSC_DEADLINE_TIMER;
        }
    }
    vm.vcpus[0].fd.set_cpuid2(&cpuid)?;
    Ok(vm)
}

/// A VM whose timer waits for this deadline.
fn waiting_for(deadline: u64) -> Result<(MicroVm, kvm_lapic_state), Box<dyn std::error::Error>> {
    let mut vm = with_deadline_timer()?;
    let mut ops = vec![
        // The local APIC is software-enabled (spurious interrupt vector register).
        Op::Write(0x80f, 0x1ff),
        Op::Write(X2APIC_LVT_TIMER, LVT_TSC_DEADLINE),
    ];
    if deadline != 0 {
        ops.push(Op::Write(TSC_DEADLINE, deadline));
    }
    let run = vm.run(&ops)?;
    assert!(
        run.seen.iter().all(|seen| !seen.faulted()),
        "{:?}",
        run.seen
    );
    let lapic = vm.vcpus[0].fd.get_lapic()?;
    Ok((vm, lapic))
}

fn a_deadline_survives_with_the_local_apic_and_is_refused_without() -> Outcome {
    const DEADLINE: u64 = 1 << 60;
    let (vm, lapic) = waiting_for(DEADLINE)?;
    let plan = plan(&vm)?;
    let state = plan.save(&vm.vcpus[0].fd)?;
    assert_eq!(state.value(TSC_DEADLINE), Some(DEADLINE));
    let mut other = with_deadline_timer()?;
    let early = plan.restore(&other.vcpus[0].fd, &state);
    assert!(
        matches!(early, Err(RestoreMsrsError::Deadline(DEADLINE))),
        "{early:?}"
    );
    other.vcpus[0].fd.set_lapic(&lapic)?;
    plan.restore(&other.vcpus[0].fd, &state)?;
    let run = other.run(&[Op::Read(TSC_DEADLINE)])?;
    assert_eq!(run.seen[0].value(), Some(DEADLINE));
    Ok(())
}

fn a_timer_without_a_deadline_fires_once() -> Outcome {
    let (vm, lapic) = waiting_for(0)?;
    let plan = plan(&vm)?;
    let state = plan.save(&vm.vcpus[0].fd)?;
    assert_eq!(state.value(TSC_DEADLINE), state.value(TSC));
    let mut other = with_deadline_timer()?;
    other.vcpus[0].fd.set_lapic(&lapic)?;
    plan.restore(&other.vcpus[0].fd, &state)?;
    // Interrupts are off in this guest: the timer's waits in the request register, bit 12 of its eighth word.
    other.run(&[Op::Read(TSC); 64])?;
    let irr = other.vcpus[0].fd.get_lapic()?.regs[0x271].cast_unsigned();
    assert_eq!(irr & 1 << 4, 1 << 4, "no interrupt is requested");
    Ok(())
}

fn an_msr_that_was_not_planned_is_refused_before_anything_changes() -> Outcome {
    let mut vm = MicroVm::long_mode().build()?;
    vm.run(&[Op::Write(LSTAR, 0x1000)])?;
    let plan = plan(&vm)?;
    let mut state = plan.save(&vm.vcpus[0].fd)?;
    state.set(LSTAR, 0x2000);
    state.msrs.push(SavedMsr {
        index: UNKNOWN,
        value: 1,
    });
    let refused = plan.restore(&vm.vcpus[0].fd, &state);
    let Err(RestoreMsrsError::Unplanned(indices)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(indices, [UNKNOWN]);
    assert_eq!(vm.run(&[Op::Read(LSTAR)])?.seen[0].value(), Some(0x1000));
    Ok(())
}

fn a_value_that_kvm_refuses_is_named_with_what_the_guest_would_see() -> Outcome {
    const RESET: u64 = 0x0007_0406_0007_0406;
    let vm = MicroVm::long_mode().build()?;
    let plan = plan(&vm)?;
    let mut state = plan.save(&vm.vcpus[0].fd)?;
    assert_eq!(state.value(PAT), Some(RESET));
    // Memory type 2 is reserved.
    state.set(PAT, 2);
    let error = plan.restore(&vm.vcpus[0].fd, &state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "KVM refuses IA32_PAT (0x277) = 0x2; the vCPU has 0x7040600070406, which the guest would see instead"
    );
    Ok(())
}

fn what_is_kept_elsewhere_is_left_out() -> Outcome {
    let vm = MicroVm::long_mode().build()?;
    let kvm = Kvm::new()?;
    let whole = plan(&vm)?;
    let partial = MsrStatePlan::new(&kvm, &vm.vcpus[0].fd, |index| index == PAT)?;
    assert!(whole.indices().contains(&PAT));
    let rest: Vec<u32> = whole
        .indices()
        .iter()
        .copied()
        .filter(|i| *i != PAT)
        .collect();
    assert_eq!(partial.indices(), rest);
    // For restoring, those of the state that may be planned.
    let restoring =
        |state: &MsrState| MsrStatePlan::for_restoring(&kvm, &vm.vcpus[0].fd, [state], |_| false);
    let state = whole.save(&vm.vcpus[0].fd)?;
    assert_eq!(restoring(&state)?, whole);
    let mut state = partial.save(&vm.vcpus[0].fd)?;
    assert_eq!(restoring(&state)?, partial);
    // What there is not is refused by that plan as by the whole.
    let index = 0x4b56_4dfe;
    state.msrs.push(SavedMsr { index, value: 1 });
    assert!(matches!(
        restoring(&state)?.check(&state),
        Err(RestoreMsrsError::Unplanned(indices)) if indices == [0x4b56_4dfe]
    ));
    // A state of the whole does not fit the part, and the other way around the rest stays.
    let state = whole.save(&vm.vcpus[0].fd)?;
    assert!(matches!(
        partial.check(&state),
        Err(RestoreMsrsError::Unplanned(indices)) if indices == [PAT]
    ));
    let state = partial.save(&vm.vcpus[0].fd)?;
    assert_eq!(whole.restore(&vm.vcpus[0].fd, &state)?.defaulted, [PAT]);
    assert!(
        whole
            .restore(&vm.vcpus[0].fd, &MsrState::default())?
            .defaulted
            .len()
            > 20
    );
    Ok(())
}

fn without_cpuid_there_is_no_plan() -> Outcome {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let vcpu = vm.create_vcpu(0)?;
    assert!(MsrStatePlan::new(&kvm, &vcpu, |_| false).is_err());
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    MsrStatePlan::new(&kvm, &vcpu, |_| false)?;
    Ok(())
}

fn vcpus_keep_the_distance_of_their_tscs() -> Outcome {
    let mut vm = MicroVm::long_mode().vcpus(2).build()?;
    // A guest's own write moves this vCPU's TSC alone.
    vm.vcpus[1].run(&[Op::Write(TSC, 1 << 50)])?;
    let offsets = TscOffsets::save(vm.vcpus.iter().map(|vcpu| &vcpu.fd))?;
    let plan = plan(&vm)?;
    let other = MicroVm::long_mode().vcpus(2).build()?;
    for (from, to) in vm.vcpus.iter().zip(&other.vcpus) {
        plan.restore(&to.fd, &plan.save(&from.fd)?)?;
    }
    offsets.restore(other.vcpus.iter().map(|vcpu| &vcpu.fd))?;
    let restored = TscOffsets::save(other.vcpus.iter().map(|vcpu| &vcpu.fd))?;
    println!("TSC offsets: {offsets:?}");
    assert_eq!(offsets, restored);
    let one = MicroVm::long_mode().build()?;
    if offsets != TscOffsets::default() {
        assert!(offsets.restore([&one.vcpus[0].fd]).is_err());
    }
    Ok(())
}

fn the_example_saves_restores_and_names_what_it_cannot_restore() -> Outcome {
    let output = std::process::Command::new(guest_tests::assets::example("msr_state")?).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let expected = [
        "IA32_LSTAR is Some(1234)",
        "KVM refuses IA32_LSTAR (0xc0000082) = 0x100000000000000",
    ];
    assert!(
        output.status.success() && expected.iter().all(|text| said.contains(text)),
        "{output:?}"
    );
    Ok(())
}
