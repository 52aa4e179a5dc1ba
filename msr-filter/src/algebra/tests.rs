use std::{vec, vec::Vec};

use proptest::{collection::vec as vec_of, prelude::*, sample::select};

use super::*;
use crate::FilterRange;

fn range(first: u32, last: u32) -> MsrRange {
    MsrRange::new(first, last).unwrap()
}

fn deny(range: impl Into<MsrRange>, access: Access) -> Rule {
    Rule::new(range, access, Verdict::Deny)
}

/// Filters over two windows and x2APIC's edges, which always fit.
fn filter() -> impl Strategy<Value = MsrFilter> {
    let rule = (
        select(vec![0x10u32, 0x7f8, 0x8f8, 0xc000_0080]),
        0..16u32,
        0..8u32,
        select(vec![Access::READ, Access::WRITE, Access::all()]),
        select(vec![Verdict::Allow, Verdict::Deny]),
    );
    let rule = rule.prop_map(|(base, offset, more, access, verdict)| {
        let first = base + offset;
        Rule::new(range(first, first + more), access, verdict)
    });
    let default = select(vec![Verdict::Allow, Verdict::Deny]);
    (default, vec_of(rule, 0..10))
        .prop_map(|(default, rules)| FilterSpec { default, rules }.compile().unwrap())
}

/// The indices at which such filters may differ, and some at which they can't.
fn indices() -> impl Iterator<Item = u32> {
    let near = [0x10, 0x7f8, 0x8f8, 0xc000_0080].into_iter();
    let near = near.flat_map(|base: u32| base - 1..base + 24);
    near.chain([0, 0x880, 0x4000_0000, u32::MAX])
}

const KINDS: [Access; 2] = [Access::READ, Access::WRITE];

/// Whether `filter` allows an access outside x2APIC; inside, every filter does.
fn allows(filter: &MsrFilter, index: u32, access: Access) -> bool {
    filter.verdict(index, access) == Verdict::Allow
}

proptest! {
    #[test]
    fn operations_are_those_of_sets(a in filter(), b in filter()) {
        let (not, or) = (a.complement().unwrap(), a.union(&b).unwrap());
        let (and, minus) = (a.intersection(&b).unwrap(), a.difference(&b).unwrap());
        for index in indices().filter(|i| !MsrRange::X2APIC.contains(*i)) {
            for kind in KINDS {
                let (in_a, in_b) = (allows(&a, index, kind), allows(&b, index, kind));
                prop_assert_eq!(allows(&not, index, kind), !in_a);
                prop_assert_eq!(allows(&or, index, kind), in_a || in_b);
                prop_assert_eq!(allows(&and, index, kind), in_a && in_b);
                prop_assert_eq!(allows(&minus, index, kind), in_a && !in_b);
            }
        }
    }

    #[test]
    fn diff_lists_exactly_the_changed_verdicts(a in filter(), b in filter()) {
        let diff = a.diff(&b);
        for index in indices() {
            for kind in KINDS {
                let told: Vec<_> = diff
                    .iter()
                    .filter(|c| c.range.contains(index) && c.access.contains(kind))
                    .map(|c| (c.from, c.to))
                    .collect();
                let (from, to) = (a.verdict(index, kind), b.verdict(index, kind));
                let expected = if from == to { vec![] } else { vec![(from, to)] };
                prop_assert_eq!(told, expected);
            }
        }
        prop_assert_eq!(diff.is_empty(), a.same_meaning(&b));
    }

    #[test]
    fn a_spec_from_a_filter_compiles_to_the_same_meaning(a in filter()) {
        let spec = a.to_spec();
        prop_assert_eq!(spec.warnings().iter().filter(|w| {
            !matches!(
                w,
                crate::Warning::LinuxNeeds { .. } | crate::Warning::LinuxNeedsOnIntel { .. }
            )
        }).count(), 0);
        prop_assert!(spec.compile().unwrap().same_meaning(&a));
    }
}

#[test]
fn layout_does_not_matter_to_meaning() {
    let one = FilterRange::new(0x10, Access::all(), 2, &[0; 8]).unwrap();
    let two = [0x10, 0x11].map(|i| FilterRange::new(i, Access::all(), 1, &[0; 8]).unwrap());
    let one = MsrFilter::new(Verdict::Allow, vec![one]).unwrap();
    let two = MsrFilter::new(Verdict::Allow, two.to_vec()).unwrap();
    assert_ne!(one, two);
    assert!(one.same_meaning(&two));
    assert!(!one.same_meaning(&MsrFilter::allow_all()));
}

#[test]
fn a_union_that_needs_too_many_ranges_is_an_error() {
    let spread = |start: u32| {
        let rules = (0..10).map(|i| deny(start + i * 0x2_0000, Access::all()));
        FilterSpec {
            default: Verdict::Allow,
            rules: rules.collect(),
        }
        .compile()
        .unwrap()
    };
    let (a, b) = (spread(0x10_0000), spread(0x1000_0000));
    let error = a.intersection(&b).unwrap_err();
    let CompileError::TooManyRanges {
        needed,
        suggestions,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((needed, suggestions.len()), (20, 0));
    assert_eq!(a.union(&b).unwrap(), MsrFilter::allow_all());
}

#[test]
fn a_spec_leaves_x2apic_out() {
    let spec = FilterSpec::new(Verdict::Allow).rule(deny(range(0x7ff, 0x901), Access::READ));
    assert_eq!(
        spec.compile().unwrap().to_spec().rules,
        [
            deny(0x7ff, Access::READ),
            deny(range(0x900, 0x901), Access::READ)
        ]
    );
}

#[test]
fn changes_of_both_kinds_share_an_entry() {
    let a = FilterSpec::new(Verdict::Allow)
        .rule(deny(range(0x10, 0x1f), Access::all()))
        .compile()
        .unwrap();
    let b = FilterSpec::new(Verdict::Allow)
        .rule(deny(range(0x10, 0x17), Access::WRITE))
        .rule(deny(0x30, Access::all()))
        .compile()
        .unwrap();
    let change = |range, access, from: Verdict| Change {
        range,
        access,
        from,
        to: from.opposite(),
    };
    assert_eq!(
        a.diff(&b),
        [
            change(range(0x10, 0x17), Access::READ, Verdict::Deny),
            change(range(0x18, 0x1f), Access::all(), Verdict::Deny),
            change(MsrRange::single(0x30), Access::all(), Verdict::Allow),
        ]
    );
}
