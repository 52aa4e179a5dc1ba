//! The filter is replaced while vCPUs run: no access sees anything but the old or the new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use guest_tests::micro::{MicroVcpu, MicroVm, Op};
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_bus::ExitReason;
use msr_filter::{Access, FilterSpec, MsrFilter, Rule, Verdict};

use super::support::{LSTAR, Notes, Outcome, trials};

const SWAPS: usize = 1000;
const VCPUS: u32 = 2;
/// IA32_STAR, IA32_LSTAR, IA32_CSTAR and IA32_FMASK: all of them store what is written, and these guests use
/// none.
const ALWAYS_DENIED: u32 = LSTAR - 1;
const FIRST_DENIED: u32 = LSTAR;
const SECOND_DENIED: u32 = LSTAR + 1;
const NEVER_DENIED: u32 = LSTAR + 2;
/// What userspace answers, and what KVM has.
const FROM_BUS: u64 = 0x0bad_cafe_0bad_cafe;
const FROM_KVM: u64 = 0x0202;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::swap": each_access_sees_the_old_or_the_new_filter)
}

fn denying(msrs: [u32; 2]) -> MsrFilter {
    msrs.into_iter()
        .fold(FilterSpec::new(Verdict::Allow), |spec, msr| {
            spec.rule(Rule::new(msr, Access::all(), Verdict::Deny))
        })
        .compile()
        .expect("a few MSRs next to each other")
}

/// What one vCPU's guest saw in all.
#[derive(Default)]
struct Tally {
    from_bus: u64,
    from_kvm: u64,
    /// Reads of each of the two MSRs that the filters do not agree on: answered by the bus, and by KVM.
    either: [[u64; 2]; 2],
}

impl Tally {
    fn hammer(mut self, vcpu: &mut MicroVcpu, done: &AtomicBool) -> Result<Self, String> {
        let ops: Vec<Op> = [ALWAYS_DENIED, FIRST_DENIED, NEVER_DENIED, SECOND_DENIED]
            .into_iter()
            .cycle()
            .take(400)
            .map(Op::Read)
            .collect();
        while !done.load(Ordering::Relaxed) {
            let run = vcpu.run(&ops).map_err(|error| error.to_string())?;
            let mut exits = 0;
            for (op, seen) in ops.iter().zip(&run.seen) {
                let by_bus = match seen.value() {
                    Some(FROM_BUS) => true,
                    Some(FROM_KVM) => false,
                    _ => return Err(format!("{op:x?} gave {seen:x?}")),
                };
                let allowed = match op.index() {
                    ALWAYS_DENIED => by_bus,
                    NEVER_DENIED => !by_bus,
                    index => {
                        self.either[(index - FIRST_DENIED) as usize][usize::from(!by_bus)] += 1;
                        true
                    }
                };
                if !allowed {
                    return Err(format!("neither filter explains {op:x?} giving {seen:x?}"));
                }
                exits += usize::from(by_bus);
                self.from_bus += u64::from(by_bus);
                self.from_kvm += u64::from(!by_bus);
            }
            if exits != run.exits.len() {
                return Err(format!("{} exits for {exits} answers", run.exits.len()));
            }
            let other = run
                .exits
                .iter()
                .find(|a| a.exit.reason != ExitReason::Filter);
            if let Some(other) = other {
                return Err(format!("{other:x?}"));
            }
        }
        Ok(self)
    }
}

fn each_access_sees_the_old_or_the_new_filter() -> Outcome {
    let notes = Notes::answering(
        msr_bus::MsrRange::new(ALWAYS_DENIED, NEVER_DENIED)?,
        FROM_BUS,
    );
    let mut vm = MicroVm::long_mode()
        .vcpus(VCPUS)
        .exits(MsrExitReason::Filter)
        .bus(notes.bus())
        .build()?;
    let known = [ALWAYS_DENIED, FIRST_DENIED, SECOND_DENIED, NEVER_DENIED];
    for vcpu in &mut vm.vcpus {
        let run = vcpu.run(&known.map(|msr| Op::Write(msr, FROM_KVM)))?;
        assert!(run.exits.is_empty());
    }
    let filters = [
        denying([ALWAYS_DENIED, FIRST_DENIED]),
        denying([ALWAYS_DENIED, SECOND_DENIED]),
    ];
    filters[0].install(vm.vm())?;

    let done = Arc::new(AtomicBool::new(false));
    let guests: Vec<_> = vm
        .vcpus
        .drain(..)
        .map(|mut vcpu| {
            let done = Arc::clone(&done);
            thread::spawn(move || Tally::default().hammer(&mut vcpu, &done))
        })
        .collect();
    let installed = (1..=SWAPS).try_for_each(|swap| filters[swap % 2].install(vm.vm()));
    done.store(true, Ordering::Relaxed);
    for (number, guest) in guests.into_iter().enumerate() {
        let tally = guest.join().map_err(|_| "a vCPU's thread panicked")??;
        println!(
            "swap: vCPU {number}: {SWAPS} swaps, {} accesses answered by the bus, {} by KVM",
            tally.from_bus, tally.from_kvm
        );
        // Both filters were in force at some time for each of the MSRs they do not agree on.
        assert!(
            tally.either.iter().flatten().all(|count| *count > 0),
            "{:?}",
            tally.either
        );
    }
    Ok(installed?)
}
