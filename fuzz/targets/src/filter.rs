//! The filter's compiler, against the rules themselves and against KVM's own algorithm.
//!
//! What the compiled filter says of an access is what the first matching rule says, but for the x2APIC MSRs, which are
//! always allowed, and for index `0xffff_ffff`, which no range of KVM's can hold. Both are asked at every index where
//! a rule or a range begins or ends, and next to it.

use arbitrary::{Arbitrary, Unstructured};
use msr_filter::{Access, FilterSpec, MsrFilter, MsrRange, Rule, Verdict};

/// More rules than KVM has ranges.
const MOST_RULES: usize = 48;

/// Places where neighbouring rules meet often: real MSRs, the edges of the x2APIC range and of the index space.
const BASES: [u32; 8] = [
    0,
    0x10,
    0x7f0,
    0x8f8,
    0x3ff0,
    0xc000_0080,
    0xc001_0000,
    0xffff_fff0,
];

fn rule(u: &mut Unstructured<'_>) -> arbitrary::Result<Rule> {
    let first = if u.ratio(1, 8)? {
        u32::arbitrary(u)?
    } else {
        u.choose(&BASES)?.wrapping_add(u32::from(u8::arbitrary(u)?))
    };
    let length = if u.ratio(1, 8)? {
        u32::from(u16::arbitrary(u)?)
    } else {
        u32::from(u8::arbitrary(u)? >> 2)
    };
    let range =
        MsrRange::new(first, first.saturating_add(length)).expect("last is not below first");
    let access = *u.choose(&[Access::READ, Access::WRITE, Access::all()])?;
    let rule = Rule::new(range, access, verdict(u)?);
    Ok(rule.with_weight(u32::from(u8::arbitrary(u)?)))
}

fn verdict(u: &mut Unstructured<'_>) -> arbitrary::Result<Verdict> {
    Ok(if bool::arbitrary(u)? {
        Verdict::Allow
    } else {
        Verdict::Deny
    })
}

fn spec(u: &mut Unstructured<'_>) -> arbitrary::Result<FilterSpec> {
    let mut spec = FilterSpec::new(verdict(u)?);
    while !u.is_empty() && spec.rules.len() < MOST_RULES {
        spec.rules.push(rule(u)?);
    }
    Ok(spec)
}

/// The edges of the spans, and their neighbours.
fn edges(spans: impl Iterator<Item = MsrRange>) -> Vec<u32> {
    let mut edges: Vec<u32> = spans
        .flat_map(|span| [span.first(), span.last()])
        .chain([0, 0x7ff, 0x800, 0x8ff, 0x900, u32::MAX - 1])
        .flat_map(|at| [at.wrapping_sub(1), at, at.wrapping_add(1)])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// What `kvm_msr_allowed()` in the kernel's `arch/x86/kvm/x86.c` does with the structure that userspace gives it.
fn kernel_allows(filter: &MsrFilter, index: u32, access: Access) -> bool {
    if (0x800..=0x8ff).contains(&index) {
        return true;
    }
    for range in filter.ranges() {
        let (base, count) = (range.span().first(), range.span().len() as u32);
        if index >= base && index < base.wrapping_add(count) && range.access().contains(access) {
            let bit = index - base;
            return range.bitmap_bytes()[(bit / 8) as usize] >> (bit % 8) & 1 == 1;
        }
    }
    filter.default_verdict() == Verdict::Allow
}

/// Compiles the rules in `data` and compares.
pub fn run(data: &[u8]) {
    let Ok(spec) = spec(&mut Unstructured::new(data)) else {
        return;
    };
    // For their panics: a warning or an error is text in the end.
    spec.warnings().iter().for_each(|w| drop(w.to_string()));
    let filter = match spec.compile() {
        Ok(filter) => filter,
        Err(error) => return drop(error.to_string()),
    };
    assert!(filter.ranges().len() <= 16);
    let spans = filter.ranges().iter().map(|range| {
        assert!(range.span().len() <= 0x3000, "{range:?}");
        assert!(range.bitmap_bytes().len() <= 0x600 && range.bitmap_bytes().len() % 8 == 0);
        range.span()
    });
    for index in edges(spans.chain(spec.rules.iter().map(|rule| rule.range))) {
        for access in [Access::READ, Access::WRITE] {
            let kernel = kernel_allows(&filter, index, access);
            let verdict = filter.verdict(index, access) == Verdict::Allow;
            assert_eq!(kernel, verdict, "{index:#x} {access:?} {filter:?}");
            if !MsrRange::X2APIC.contains(index) {
                let rules = spec.verdict(index, access) == Verdict::Allow;
                assert_eq!(kernel, rules, "{index:#x} {access:?} {spec:?} {filter:?}");
            }
        }
    }
    // Its rules, compiled again, mean the same.
    let again = filter.to_spec().compile();
    let again = again.expect("what has been compiled fits");
    assert!(again.same_meaning(&filter), "{spec:?}");
}
