//! The ranges of a filter before they are filled in: default, spans and colours.

use alloc::vec::Vec;

use super::{
    Geometry,
    cover::{Cover, KEPT, cover},
    demand::{Colour, Demand, Run},
    tighten::tighten,
};
use crate::{Access, MsrRange, Verdict, access_map::AccessMap};

/// A filter without its bitmaps.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) default: Verdict,
    /// Ranges of one kind of access first, then those of both, each by rising index.
    pub(crate) ranges: Vec<(MsrRange, Access)>,
}

/// Why there is no plan.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// Too many ranges would be needed: how many, and the first of them.
    TooMany {
        needed: u64,
        /// The default of the filter that they are for.
        default: Verdict,
        clusters: Vec<(MsrRange, Access)>,
    },
    /// The top index deviates from the default that the filter would need, in these kinds of access.
    Top { default: Verdict, access: Access },
}

/// Plans the smallest filter that means `map`.
///
/// Both defaults are tried. Within KVM's limits one of them at most is feasible, since ranges reach
/// only a fraction of the indices, so that trying the other one costs no search. Where both are
/// equally good, `preferred` wins.
pub(crate) fn plan(
    map: &AccessMap,
    preferred: Verdict,
    geometry: &Geometry,
) -> Result<Plan, PlanError> {
    let demands =
        [preferred, preferred.opposite()].map(|default| Demand::new(map, default, geometry));
    let max_ranges = geometry.max_ranges as u64;
    let mut best: Option<Plan> = None;
    for demand in &demands {
        if !demand.top.is_empty() || demand.at_least(geometry.max_msrs) > max_ranges {
            continue;
        }
        let cover = cover(&demand.runs, geometry.max_msrs);
        if cover.needed > max_ranges {
            continue;
        }
        let plan = Plan::new(demand, &cover, geometry);
        if best.as_ref().is_none_or(|best| plan.size() < best.size()) {
            best = Some(plan);
        }
    }
    best.ok_or_else(|| error(&demands, geometry))
}

impl Plan {
    fn new(demand: &Demand, cover: &Cover, geometry: &Geometry) -> Self {
        let spans = tighten(&demand.runs, &cover.ranges, geometry.max_msrs);
        let single = [Colour::Read, Colour::Write];
        let mut ranges: Vec<_> = single
            .iter()
            .flat_map(|colour| spans[*colour as usize].iter().map(|s| (range(*s), *colour)))
            .map(|(range, colour)| (range, colour.access()))
            .collect();
        ranges.sort_unstable();
        let both = spans[Colour::Both as usize].iter();
        ranges.extend(both.map(|s| (range(*s), Access::all())));
        if ranges.is_empty() && demand.default == Verdict::Deny {
            // KVM takes no default of deny without a range. This one says again what the default
            // says.
            ranges.push((MsrRange::single(0), Access::all()));
        }
        Self {
            default: demand.default,
            ranges,
        }
    }

    /// How many ranges there are and how many indices they span: what is to be smallest.
    fn size(&self) -> (usize, u64) {
        let total = self.ranges.iter().map(|(range, _)| range.len()).sum();
        (self.ranges.len(), total)
    }
}

/// Says what is wrong with the default that is nearer to a solution.
fn error(demands: &[Demand; 2], geometry: &Geometry) -> PlanError {
    let covers = demands
        .each_ref()
        .map(|demand| (cover(&demand.runs, geometry.max_msrs), demand));
    let [(preferred, _), (other, _)] = &covers;
    let (cover, demand) = if other.needed < preferred.needed {
        &covers[1]
    } else {
        &covers[0]
    };
    if cover.needed <= geometry.max_ranges as u64 {
        return PlanError::Top {
            default: demand.default,
            access: demand.top,
        };
    }
    let clusters = cover.ranges.iter().take(KEPT as usize);
    PlanError::TooMany {
        needed: cover.needed,
        default: demand.default,
        clusters: clusters
            .map(|(colour, first)| {
                let last = last_served(&demand.runs, *colour, *first, geometry.max_msrs);
                (range((*first, last)), colour.access())
            })
            .collect(),
    }
}

/// The last index that a full range of `colour` from `first` is there for. One of its own colour, if
/// there is any; it helps to serve the others only together with another range.
fn last_served(runs: &[Run], colour: Colour, first: u64, max_msrs: u32) -> u64 {
    let end = first + u64::from(max_msrs) - 1;
    let from = runs.partition_point(|run| run.last < first);
    let until = runs.partition_point(|run| run.first <= end);
    let within = &runs[from..until];
    let own = within.iter().rfind(|run| run.colour == colour);
    let last = own.or(within.last()).map_or(first, |run| run.last);
    last.min(end)
}

fn range((first, last): (u64, u64)) -> MsrRange {
    let bound = |index| u32::try_from(index).expect("demands lie below the top index");
    MsrRange::new(bound(first), bound(last)).expect("covers have no empty range")
}
