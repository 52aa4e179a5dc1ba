//! The shortest bitmaps among the smallest covers.

use alloc::vec::Vec;

use super::{
    demand::{Colour, Run},
    pack::pack,
};

/// Inclusive bounds of a range.
pub(super) type Span = (u64, u64);

/// The ranges of a cover by colour, each list in rising order and without overlap.
pub(super) type Spans = [Vec<Span>; 3];

/// Moves and trims the ranges of a smallest cover so that they span fewer indices in total.
///
/// Colour by colour, all ranges of one colour are chosen anew for what the other two leave to
/// them, by [`pack`], until that gains nothing. With one colour in play this is the optimum; with more
/// it is a cover that no new choice within one colour improves.
pub(super) fn tighten(runs: &[Run], cover: &[(Colour, u64)], max_msrs: u32) -> Spans {
    let mut spans: Spans = [const { Vec::new() }; 3];
    for (colour, first) in cover {
        spans[*colour as usize].push((*first, first + u64::from(max_msrs) - 1));
    }
    let mut total = u64::MAX;
    loop {
        for colour in Colour::ALL {
            if !spans[colour as usize].is_empty() {
                let left = left_to(colour, runs, &spans);
                spans[colour as usize] = pack(&left, max_msrs);
            }
        }
        let now = spans.iter().flatten().map(|(a, b)| b - a + 1).sum();
        let one_colour = spans.iter().filter(|spans| !spans.is_empty()).count() < 2;
        if one_colour || now >= total {
            return spans;
        }
        total = now;
    }
}

/// What must be covered by ranges of `colour`, given those of the others.
fn left_to(colour: Colour, runs: &[Run], spans: &Spans) -> Vec<Span> {
    let [a, b] = colour.others();
    let both = meet(&spans[a as usize], &spans[b as usize]);
    let mut left = Vec::with_capacity(runs.len());
    for run in runs {
        // A deviation of another colour that its own ranges don't cover relies on this colour and
        // the third one.
        let served = if run.colour == colour {
            &both
        } else {
            &spans[run.colour as usize]
        };
        subtract((run.first, run.last), served, &mut left);
    }
    left
}

/// The indices that lie in a span of `a` and in one of `b`.
fn meet(a: &[Span], b: &[Span]) -> Vec<Span> {
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
    let mut both: Vec<Span> = pairs
        .map(|(x, y)| (x.0.max(y.0), x.1.min(y.1)))
        .filter(|(first, last)| first <= last)
        .collect();
    both.sort_unstable();
    both
}

/// Appends to `left` what of `span` lies outside `served`, which is sorted and without overlap.
fn subtract(span: Span, served: &[Span], left: &mut Vec<Span>) {
    let (mut first, last) = span;
    for (from, to) in served {
        if *to < first {
            continue;
        }
        if *from > last {
            break;
        }
        if first < *from {
            left.push((first, from - 1));
        }
        first = to + 1;
    }
    if first <= last {
        left.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_leaves_the_parts_outside() {
        let mut left = Vec::new();
        subtract((10, 30), &[(0, 9), (12, 13), (20, 25), (31, 40)], &mut left);
        subtract((50, 60), &[(45, 55)], &mut left);
        subtract((70, 80), &[(70, 80)], &mut left);
        assert_eq!(left, [(10, 11), (14, 19), (26, 30), (56, 60)]);
    }
}
