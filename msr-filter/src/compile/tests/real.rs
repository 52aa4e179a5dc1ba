//! KVM's own limits, and rules as people write them.

use std::{string::ToString, vec::Vec};

use crate::{Access, CompileError, FilterRange, FilterSpec, MsrFilter, MsrRange, Rule, Verdict};

const WINDOWS: [(u32, u32); 5] = [
    (0, 0x1fff),
    (0x4000_0000, 0x4000_01ff),
    (0x4b56_4d00, 0x4b56_4dff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

fn range(first: u32, last: u32) -> MsrRange {
    MsrRange::new(first, last).unwrap()
}

fn deny(range: impl Into<MsrRange>, access: Access) -> Rule {
    Rule::new(range, access, Verdict::Deny)
}

fn allow(range: impl Into<MsrRange>, access: Access) -> Rule {
    Rule::new(range, access, Verdict::Allow)
}

fn spans(filter: &MsrFilter) -> Vec<(u32, u32, Access)> {
    let ranges = filter.ranges().iter();
    ranges
        .map(|r| (r.span().first(), r.span().last(), r.access()))
        .collect()
}

/// 5,000 different MSRs, strewn over the windows by a fixed stride that shares no factor with their
/// size.
fn scattered() -> Vec<u32> {
    let all: Vec<u32> = WINDOWS.iter().flat_map(|(a, b)| *a..=*b).collect();
    let outside: Vec<u32> = (0..all.len())
        .map(|i| all[i * 7919 % all.len()])
        .filter(|index| !MsrRange::X2APIC.contains(*index))
        .take(5000)
        .collect();
    assert_eq!(outside.len(), 5000);
    outside
}

#[test]
fn five_thousand_scattered_msrs_need_one_range_a_window() {
    let msrs = scattered();
    let spec = msrs
        .iter()
        .fold(FilterSpec::new(Verdict::Allow), |spec, i| {
            spec.rule(deny(*i, Access::all()))
        });
    let filter = spec.compile().unwrap();
    // No window is longer than a range, and no range reaches into two: one each is the minimum.
    // And none can be shorter than from the first to the last MSR in its window.
    let shortest: Vec<_> = WINDOWS
        .iter()
        .map(|(a, b)| {
            let inside = msrs.iter().filter(|i| (*a..=*b).contains(i));
            let first = *inside.clone().min().unwrap();
            (first, *inside.max().unwrap(), Access::all())
        })
        .collect();
    assert_eq!(spans(&filter), shortest);
    let sorted: std::collections::BTreeSet<_> = msrs.into_iter().collect();
    for index in WINDOWS.iter().flat_map(|(a, b)| *a..=b + 1) {
        let denied = filter.verdict(index, Access::READ) == Verdict::Deny;
        assert_eq!(denied, sorted.contains(&index), "{index:#x}");
    }
}

#[test]
fn scattered_msrs_of_all_kinds_need_two_ranges_a_window() {
    let kinds = [Access::READ, Access::WRITE, Access::all()];
    let rules = scattered().into_iter().zip(kinds.into_iter().cycle());
    let spec = rules.fold(FilterSpec::new(Verdict::Allow), |spec, (i, access)| {
        spec.rule(deny(i, access))
    });
    // One range decides reads and writes alike, so that it serves one kind alone only together with
    // another.
    assert_eq!(spec.compile().unwrap().ranges().len(), 10);
}

#[test]
fn a_range_of_both_kinds_is_shared_where_the_kinds_agree() {
    let spec = FilterSpec::new(Verdict::Allow)
        .rule(deny(range(0x600, 0x63f), Access::all()))
        .rule(deny(0x620, Access::all()));
    assert_eq!(
        spans(&spec.compile().unwrap()),
        [(0x600, 0x63f, Access::all())]
    );
}

#[test]
fn first_match_order_saves_a_range() {
    // A range for each kind that there is would be three. With a READ and a WRITE range over all three
    // MSRs, or a READ|WRITE range with one of them in front, two are enough.
    let spec = FilterSpec::new(Verdict::Allow)
        .rule(deny(0x1000, Access::all()))
        .rule(deny(0x1001, Access::WRITE))
        .rule(deny(0x1002, Access::READ));
    let filter = spec.compile().unwrap();
    assert_eq!(filter.ranges().len(), 2);
}

#[test]
fn x2apic_in_the_middle_costs_nothing() {
    let around = range(0x7ff, 0x900);
    let spec = FilterSpec::new(Verdict::Allow)
        .rule(allow(MsrRange::X2APIC, Access::all()))
        .rule(deny(around, Access::all()));
    let filter = spec.compile().unwrap();
    assert_eq!(spans(&filter), [(0x7ff, 0x900, Access::all())]);
    let only = FilterSpec::new(Verdict::Allow).rule(deny(MsrRange::X2APIC, Access::all()));
    assert_eq!(only.compile().unwrap(), MsrFilter::allow_all());
}

#[test]
fn allowing_everything_is_the_empty_filter() {
    let spec = FilterSpec::new(Verdict::Deny).rule(allow(MsrRange::ALL, Access::all()));
    assert_eq!(spec.compile().unwrap(), MsrFilter::allow_all());
}

#[test]
fn denying_everything_is_one_range_of_one_msr() {
    for spec in [
        FilterSpec::new(Verdict::Deny),
        FilterSpec::new(Verdict::Allow).rule(deny(MsrRange::ALL, Access::all())),
    ] {
        let filter = spec.compile().unwrap();
        assert_eq!(filter.default_verdict(), Verdict::Deny);
        assert_eq!(spans(&filter), [(0, 0, Access::all())]);
        for index in [0, 1, 0x7ff, 0x900, 0xc000_0080, u32::MAX] {
            assert_eq!(filter.verdict(index, Access::WRITE), Verdict::Deny);
        }
    }
}

#[test]
fn a_longer_run_than_a_range_spans_takes_several() {
    let max = FilterRange::MAX_MSRS;
    for (len, ranges) in [(max, 1), (max + 1, 2), (16 * max, 16)] {
        let spec = FilterSpec::new(Verdict::Allow).rule(deny(
            range(0x1000_0000, 0x1000_0000 + len - 1),
            Access::all(),
        ));
        assert_eq!(spec.compile().unwrap().ranges().len(), ranges);
    }
}

#[test]
fn too_many_clusters_are_listed_with_the_rules_to_give_up() {
    // 18 MSRs too far apart to share ranges; the fourth place has three rules.
    let mut spec = FilterSpec::new(Verdict::Allow);
    for i in 0..18 {
        spec = spec.rule(deny(0x10_0000 * (i + 1), Access::all()));
    }
    spec = spec
        .rule(deny(0x40_0002, Access::all()))
        .rule(deny(0x40_0004, Access::all()));
    let error = spec.compile().unwrap_err();
    let message = error.to_string();
    let CompileError::TooManyRanges {
        needed,
        clusters,
        suggestions,
    } = error
    else {
        panic!("{message}");
    };
    assert_eq!((needed, clusters.len()), (18, 18));
    assert_eq!(clusters[3].span, range(0x40_0000, 0x40_0004));
    assert_eq!(clusters[3].access, Access::all());
    assert!(
        suggestions
            .iter()
            .all(|g| g.rules.len() == 1 && g.needed == 17)
    );
    assert_eq!(suggestions[0].rules, [0]);
    assert!(
        message.starts_with(
            "the rules need 18 filter ranges, and KVM takes at most 16; one each for 0x100000 rw, \
             0x200000 rw,"
        ),
        "{message}"
    );
    assert!(
        message.contains("; fewer without rule 0 (leaves 17), rule 1 (leaves 17),"),
        "{message}"
    );
}

#[test]
fn a_rule_over_half_the_index_space_is_counted_without_walking_it() {
    let spec =
        FilterSpec::new(Verdict::Allow).rule(deny(range(0x8000_0000, u32::MAX - 1), Access::all()));
    let CompileError::TooManyRanges {
        needed, clusters, ..
    } = spec.compile().unwrap_err()
    else {
        panic!("2^31 MSRs fit no filter");
    };
    assert_eq!(needed, (1u64 << 31).div_ceil(12288));
    assert_eq!(clusters.len(), 64);
}

#[test]
fn the_last_msr_cannot_differ_from_the_default() {
    let spec = FilterSpec::new(Verdict::Allow).rule(deny(u32::MAX, Access::WRITE));
    let error = spec.compile().unwrap_err();
    assert_eq!(
        error,
        CompileError::LastMsr {
            default: Verdict::Allow,
            access: Access::WRITE
        }
    );
    assert_eq!(
        error.to_string(),
        "MSR 0xffffffff always gets the filter's default, which must be allow for the other rules: \
         no rule can say otherwise for w there"
    );
    // The one before it can.
    let spec = FilterSpec::new(Verdict::Allow).rule(deny(u32::MAX - 1, Access::WRITE));
    assert_eq!(
        spans(&spec.compile().unwrap()),
        [(u32::MAX - 1, u32::MAX - 1, Access::WRITE)]
    );
}

#[test]
fn weighted_msrs_come_first_unless_another_range_must() {
    // 0x100000 is read 4 times and written 4 times.
    let spec = FilterSpec::new(Verdict::Allow)
        .rule(deny(0x10, Access::all()))
        .rule(deny(0x10_0000, Access::all()).with_weight(4))
        .rule(deny(0x20_0000, Access::READ).with_weight(9));
    let order: Vec<u32> = spans(&spec.compile().unwrap())
        .iter()
        .map(|(first, _, _)| *first)
        .collect();
    assert_eq!(order, [0x20_0000, 0x10_0000, 0x10]);

    // Writes of 0x11 alone are denied, so its range must come before the one that denies both
    // kinds around it, however seldom it is used.
    let spec = FilterSpec::new(Verdict::Allow)
        .rule(deny(0x10, Access::all()).with_weight(100))
        .rule(deny(0x11, Access::WRITE))
        .rule(deny(0x12, Access::all()).with_weight(100));
    let filter = spec.compile().unwrap();
    assert_eq!(filter.ranges()[0].access(), Access::WRITE);
    assert_eq!(filter.verdict(0x11, Access::READ), Verdict::Allow);
    assert_eq!(filter.verdict(0x11, Access::WRITE), Verdict::Deny);
}
