//! From rules to the smallest filter that means the same.
//!
//! # Which filters mean the same
//!
//! Fix the filter's default. An index *deviates* if reads, writes or both must get another verdict than
//! the default. KVM takes the first range that spans the index and has the kind of access, so for
//! any order of the ranges: where reads alone deviate, a READ range spans the index, or a READ|WRITE range
//! does and a WRITE range keeps it from deciding writes too. Writes alone are the mirror image, and
//! where both deviate it takes a READ|WRITE range or one of each. In short, a deviation is served by a
//! range of its own colour (READ, WRITE, or both) or by ranges of both other colours. Conversely, with
//! the ranges of one kind put before those of both kinds, every set of ranges that serves all deviations
//! has bitmaps that make it mean the rules, and a range that spans more than it must does no harm.
//!
//! # The fewest ranges
//!
//! In a smallest such set, push each range up until its first index would go unserved without it. That
//! ends, and then ranges start only at indices that those below leave unserved: there, either one
//! of the index's own colour, or the ones that make both other colours span it. So a sweep from one
//! unserved index to the next that tries both, and keeps as its state how far each colour
//! reaches, finds the minimum. Two colours together serve everything, hence a state that has paid
//! for two ranges more than the cheapest can be dropped; few states are left, and the sweep is
//! linear in the number of runs of deviating indices. x2APIC indices never deviate, because KVM
//! asks no filter about them.
//!
//! Both defaults are tried, and the smaller result wins; 16 ranges of 12,288 MSRs cannot serve all that
//! deviates from the wrong one.
//!
//! # Ties
//!
//! Among the smallest sets, total bitmap length decides, then the weights of the rules. The length is
//! minimal where all deviations are of one colour (rules for `rw` only, or for one kind only). Where
//! colours mix, no other choice of the ranges of any one colour is shorter, but another mix of colours
//! may be. With weights, the order of ranges is the one in which weighted accesses walk past the
//! fewest ranges, among the orders that keep each range of one kind before those of both kinds that
//! it overlaps. Without, ranges of one kind come first, each group by rising index.

mod cover;
mod demand;
mod error;
mod fill;
mod geometry;
mod order;
mod pack;
pub(crate) mod plan;
#[cfg(test)]
mod tests;
mod tighten;

pub use self::error::{Cluster, CompileError, Suggestion};
pub(crate) use self::geometry::Geometry;
use self::{fill::fill, plan::plan};
use crate::{FilterSpec, MsrFilter, Verdict, access_map::AccessMap, resolve::resolve};

impl FilterSpec {
    /// Compiles the rules into the smallest filter that KVM accepts and that means exactly the same,
    /// for every index and kind of access outside x2APIC. The time is near linear in the number of rules.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where there is no such filter.
    pub fn compile(&self) -> Result<MsrFilter, CompileError> {
        let cells = resolve(self);
        let map = AccessMap::of_cells(self, &cells);
        let plan = plan(&map, self.default, &Geometry::KVM)
            .map_err(|error| error::explain(self, &cells, error))?;
        let mut ranges = fill(&plan, &map);
        if self.rules.iter().any(|rule| rule.weight > 0) {
            order::by_weight(&mut ranges, self, &cells);
        }
        Ok(MsrFilter::from_parts(plan.default, ranges))
    }
}

impl AccessMap {
    /// The smallest filter that means this map outside x2APIC.
    pub(crate) fn compile(&self, preferred: Verdict) -> Result<MsrFilter, CompileError> {
        let plan = plan(self, preferred, &Geometry::KVM).map_err(CompileError::from)?;
        Ok(MsrFilter::from_parts(plan.default, fill(&plan, self)))
    }
}
