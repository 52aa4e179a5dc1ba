//! Filters as sets of allowed accesses.
//!
//! x2APIC registers are allowed by every filter and belong to every set; what these operations
//! return is about the other MSRs.

use alloc::vec::Vec;

use crate::{
    Access, CompileError, FilterSpec, MsrFilter, MsrRange, Rule, Verdict, access_map::AccessMap,
    resolve::resolve,
};

/// MSRs whose verdict two filters disagree on; see [`MsrFilter::diff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The MSRs.
    pub range: MsrRange,
    /// The kinds of access.
    pub access: Access,
    /// The verdict of the filter asked.
    pub from: Verdict,
    /// The verdict of the other.
    pub to: Verdict,
}

impl MsrFilter {
    /// The filter that allows what this one denies, and denies what it allows.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where no filter that KVM accepts means that, as for the other operations here.
    pub fn complement(&self) -> Result<Self, CompileError> {
        let map = AccessMap::of_filter(self).map(|allowed| !allowed);
        map.compile(self.default_verdict().opposite())
    }

    /// The filter that allows what either of the two allows.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where no filter that KVM accepts means that.
    pub fn union(&self, other: &Self) -> Result<Self, CompileError> {
        self.combine(other, |a, b| a | b)
    }

    /// The filter that allows what both allow.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where no filter that KVM accepts means that.
    pub fn intersection(&self, other: &Self) -> Result<Self, CompileError> {
        self.combine(other, |a, b| a & b)
    }

    /// The filter that allows what this one allows and `other` denies.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where no filter that KVM accepts means that.
    pub fn difference(&self, other: &Self) -> Result<Self, CompileError> {
        self.combine(other, |a, b| a & !b)
    }

    fn combine(
        &self,
        other: &Self,
        allowed: impl Fn(Access, Access) -> Access,
    ) -> Result<Self, CompileError> {
        let (a, b) = (AccessMap::of_filter(self), AccessMap::of_filter(other));
        let steps = a
            .zip(&b)
            .map(|(range, a, b)| (range.first(), allowed(a, b)));
        AccessMap::from_steps(steps).compile(self.default_verdict())
    }

    /// Whether the two give every access the same verdict, however their ranges are laid out.
    pub fn same_meaning(&self, other: &Self) -> bool {
        AccessMap::of_filter(self) == AccessMap::of_filter(other)
    }

    /// The accesses whose verdict changes when `other` takes the place of this filter, by rising index.
    /// Kinds of access that change alike share an entry.
    pub fn diff(&self, other: &Self) -> Vec<Change> {
        let (a, b) = (AccessMap::of_filter(self), AccessMap::of_filter(other));
        // Steps that differ in what stays the same, and not in what changes, belong together.
        let changes = a
            .zip(&b)
            .map(|(range, a, b)| (range.first(), (a - b, b - a)));
        let mut steps: Vec<_> = changes.collect();
        steps.dedup_by_key(|(_, change)| *change);
        let mut diff = Vec::new();
        for (i, (first, (lost, gained))) in steps.iter().enumerate() {
            let last = steps.get(i + 1).map_or(u32::MAX, |(next, _)| next - 1);
            let range = MsrRange::new(*first, last).expect("steps start at rising indices");
            for (access, from) in [(*lost, Verdict::Allow), (*gained, Verdict::Deny)] {
                if !access.is_empty() {
                    diff.push(Change {
                        range,
                        access,
                        from,
                        to: from.opposite(),
                    });
                }
            }
        }
        diff
    }

    /// The filter's default, and a rule for every range of MSRs that gets another verdict; no two rules
    /// speak of the same access, and none of x2APIC. It compiles to a filter of the same meaning.
    pub fn to_spec(&self) -> FilterSpec {
        let default = self.default_verdict();
        let x2apic = MsrRange::X2APIC;
        let rules = AccessMap::of_filter(self);
        let rules = rules.iter().flat_map(|(range, allowed)| {
            let access = match default {
                Verdict::Allow => !allowed,
                Verdict::Deny => allowed,
            };
            let below = MsrRange::new(range.first(), range.last().min(x2apic.first() - 1));
            let above = MsrRange::new(range.first().max(x2apic.last() + 1), range.last());
            let parts = match range.intersection(x2apic) {
                Some(_) => [below.ok(), above.ok()],
                None => [Some(range), None],
            };
            parts
                .into_iter()
                .flatten()
                .filter(move |_| !access.is_empty())
                .map(move |part| Rule::new(part, access, default.opposite()))
        });
        FilterSpec {
            default,
            rules: rules.collect(),
        }
    }
}

impl AccessMap {
    /// What `filter` means, x2APIC included.
    fn of_filter(filter: &MsrFilter) -> Self {
        let mut spec = FilterSpec::new(filter.default_verdict()).rule(Rule::new(
            MsrRange::X2APIC,
            Access::all(),
            Verdict::Allow,
        ));
        for range in filter.ranges() {
            let runs = range.runs();
            spec.rules
                .extend(runs.map(|(part, verdict)| Rule::new(part, range.access(), verdict)));
        }
        Self::of_cells(&spec, &resolve(&spec))
    }

    fn map(&self, f: impl Fn(Access) -> Access) -> Self {
        Self::from_steps(
            self.iter()
                .map(|(range, allowed)| (range.first(), f(allowed))),
        )
    }

    /// What two maps allow, over the ranges in which neither changes.
    fn zip(&self, other: &Self) -> impl Iterator<Item = (MsrRange, Access, Access)> {
        let ours = self.iter();
        ours.flat_map(|(range, a)| other.within(range).map(move |(part, b)| (part, a, b)))
    }
}

#[cfg(test)]
mod tests;
