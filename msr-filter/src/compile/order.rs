//! The order of ranges in which frequent accesses are decided soonest.

use alloc::{vec, vec::Vec};

use crate::{Access, FilterRange, FilterSpec, MsrRange, resolve::Cell};

/// Puts `ranges` in the order in which weighted accesses walk past the fewest of them.
///
/// A range of one kind stays before the ranges of both kinds that it overlaps, which makes what each
/// range decides independent of the order. The best order is found by building it up from the front
/// for every set of ranges that may be there: 2^16 sets at most.
pub(super) fn by_weight(ranges: &mut Vec<FilterRange>, spec: &FilterSpec, cells: &[Cell]) {
    let weights = weights(ranges, spec, cells);
    let before: Vec<usize> = ranges
        .iter()
        .map(|range| must_precede(range, ranges))
        .collect();
    let count = ranges.len();
    // For each set of ranges in front: the least walk of the accesses they decide, and the
    // last range of that order.
    let mut least: Vec<Option<(u64, usize)>> = vec![None; 1 << count];
    least[0] = Some((0, 0));
    for set in 0..least.len() {
        let Some((walk, _)) = least[set] else {
            continue;
        };
        let place = u64::from(set.count_ones()) + 1;
        for range in (0..count).filter(|r| set >> r & 1 == 0 && before[*r] & !set == 0) {
            let walk = walk.saturating_add(weights[range].saturating_mul(place));
            let next = &mut least[set | 1 << range];
            if next.is_none_or(|(best, _)| walk < best) {
                *next = Some((walk, range));
            }
        }
    }
    let mut order = Vec::new();
    let mut set = least.len() - 1;
    while let Some((_, last)) = least[set].filter(|_| set != 0) {
        order.push(last);
        set &= !(1 << last);
    }
    *ranges = order.iter().rev().map(|i| ranges[*i].clone()).collect();
}

/// The set of ranges that must come before `range`, as bits.
fn must_precede(range: &FilterRange, ranges: &[FilterRange]) -> usize {
    let relied_on = |other: &FilterRange| {
        range.access() == Access::all()
            && other.access() != Access::all()
            && other.span().intersection(range.span()).is_some()
    };
    ranges
        .iter()
        .enumerate()
        .filter(|(_, other)| relied_on(other))
        .fold(0, |set, (i, _)| set | 1 << i)
}

/// The weight of the accesses that each range decides.
fn weights(ranges: &[FilterRange], spec: &FilterSpec, cells: &[Cell]) -> Vec<u64> {
    let mut weights = vec![0u64; ranges.len()];
    let ends = cells.iter().skip(1).map(|cell| cell.first - 1);
    for (cell, last) in cells.iter().zip(ends.chain([u32::MAX])) {
        for access in [Access::READ, Access::WRITE] {
            let weight = cell.owner(access).map_or(0, |rule| spec.rules[rule].weight);
            if weight == 0 {
                continue;
            }
            let cell = MsrRange::new(cell.first, last).expect("cells start at rising indices");
            let mut left = vec![cell];
            for (range, total) in ranges.iter().zip(&mut weights) {
                if range.access().contains(access) {
                    let decided = take(&mut left, range.span());
                    *total = total.saturating_add(decided.saturating_mul(u64::from(weight)));
                }
            }
        }
    }
    weights
}

/// Takes `span` out of `left` and returns how many indices that were.
fn take(left: &mut Vec<MsrRange>, span: MsrRange) -> u64 {
    let mut taken = 0;
    for part in core::mem::take(left) {
        let Some(both) = part.intersection(span) else {
            left.push(part);
            continue;
        };
        taken += both.len();
        let below = both.first().checked_sub(1);
        let above = both.last().checked_add(1);
        left.extend(below.and_then(|last| MsrRange::new(part.first(), last).ok()));
        left.extend(above.and_then(|first| MsrRange::new(first, part.last()).ok()));
    }
    taken
}
