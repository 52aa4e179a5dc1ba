//! Why rules don't fit, and what to do about it.

use alloc::{collections::BTreeSet, vec::Vec};
use core::fmt;

use super::{
    Geometry,
    plan::{PlanError, plan},
};
use crate::{
    Access, FilterSpec, MsrRange, Verdict,
    access_map::AccessMap,
    resolve::{Cell, resolve},
};

/// Why rules cannot be expressed as a KVM filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The rules need more ranges than KVM takes.
    #[error(
        "the rules need {needed} filter ranges, and KVM takes at most 16{}{}",
        List("; one each for", clusters),
        List("; fewer without", suggestions)
    )]
    TooManyRanges {
        /// The fewest ranges that express the rules.
        needed: u64,
        /// What needs a range each, by rising index: those of a smallest filter, or the first 64 of
        /// them.
        clusters: Vec<Cluster>,
        /// What rules to do without for fewer ranges, those that cost the fewest rules first. Not every
        /// way there is: up to 16, and empty where filters were combined and there are no rules.
        suggestions: Vec<Suggestion>,
    },
    /// The last MSR must differ from the filter's default, and KVM cannot do that: it computes the end of
    /// a range in 32 bits, so that no range reaches 0xffffffff.
    #[error(
        "MSR 0xffffffff always gets the filter's default, which must be {default} for the other rules: no \
         rule can say otherwise for {access} there"
    )]
    LastMsr {
        /// The default that the rest of the rules need.
        default: Verdict,
        /// The kinds of access that the rules decide differently.
        access: Access,
    },
}

/// MSRs that one range of a filter takes care of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// From the first to the last of them.
    pub span: MsrRange,
    /// The kinds of access of the range.
    pub access: Access,
}

impl fmt::Display for Cluster {
    /// Writes `0x600-0x63f rw`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.span, self.access)
    }
}

/// Rules without which a filter needs fewer ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// Their positions in [`FilterSpec::rules`], rising.
    pub rules: Vec<usize>,
    /// How many ranges the other rules need, alone.
    pub needed: u64,
}

impl fmt::Display for Suggestion {
    /// Writes `rules 3, 4 (leaves 17)`, with positions that count from 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.rules.len() == 1 {
            "rule"
        } else {
            "rules"
        })?;
        for (i, rule) in self.rules.iter().enumerate() {
            write!(f, "{} {rule}", if i == 0 { "" } else { "," })?;
        }
        write!(f, " (leaves {})", self.needed)
    }
}

/// Items in a message, unless there are none.
struct List<'a, T>(&'a str, &'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // More than a screenful helps nobody.
        const SHOWN: usize = 20;
        let Self(lead, items) = self;
        for (i, item) in items.iter().take(SHOWN).enumerate() {
            write!(f, "{} {item}", if i == 0 { lead } else { "," })?;
        }
        match items.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl From<PlanError> for CompileError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Top { default, access } => Self::LastMsr { default, access },
            PlanError::TooMany {
                needed, clusters, ..
            } => Self::TooManyRanges {
                needed,
                clusters: clusters
                    .into_iter()
                    .map(|(span, access)| Cluster { span, access })
                    .collect(),
                suggestions: Vec::new(),
            },
        }
    }
}

/// How many suggestions are tried and made.
const MAX_SUGGESTIONS: usize = 16;

/// The error for `error` with suggestions of rules to remove: for the clusters that fewest rules
/// make, those rules, if the others indeed need fewer ranges.
pub(super) fn explain(spec: &FilterSpec, cells: &[Cell], error: PlanError) -> CompileError {
    let deviating = match &error {
        PlanError::TooMany { default, .. } | PlanError::Top { default, .. } => default.opposite(),
    };
    let mut error = CompileError::from(error);
    if let CompileError::TooManyRanges {
        needed,
        clusters,
        suggestions,
    } = &mut error
    {
        let mut culprits: Vec<Vec<usize>> = clusters
            .iter()
            .map(|cluster| makers(cluster, spec, cells, deviating))
            .filter(|rules| !rules.is_empty())
            .collect();
        culprits.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        culprits.dedup();
        culprits.truncate(MAX_SUGGESTIONS);
        suggestions.extend(culprits.into_iter().filter_map(|rules| {
            let left = needed_without(spec, &rules);
            (left < *needed).then_some(Suggestion {
                rules,
                needed: left,
            })
        }));
    }
    error
}

/// The rules that give accesses in `cluster` the verdict `deviating`.
fn makers(cluster: &Cluster, spec: &FilterSpec, cells: &[Cell], deviating: Verdict) -> Vec<usize> {
    let from = cells.partition_point(|cell| cell.first <= cluster.span.first());
    let until = cells.partition_point(|cell| cell.first <= cluster.span.last());
    let mut rules = BTreeSet::new();
    for cell in &cells[from.saturating_sub(1)..until] {
        for access in [Access::READ, Access::WRITE] {
            let owner = cell
                .owner(access)
                .filter(|_| cluster.access.contains(access));
            rules.extend(owner.filter(|rule| spec.rules[*rule].verdict == deviating));
        }
    }
    rules.into_iter().collect()
}

/// How many ranges the rules need without some of them, whose positions rise.
fn needed_without(spec: &FilterSpec, without: &[usize]) -> u64 {
    let rules = spec.rules.iter().enumerate();
    let spec = FilterSpec {
        default: spec.default,
        rules: rules
            .filter(|(i, _)| without.binary_search(i).is_err())
            .map(|(_, rule)| *rule)
            .collect(),
    };
    let map = AccessMap::of_cells(&spec, &resolve(&spec));
    match plan(&map, spec.default, &Geometry::KVM) {
        Ok(plan) => plan.ranges.len() as u64,
        Err(PlanError::TooMany { needed, .. }) => needed,
        // The last MSR is then what is in the way.
        Err(PlanError::Top { .. }) => u64::MAX,
    }
}
