//! The fewest ranges that serve a demand.

use alloc::{vec, vec::Vec};

use super::demand::{Colour, Run};

/// How many ranges of a cover are kept, for the filter or for the message that it does not fit.
pub(super) const KEPT: u64 = 64;

/// A smallest cover: how many ranges it has and the first of them.
pub(super) struct Cover {
    /// The fewest ranges there can be.
    pub(super) needed: u64,
    /// The colour and the first index of the first [`KEPT`] ranges, each spanning all that a range can.
    pub(super) ranges: Vec<(Colour, u64)>,
}

/// Finds a smallest cover of `runs` by ranges of up to `max_msrs` indices.
///
/// The sweep described in [`super`]: it goes from one unserved index to the next with all the states
/// that may still turn out best.
pub(super) fn cover(runs: &[Run], max_msrs: u32) -> Cover {
    cover_shortened(runs, max_msrs, KEPT + 16)
}

/// As [`cover`], with runs longer than `keep` spans of `max_msrs` indices shortened to that.
pub(super) fn cover_shortened(runs: &[Run], max_msrs: u32, keep: u64) -> Cover {
    let span = u64::from(max_msrs);
    let (runs, skipped) = shorten(runs, span, keep);
    let mut sweep = Sweep {
        runs: &runs,
        span,
        opened: Vec::new(),
    };
    let mut start = State {
        run: 0,
        at: 0,
        until: [0; 3],
        cost: 0,
        opened: None,
    };
    sweep.advance(&mut start);
    let mut states = vec![start];
    let mut next = Vec::new();
    // Each round moves the states at the lowest unserved index past it.
    while let Some(at) = states.iter().map(|s| s.at).min().filter(|at| *at != DONE) {
        for state in states.drain(..) {
            if state.at == at {
                sweep.serve(&state, &mut next);
            } else {
                next.push(state);
            }
        }
        prune(&mut next);
        core::mem::swap(&mut states, &mut next);
    }
    // Every state is done, and the cheapest is a smallest cover.
    let best = states.iter().min_by_key(|s| s.cost);
    let best = best.expect("pruning keeps the cheapest state");
    Cover {
        needed: best.cost + skipped,
        ranges: sweep.trace(best.opened),
    }
}

/// The unserved index of a state that has none left.
const DONE: u64 = u64::MAX;

/// A way to serve everything below `at`.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The run that holds `at`.
    run: usize,
    /// The first index not served, or [`DONE`].
    at: u64,
    /// For each colour, one past the last index its ranges cover; 0 where that is not above `at`.
    until: [u64; 3],
    /// How many ranges there are so far.
    cost: u64,
    /// The last of them that is kept, in [`Sweep::opened`].
    opened: Option<usize>,
}

impl State {
    /// Whether whatever completes `other` completes this state as well, at no more cost.
    fn dominates(&self, other: &Self) -> bool {
        self.cost <= other.cost
            && self.at >= other.at
            && self
                .until
                .iter()
                .zip(other.until)
                .all(|(a, b)| *a >= b || b <= self.at)
    }
}

/// Drops states that others make needless.
fn prune(states: &mut Vec<State>) {
    let Some(cheapest) = states.iter().map(|s| s.cost).min() else {
        return;
    };
    // The cheapest state can open two colours, which serve everything up to where all that any other
    // state has open now has ended. One that has paid for two more by now gains nothing over that.
    states.retain(|s| s.cost < cheapest + 2);
    let mut kept = 0;
    for i in 0..states.len() {
        let state = states[i];
        let needless = states[..kept].iter().any(|s| s.dominates(&state))
            || states[i + 1..]
                .iter()
                .any(|s| s.dominates(&state) && !state.dominates(s));
        if !needless {
            states[kept] = state;
            kept += 1;
        }
    }
    states.truncate(kept);
}

struct Sweep<'a> {
    runs: &'a [Run],
    span: u64,
    /// The ranges that some state has opened, each with the one before it in that state.
    opened: Vec<(Colour, u64, Option<usize>)>,
}

impl Sweep<'_> {
    /// Adds to `states` the ways in which `state` can serve its unserved index. At most one colour
    /// can be open there: with its own or with two the index would be served.
    fn serve(&mut self, state: &State, states: &mut Vec<State>) {
        let own = self.runs[state.run].colour;
        states.push(self.open(state, &[own]));
        let closed = |colour: &Colour| state.until[*colour as usize] <= state.at;
        let [a, b] = own.others();
        states.push(match (closed(&a), closed(&b)) {
            (false, _) => self.open(state, &[b]),
            (_, false) => self.open(state, &[a]),
            _ => self.open(state, &[a, b]),
        });
    }

    fn open(&mut self, state: &State, colours: &[Colour]) -> State {
        let mut opened = *state;
        for colour in colours {
            opened.until[*colour as usize] = state.at + self.span;
            opened.cost += 1;
            if opened.cost <= KEPT {
                self.opened.push((*colour, state.at, opened.opened));
                opened.opened = Some(self.opened.len() - 1);
            }
        }
        self.advance(&mut opened);
        opened
    }

    /// Moves `state` to the first index from `at` on that its open ranges do not serve.
    fn advance(&self, state: &mut State) {
        state.at = loop {
            let Some(run) = self.runs.get(state.run) else {
                break DONE;
            };
            let until = |colour: Colour| state.until[colour as usize];
            let [a, b] = run.colour.others();
            let served = until(run.colour).max(until(a).min(until(b)));
            let at = state.at.max(run.first);
            if served <= run.last {
                break at.max(served);
            }
            state.run += 1;
        };
        for until in &mut state.until {
            if *until <= state.at {
                *until = 0;
            }
        }
    }

    /// The kept ranges up to `last`, in the order in which they were opened.
    fn trace(&self, last: Option<usize>) -> Vec<(Colour, u64)> {
        let mut ranges = Vec::new();
        let mut next = last;
        while let Some((colour, first, before)) = next.map(|i| self.opened[i]) {
            ranges.push((colour, first));
            next = before;
        }
        ranges.reverse();
        ranges
    }
}

/// Takes whole spans out of runs longer than `keep` spans, each of which costs exactly one range of
/// the run's colour, and returns how many. So a rule over the whole index space is counted without
/// walking it. What is kept before the cut is more than the ranges that [`cover`] keeps can reach.
fn shorten(runs: &[Run], span: u64, keep: u64) -> (Vec<Run>, u64) {
    let mut skipped = 0;
    let shortened = runs
        .iter()
        .map(|run| {
            let first = run.first - skipped * span;
            let len = run.last - run.first + 1;
            let cut = (len / span).saturating_sub(keep);
            skipped += cut;
            Run {
                first,
                last: first + (len - cut * span) - 1,
                colour: run.colour,
            }
        })
        .collect();
    (shortened, skipped)
}
