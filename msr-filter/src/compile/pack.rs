//! Covering spans by the fewest ranges, and among those by the shortest: the case of one colour.

use alloc::{collections::VecDeque, vec, vec::Vec};

use super::tighten::Span;

/// Covers `spans`, which rise and don't overlap, by the fewest ranges of up to `max_msrs` indices that do
/// so, and among those by ranges with the fewest indices in total.
///
/// Only ranges of two shapes are tried: up to the end of a span, and of full length with the next
/// one starting right behind, inside a span. Any other end can be moved up, and the start behind it
/// with it, at the same count and total. From the last start to the first, the best continuation is
/// the best among a window of span starts, which only moves down, so that this is linear.
pub(super) fn pack(spans: &[Span], max_msrs: u32) -> Vec<Span> {
    let length = u64::from(max_msrs);
    let starts = starts(spans, length);
    let mut plans: Vec<Plan> = vec![Plan::default(); starts.len()];
    // Spans by number, as places where a range may start; `spans.len()` for none. The first
    // spans on the left, the best ones on the right.
    let mut window: VecDeque<(Key, usize)> = VecDeque::new();
    // Where each span's start is in `starts`, for spans seen so far.
    let mut plan_of = vec![0; spans.len()];
    let mut entering = spans.len();
    for (at, start) in starts.iter().enumerate().rev() {
        let end = start.first + length - 1;
        // The spans behind this start may follow it, where the ones before them end in time.
        while entering > start.span {
            let last = spans[entering - 1].1;
            let key = match plan_of.get(entering) {
                Some(plan) => (plans[*plan].ranges, last + plans[*plan].total),
                None => (0, last),
            };
            while window.front().is_some_and(|(other, _)| *other >= key) {
                window.pop_front();
            }
            window.push_front((key, entering));
            entering -= 1;
        }
        while window
            .back()
            .is_some_and(|(_, next)| spans[next - 1].1 > end)
        {
            window.pop_back();
        }
        let whole = window.back().map(|((ranges, total), next)| Plan {
            ranges: ranges + 1,
            total: total + 1 - start.first,
            last: spans[next - 1].1,
            next: plan_of.get(*next).copied(),
        });
        let cut = start.cuts.then(|| {
            let next = at + starts[at..].partition_point(|next| next.first <= end);
            Plan {
                ranges: plans[next].ranges + 1,
                total: plans[next].total + length,
                last: end,
                next: Some(next),
            }
        });
        plans[at] = [whole, cut]
            .into_iter()
            .flatten()
            .min_by_key(|plan| (plan.ranges, plan.total))
            .expect("a range ends at a span's end or inside one, where `starts` continues");
        if start.first == spans[start.span].0 {
            plan_of[start.span] = at;
        }
    }

    let mut ranges = Vec::new();
    let mut next = (!starts.is_empty()).then_some(0);
    while let Some(at) = next {
        ranges.push((starts[at].first, plans[at].last));
        next = plans[at].next;
    }
    ranges
}

/// What comparing continuations goes by: the ranges from there on, and their total length plus the
/// end of the range before.
type Key = (u64, u64);

/// The best way to cover everything from a start on.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    ranges: u64,
    total: u64,
    /// Where the first of the ranges ends.
    last: u64,
    /// The start of the one after it.
    next: Option<usize>,
}

/// Where a range may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Start {
    first: u64,
    /// The number of the span it lies in.
    span: usize,
    /// Whether a range of full length from here ends inside a span, so that the next may start right
    /// behind it.
    cuts: bool,
}

/// The starts of all spans, and those inside spans that follow a range of full length.
fn starts(spans: &[Span], length: u64) -> Vec<Start> {
    let mut starts = Vec::with_capacity(spans.len());
    // The first span that ends at or behind the index after a full range; it rises with the range.
    let mut ahead = 0;
    for (number, (first, _)) in spans.iter().enumerate() {
        let (mut first, mut span) = (*first, number);
        while ahead < spans.len() && spans[ahead].1 < first + length {
            ahead += 1;
        }
        let mut holder = ahead;
        loop {
            let behind = first + length;
            let cuts = spans.get(holder).is_some_and(|(from, _)| *from < behind);
            starts.push(Start { first, span, cuts });
            if !cuts {
                break;
            }
            (first, span) = (behind, holder);
            holder += spans[holder..].partition_point(|(_, to)| *to < first + length);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}
