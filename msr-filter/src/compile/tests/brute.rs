//! Minimality against every filter there is, in spaces small enough for that.
//!
//! The reference knows nothing of colours or covers. It appends ranges with any span, flags and
//! bitmap one by one, decides what they leave undecided as KVM does (the first match wins), and so
//! finds with how few ranges every meaning can be had.

use std::{collections::HashSet, println, vec, vec::Vec};

use crate::{
    Access, FilterRange, MsrRange, Verdict,
    access_map::AccessMap,
    compile::{
        Geometry,
        fill::fill,
        plan::{Plan, PlanError, plan},
    },
};

const KINDS: [Access; 2] = [Access::READ, Access::WRITE];

/// Indices 0 to `n - 1`, which ranges can reach, and index `n`, which none can.
#[derive(Clone, Copy)]
struct Space {
    n: u32,
    max_msrs: u32,
    unfiltered: Option<u32>,
}

/// Verdicts of reads and writes: bit `2 * index + kind`, 1 allows.
type Meaning = u32;

fn bit(index: u32, kind: usize) -> u32 {
    1 << (2 * index + kind as u32)
}

impl Space {
    fn geometry(self, max_ranges: usize) -> Geometry {
        Geometry {
            max_msrs: self.max_msrs,
            max_ranges,
            unfiltered: self.unfiltered.map(MsrRange::single),
            top: self.n,
        }
    }

    /// All accesses to indices that ranges can reach.
    fn all(self) -> u32 {
        (1 << (2 * self.n)) - 1
    }

    /// The accesses whose verdict matters.
    fn filtered(self) -> u32 {
        let hole = self.unfiltered.map_or(0, |i| bit(i, 0) | bit(i, 1));
        self.all() & !hole
    }

    /// The map that means `meaning`, with the top index allowed as in `top`.
    fn map(self, meaning: Meaning, top: Access) -> AccessMap {
        let allowed = |index| {
            let mut allowed = Access::empty();
            allowed.set(Access::READ, meaning & bit(index, 0) != 0);
            allowed.set(Access::WRITE, meaning & bit(index, 1) != 0);
            (index, allowed)
        };
        AccessMap::from_steps((0..self.n).map(allowed).chain([(self.n, top)]))
    }

    /// The accesses that the ranges with each span and flags decide, if nothing does before.
    fn shapes(self) -> Vec<u32> {
        let mut shapes = Vec::new();
        for first in 0..self.n {
            for last in first..self.n.min(first + self.max_msrs) {
                for flags in 1..=3u32 {
                    let kinds = |i| {
                        (0..2)
                            .filter(|k| flags >> k & 1 == 1)
                            .map(move |k| bit(i, k))
                    };
                    shapes.push((first..=last).flat_map(kinds).sum());
                }
            }
        }
        shapes
    }

    /// Every range: the accesses it decides, if nothing does before, and those among them it allows.
    fn ranges(self) -> Vec<(u32, u32)> {
        let mut ranges = Vec::new();
        for shape in self.shapes() {
            // A bitmap has one bit an index: the same for reads and writes.
            let indices: Vec<u32> = (0..self.n)
                .filter(|i| shape & (bit(*i, 0) | bit(*i, 1)) != 0)
                .collect();
            for bitmap in 0..1u32 << indices.len() {
                let set = indices
                    .iter()
                    .zip(0..)
                    .filter(|(_, at)| bitmap >> at & 1 == 1);
                let allowed: u32 = set.map(|(i, _)| bit(*i, 0) | bit(*i, 1)).sum();
                ranges.push((shape, allowed & shape));
            }
        }
        ranges
    }

    /// For every meaning and default, the fewest ranges that have it.
    fn fewest(self) -> [Vec<u8>; 2] {
        // A state is which accesses are decided, and how: undecided ones count as denied.
        let all = self.all();
        let states = 1usize << (4 * self.n);
        let key = |decided: u32, value: u32| (decided << (2 * self.n) | value) as usize;
        let mut reached = vec![u8::MAX; states];
        reached[0] = 0;
        let mut layer = vec![(0u32, 0u32)];
        let every = self.ranges();
        let mut ranges = 0;
        while !layer.is_empty() {
            ranges += 1;
            let mut next = Vec::new();
            for (decided, value) in &layer {
                for (decides, allows) in &every {
                    let state = (decided | decides, value | (allows & !decided));
                    let seen = &mut reached[key(state.0, state.1)];
                    if *seen == u8::MAX {
                        *seen = ranges;
                        next.push(state);
                    }
                }
            }
            layer = next;
        }
        let mut fewest = [
            vec![u8::MAX; all as usize + 1],
            vec![u8::MAX; all as usize + 1],
        ];
        for (key, ranges) in reached.iter().enumerate().filter(|(_, r)| **r != u8::MAX) {
            let (decided, value) = (key as u32 >> (2 * self.n), key as u32 & all);
            // KVM refuses a default of deny without ranges.
            if *ranges > 0 {
                let best = &mut fewest[0][value as usize];
                *best = (*best).min(*ranges);
            }
            let best = &mut fewest[1][(value | all & !decided) as usize];
            *best = (*best).min(*ranges);
        }
        // Any verdict will do where KVM doesn't ask the filter.
        let free = all & !self.filtered();
        for table in &mut fewest {
            for meaning in 0..=all {
                let same = [
                    0,
                    free,
                    free & free.wrapping_neg(),
                    free & (free - free.min(1)),
                ];
                let best = same
                    .iter()
                    .map(|s| table[(meaning & !free | s & free) as usize]);
                table[meaning as usize] = best.min().unwrap_or(u8::MAX);
            }
        }
        fewest
    }
}

/// What a planned filter means, by the algorithm of the kernel over its ranges.
fn meaning(space: Space, default: Verdict, ranges: &[FilterRange]) -> Meaning {
    let mut meaning = 0;
    for index in 0..space.n {
        for (kind, access) in KINDS.into_iter().enumerate() {
            let decided = ranges.iter().find_map(|range| range.verdict(index, access));
            if decided.unwrap_or(default) == Verdict::Allow {
                meaning |= bit(index, kind);
            }
        }
    }
    meaning
}

fn check(space: Space, target: Meaning, plan: &Plan, map: &AccessMap) {
    let ranges = fill(plan, map);
    for range in &ranges {
        assert!(range.span().len() <= u64::from(space.max_msrs));
        assert!(range.span().last() < space.n);
    }
    let differs = (meaning(space, plan.default, &ranges) ^ target) & space.filtered();
    assert_eq!(differs, 0, "{target:b} {plan:?}");
}

/// Compares every meaning of a space with the reference and returns how many there were.
fn exhaust(space: Space) -> u64 {
    let fewest = space.fewest();
    let mut cases = 0;
    for target in 0..=space.all() {
        for (top, reference) in [
            (Access::empty(), fewest[0][target as usize]),
            (Access::all(), fewest[1][target as usize]),
            (Access::READ, u8::MAX),
        ] {
            for preferred in [Verdict::Allow, Verdict::Deny] {
                let map = space.map(target, top);
                match plan(&map, preferred, &space.geometry(64)) {
                    Ok(plan) => {
                        assert_eq!(plan.ranges.len(), usize::from(reference), "{target:b}");
                        check(space, target, &plan, &map);
                    }
                    Err(PlanError::Top { .. }) => assert_eq!(reference, u8::MAX, "{target:b}"),
                    Err(error) => panic!("{target:b}: {error:?}"),
                }
                cases += 1;
            }
        }
    }
    cases
}

#[test]
fn every_meaning_of_a_small_space_gets_the_fewest_ranges() {
    let mut cases = 0;
    for (n, max_msrs) in [(4, 1), (4, 2), (5, 2), (5, 3), (5, 4), (6, 2), (6, 3)] {
        for unfiltered in [None, Some(0), Some(2)] {
            cases += exhaust(Space {
                n,
                max_msrs,
                unfiltered,
            });
        }
    }
    println!("{cases} compilations compared with every filter of their space");
}

/// A smaller reference for one meaning: the sets of decided accesses reachable with ranges that
/// decide nothing wrongly.
fn fewest_for(space: Space, target: Meaning, default: Verdict) -> usize {
    let all = space.all();
    let wrong = match default {
        Verdict::Allow => all & !target,
        Verdict::Deny => target,
    } & space.filtered();
    let shapes = space.shapes();
    let mut seen = HashSet::from([0u32]);
    let mut layer = vec![0u32];
    for ranges in 0.. {
        if layer.iter().any(|decided| wrong & !decided == 0) {
            return ranges.max(usize::from(default == Verdict::Deny));
        }
        let mut next = Vec::new();
        for decided in &layer {
            for shape in &shapes {
                let new = shape & !decided;
                // One bit an index: a range that newly decides both kinds needs them to agree.
                let agrees = (0..space.n).all(|i| {
                    let both = bit(i, 0) | bit(i, 1);
                    let matters = new & space.filtered();
                    matters & both != both || [0, both].contains(&(target & both))
                });
                if agrees && seen.insert(decided | new) {
                    next.push(decided | new);
                }
            }
        }
        layer = next;
    }
    unreachable!("ranges of one index each decide everything")
}

#[test]
fn random_meanings_of_wider_spaces_get_the_fewest_ranges() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut cases = 0;
    for (n, max_msrs, count) in [(8, 2, 60), (8, 3, 120), (9, 3, 40), (9, 4, 60), (10, 4, 25)] {
        for case in 0..count {
            let space = Space {
                n,
                max_msrs,
                unfiltered: (case % 4 == 3).then_some(n / 2),
            };
            // Half of them with few deviations, where single ranges bridge gaps.
            let mut target = random.next() & space.all();
            if case % 2 == 0 {
                target |= random.next();
                target &= space.all();
            }
            let map = space.map(target, Access::all());
            let plan = plan(&map, Verdict::Allow, &space.geometry(64)).unwrap();
            check(space, target, &plan, &map);
            let fewest = fewest_for(space, target, Verdict::Allow);
            assert_eq!(plan.ranges.len(), fewest, "{target:b} in {n} by {max_msrs}");
            cases += 1;
        }
    }
    println!("{cases} random compilations compared with every filter of their space");
}

/// A small generator of the xorshift kind: the cases are the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
}
