//! What ranges must be there for: the accesses whose verdict differs from the default.

use alloc::vec::Vec;

use super::Geometry;
use crate::{Access, Verdict, access_map::AccessMap};

/// The kinds of access of a filter range, and of the deviations that a range of just these kinds
/// serves alone. The three play symmetric parts: a deviation is served by a range of its own colour,
/// or by ranges of both other colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Colour {
    Read,
    Write,
    Both,
}

impl Colour {
    pub(super) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Both];

    /// The other two.
    pub(super) fn others(self) -> [Self; 2] {
        match self {
            Self::Read => [Self::Write, Self::Both],
            Self::Write => [Self::Read, Self::Both],
            Self::Both => [Self::Read, Self::Write],
        }
    }

    /// The colour of an access set, unless it is empty.
    pub(super) fn of(access: Access) -> Option<Self> {
        match (
            access.contains(Access::READ),
            access.contains(Access::WRITE),
        ) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Read),
            (false, true) => Some(Self::Write),
            (false, false) => None,
        }
    }

    pub(super) fn access(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::WRITE,
            Self::Both => Access::all(),
        }
    }
}

/// Consecutive indices, both ends included, that deviate in the same kinds of access. In 64 bits, so
/// that one past the end is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) colour: Colour,
}

/// The deviations of a map from a default.
pub(super) struct Demand {
    pub(super) default: Verdict,
    /// In rising order, without the unfiltered indices, which may get any verdict, and the top one,
    /// which no range can serve.
    pub(super) runs: Vec<Run>,
    /// The kinds of access in which the top index deviates.
    pub(super) top: Access,
}

impl Demand {
    pub(super) fn new(map: &AccessMap, default: Verdict, geometry: &Geometry) -> Self {
        let deviation = |allowed: Access| match default {
            Verdict::Allow => !allowed,
            Verdict::Deny => allowed,
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut push = |first: u64, last: u64, colour| {
            if first <= last {
                runs.push(Run {
                    first,
                    last,
                    colour,
                });
            }
        };
        let top = u64::from(geometry.top);
        for (range, allowed) in map.iter() {
            let Some(colour) = Colour::of(deviation(allowed)) else {
                continue;
            };
            let (first, last) = (u64::from(range.first()), u64::from(range.last()));
            let last = last.min(top.saturating_sub(1));
            match geometry.unfiltered {
                Some(hole) if range.intersection(hole).is_some() => {
                    let (from, to) = (u64::from(hole.first()), u64::from(hole.last()));
                    if first < from {
                        push(first, last.min(from - 1), colour);
                    }
                    push(first.max(to + 1), last, colour);
                }
                _ => push(first, last, colour),
            }
        }
        let filtered = geometry
            .unfiltered
            .is_none_or(|hole| !hole.contains(geometry.top));
        let top = if filtered {
            deviation(map.at(geometry.top))
        } else {
            Access::empty()
        };
        Self { default, runs, top }
    }

    /// A number of ranges without which no filter serves the demand, found without a search: each
    /// range serves at most so many indices.
    pub(super) fn at_least(&self, max_msrs: u32) -> u64 {
        let indices: u64 = self.runs.iter().map(|run| run.last - run.first + 1).sum();
        indices.div_ceil(u64::from(max_msrs))
    }
}
