//! What holds for all rules, and the parts of the search against simple ones.

use std::{vec, vec::Vec};

use proptest::{collection::vec as vec_of, prelude::*, sample::select};

use crate::{
    Access, CompileError, FilterSpec, MsrFilter, MsrRange, Rule, Verdict,
    compile::{
        cover::{cover, cover_shortened},
        demand::{Colour, Run},
        pack::pack,
    },
};

fn access() -> impl Strategy<Value = Access> {
    select(vec![Access::READ, Access::WRITE, Access::all()])
}

fn verdict() -> impl Strategy<Value = Verdict> {
    select(vec![Verdict::Allow, Verdict::Deny])
}

/// Ranges where they are interesting: around x2APIC, in the vendors' windows and at both ends, short
/// mostly, but sometimes everything.
fn range() -> impl Strategy<Value = MsrRange> {
    let base = select(vec![
        0u32,
        0x7f0,
        0x8f0,
        0x1f00,
        0x3000,
        0x4000_0000,
        0xc000_0080,
        0xc001_0000,
        0xffff_fff0,
    ]);
    let near = (base, 0..0x40u32, select(vec![0u32, 1, 7, 0x80, 0x900])).prop_map(
        |(base, offset, more)| {
            let first = base.saturating_add(offset);
            MsrRange::new(first, first.saturating_add(more)).unwrap()
        },
    );
    prop_oneof![20 => near, 1 => Just(MsrRange::ALL)]
}

fn spec() -> impl Strategy<Value = FilterSpec> {
    let rule =
        (range(), access(), verdict(), 0..4u32).prop_map(|(range, access, verdict, weight)| {
            Rule::new(range, access, verdict).with_weight(weight)
        });
    (verdict(), vec_of(rule, 0..24)).prop_map(|(default, rules)| FilterSpec { default, rules })
}

/// Every index at which the verdict of rules or filter may change, and the ones beside it.
fn edges(spec: &FilterSpec, filter: &MsrFilter) -> Vec<u32> {
    let rules = spec.rules.iter().map(|rule| rule.range);
    let ranges = filter.ranges().iter().map(crate::FilterRange::span);
    let spans = rules.chain(ranges).chain([MsrRange::X2APIC, MsrRange::ALL]);
    spans
        .flat_map(|span| [span.first(), span.last()])
        .flat_map(|at| [at.wrapping_sub(1), at, at.wrapping_add(1)])
        .collect()
}

fn assert_same(spec: &FilterSpec, filter: &MsrFilter, index: u32) -> Result<(), TestCaseError> {
    for access in [Access::READ, Access::WRITE] {
        let expected = if MsrRange::X2APIC.contains(index) {
            Verdict::Allow
        } else {
            spec.verdict(index, access)
        };
        prop_assert_eq!(
            filter.verdict(index, access),
            expected,
            "{:#x} {}",
            index,
            access
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_filter_decides_as_the_rules(spec in spec(), anywhere in vec_of(any::<u32>(), 32)) {
        match spec.compile() {
            Ok(filter) => {
                prop_assert!(filter.ranges().len() <= MsrFilter::MAX_RANGES);
                for index in edges(&spec, &filter).into_iter().chain(anywhere) {
                    assert_same(&spec, &filter, index)?;
                }
            }
            Err(CompileError::TooManyRanges { needed, suggestions, .. }) => {
                prop_assert!(needed > 16);
                for suggestion in suggestions {
                    prop_assert!(suggestion.needed < needed);
                }
            }
            Err(CompileError::LastMsr { default, access }) => {
                for kind in [Access::READ, Access::WRITE] {
                    let differs = spec.verdict(u32::MAX, kind) != default;
                    prop_assert_eq!(access.contains(kind), differs);
                }
            }
        }
    }

    #[test]
    fn weights_change_the_order_only(spec in spec()) {
        let plain: Vec<_> = spec.rules.iter().map(|rule| rule.with_weight(0)).collect();
        let plain = FilterSpec { default: spec.default, rules: plain };
        if let (Ok(weighted), Ok(plain)) = (spec.compile(), plain.compile()) {
            prop_assert_eq!(weighted.ranges().len(), plain.ranges().len());
            for range in plain.ranges() {
                prop_assert!(weighted.ranges().contains(range));
            }
        }
    }

    #[test]
    fn shortening_long_runs_does_not_change_the_count(
        max_msrs in 1..5u32,
        runs in vec_of((1..6u64, 1..60u64, select(Colour::ALL.to_vec())), 1..12),
    ) {
        let mut end = 0;
        let runs: Vec<Run> = runs
            .into_iter()
            .map(|(gap, len, colour)| {
                let first = end + gap - 1;
                end = first + len;
                Run { first, last: end - 1, colour }
            })
            .collect();
        prop_assert_eq!(
            cover_shortened(&runs, max_msrs, 6).needed,
            cover(&runs, max_msrs).needed
        );
    }
}

/// The fewest ranges, and then the fewest indices, that cover `wanted` (a bit each): a table over
/// all ends.
fn fewest_and_shortest(wanted: u32, width: u64, max_msrs: u64) -> (usize, u64) {
    let mut best = vec![(0, 0)];
    for end in 1..=width {
        let mut here = if wanted >> (end - 1) & 1 == 0 {
            best[end as usize - 1]
        } else {
            (usize::MAX, u64::MAX)
        };
        for len in 1..=max_msrs.min(end) {
            let (count, total) = best[(end - len) as usize];
            here = here.min((count + 1, total + len));
        }
        best.push(here);
    }
    best[width as usize]
}

#[test]
fn one_colour_gets_the_fewest_and_then_the_shortest_ranges() {
    const WIDTH: u64 = 13;
    for max_msrs in 1..=6u32 {
        for wanted in 0..1u32 << WIDTH {
            let mut spans: Vec<(u64, u64)> = Vec::new();
            for index in (0..WIDTH).filter(|i| wanted >> i & 1 == 1) {
                match spans.last_mut() {
                    Some((_, last)) if *last + 1 == index => *last = index,
                    _ => spans.push((index, index)),
                }
            }
            let ranges = pack(&spans, max_msrs);
            let total = ranges.iter().map(|(a, b)| b - a + 1).sum();
            let expected = fewest_and_shortest(wanted, WIDTH, u64::from(max_msrs));
            assert_eq!((ranges.len(), total), expected, "{wanted:b} by {max_msrs}");
            let covered: u32 = ranges
                .iter()
                .flat_map(|(a, b)| *a..=*b)
                .map(|i| 1 << i)
                .sum();
            assert_eq!(wanted & !covered, 0);
            assert!(ranges.iter().all(|(a, b)| b - a < u64::from(max_msrs)));
        }
    }
}
