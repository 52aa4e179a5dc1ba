//! Random filters on a real KVM: what the guest sees is what [`MsrFilter::verdict`] says.

use std::sync::Arc;

use guest_tests::micro::{MicroVm, Op, Run};
use guest_tests::settings;
use kvm_ioctls::MsrExitReason;
use libtest_mimic::Trial;
use msr_bus::{ExitReason, GeneralProtection, MsrAccess, MsrBus, MsrDevice, MsrRange};
use msr_filter::{Access, FilterRange, FilterSpec, MsrFilter, Verdict};

use super::random::Random;
use super::support::{Outcome, trials};

const FILTERS: usize = 250;
const RANDOM_ACCESSES: usize = 60;

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::differential": kvm_decides_as_msr_filter_says)
}

/// Answers whatever is denied, each read in a way of its own.
struct Everything;

fn answer(index: u32) -> u64 {
    0xa5a5_5a5a_0000_0000 | u64::from(!index)
}

impl MsrDevice for Everything {
    fn name(&self) -> &str {
        "everything"
    }

    fn claims(&self) -> Vec<MsrRange> {
        [
            (0, MsrRange::X2APIC.first() - 1),
            (MsrRange::X2APIC.last() + 1, u32::MAX),
        ]
        .map(|(first, last)| MsrRange::new(first, last).expect("in order"))
        .to_vec()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        Ok(answer(access.index))
    }

    fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
        Ok(())
    }
}

/// A write that does this guest no harm where the filter allows it. Zero switches off whatever an MSR
/// controls (KVM refuses it for EFER while the guest is in long mode), and leaves the addresses in others unused. A PAT of zero
/// would make all memory uncacheable, so it gets its value after reset.
fn harmless_write(index: u32) -> Op {
    const PAT: u32 = 0x277;
    let value = if index == PAT {
        0x0007_0406_0007_0406
    } else {
        0
    };
    Op::Write(index, value)
}

/// Both kinds of access to the edges of everything, and to random indices, in random order.
fn accesses(random: &mut Random, spec: &FilterSpec, filter: &MsrFilter) -> Vec<Op> {
    let ranges = spec
        .rules
        .iter()
        .map(|rule| rule.range)
        .chain(filter.ranges().iter().map(FilterRange::span))
        .chain([MsrRange::X2APIC, MsrRange::ALL]);
    let mut indices: Vec<u32> = ranges
        .flat_map(|range| {
            let (first, last) = (range.first(), range.last());
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
        })
        .chain([0x8a0])
        .collect();
    indices.extend((0..RANDOM_ACCESSES / 2).map(|_| random.index()));
    indices.sort_unstable();
    indices.dedup();
    let mut ops: Vec<Op> = indices
        .into_iter()
        .flat_map(|index| [Op::Read(index), harmless_write(index)])
        .collect();
    for place in (1..ops.len()).rev() {
        ops.swap(place, random.below(place as u64 + 1) as usize);
    }
    ops
}

/// Compares a run with the filter's own verdicts; returns how many accesses were denied.
fn check(ops: &[Op], run: &Run, filter: &MsrFilter) -> Result<usize, String> {
    let mut exits = run.exits.iter();
    for (op, seen) in ops.iter().zip(&run.seen) {
        let (index, kind) = (op.index(), op.access());
        // An access that KVM handles exits for no reason that is enabled here.
        if filter.verdict(index, kind) == Verdict::Allow {
            continue;
        }
        let exit = exits.next().map(|answered| answered.exit);
        let as_denied = exit.is_some_and(|exit| {
            (exit.kind, exit.index, exit.reason) == (kind, index, ExitReason::Filter)
        });
        if !as_denied {
            return Err(format!(
                "{op:x?} is denied, and the next exit was {exit:x?}"
            ));
        }
        let as_answered = match kind {
            Access::READ => seen.value() == Some(answer(index)),
            _ => !seen.faulted(),
        };
        if !as_answered {
            return Err(format!("{op:x?} was answered, and the guest saw {seen:x?}"));
        }
    }
    match exits.next() {
        None => Ok(run.exits.len()),
        Some(surplus) => Err(format!("{:x?} is allowed, and did exit", surplus.exit)),
    }
}

fn kvm_decides_as_msr_filter_says() -> Outcome {
    let seed = settings::seed()?;
    let mut random = Random::new(seed);
    let mut vm = MicroVm::long_mode()
        .exits(MsrExitReason::Filter)
        .bus(MsrBus::builder().device(Arc::new(Everything)).build()?)
        .build()?;
    let (mut executed, mut denied) = (0, 0);
    for number in 0..FILTERS {
        let (spec, filter) = random.filter();
        let ops = accesses(&mut random, &spec, &filter);
        for op in &ops {
            let expected = match MsrRange::X2APIC.contains(op.index()) {
                true => Verdict::Allow,
                false => spec.verdict(op.index(), op.access()),
            };
            assert_eq!(
                filter.verdict(op.index(), op.access()),
                expected,
                "SEED={seed}, filter {number}, {op:x?}: compiled to something else than {spec:x?}"
            );
        }
        filter.install(vm.vm())?;
        let run = vm.run(&ops)?;
        denied += check(&ops, &run, &filter)
            .map_err(|error| format!("SEED={seed}, filter {number}: {error}; {filter:x?}"))?;
        executed += ops.len();
    }
    println!("differential: {FILTERS} filters, {executed} accesses, {denied} of them denied");
    assert!(executed >= 20_000, "{executed}");
    assert!(
        denied > executed / 20 && denied < executed * 19 / 20,
        "{denied}"
    );
    Ok(())
}
