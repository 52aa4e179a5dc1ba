//! What rules or a filter mean, whatever their form.

use alloc::vec::Vec;

use crate::{Access, FilterSpec, MsrRange, Verdict, resolve::Cell};

/// The allowed kinds of access for every index, as a step function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessMap {
    /// The first index of each step and what is allowed up to the next; the first step is at 0, and
    /// neighbours differ, so that equal maps are equal values.
    steps: Vec<(u32, Access)>,
}

impl AccessMap {
    /// The map of steps that start at the given indices, the first at 0, in rising order.
    pub(crate) fn from_steps(steps: impl IntoIterator<Item = (u32, Access)>) -> Self {
        let mut steps: Vec<_> = steps.into_iter().collect();
        steps.dedup_by_key(|(_, allowed)| *allowed);
        Self { steps }
    }

    /// What `spec` means, given its cells. Here rules on x2APIC count as any others.
    pub(crate) fn of_cells(spec: &FilterSpec, cells: &[Cell]) -> Self {
        let allows = |cell: &Cell, access| {
            let verdict = match cell.owner(access) {
                Some(rule) => spec.rules[rule].verdict,
                None => spec.default,
            };
            match verdict {
                Verdict::Allow => access,
                Verdict::Deny => Access::empty(),
            }
        };
        Self::from_steps(cells.iter().map(|cell| {
            let allowed = allows(cell, Access::READ) | allows(cell, Access::WRITE);
            (cell.first, allowed)
        }))
    }

    /// The steps as ranges with what is allowed there, from index 0 to the last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (MsrRange, Access)> + '_ {
        let lasts = self.steps.iter().skip(1).map(|(first, _)| first - 1);
        self.steps
            .iter()
            .zip(lasts.chain([u32::MAX]))
            .map(|((first, allowed), last)| {
                let range = MsrRange::new(*first, last);
                (range.expect("steps start at rising indices"), *allowed)
            })
    }

    /// The steps that have an index in `span`, cut to it.
    pub(crate) fn within(&self, span: MsrRange) -> impl Iterator<Item = (MsrRange, Access)> + '_ {
        let from = self
            .steps
            .partition_point(|(first, _)| *first <= span.first())
            .saturating_sub(1);
        let until = self
            .steps
            .partition_point(|(first, _)| *first <= span.last());
        (from..until).map(move |i| {
            let (first, allowed) = self.steps[i];
            let last = self.steps.get(i + 1).map_or(u32::MAX, |(next, _)| next - 1);
            let part = MsrRange::new(first.max(span.first()), last.min(span.last()));
            (part.expect("the step meets the span"), allowed)
        })
    }

    /// What is allowed at `index`.
    pub(crate) fn at(&self, index: u32) -> Access {
        let step = self.steps.partition_point(|(first, _)| *first <= index) - 1;
        self.steps[step].1
    }
}
