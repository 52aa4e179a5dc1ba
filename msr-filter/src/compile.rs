//! From rules to the filter that means the same.

use alloc::vec::Vec;

use crate::{Access, FilterRange, FilterSpec, MsrFilter, MsrRange, Verdict};

/// Why rules cannot be expressed as a KVM filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The rules need more ranges than KVM takes.
    #[error("the rules need {needed} filter ranges, and KVM takes at most 16")]
    TooManyRanges {
        /// How many ranges the rules need.
        needed: u64,
    },
    /// No rule is left to write down, and KVM refuses a default of deny without any range.
    #[error("KVM refuses a filter that denies by default and has no range")]
    DenyWithoutRanges,
}

impl FilterSpec {
    /// Compiles the rules into the filter KVM gets.
    ///
    /// # Errors
    ///
    /// [`CompileError`] where no filter that KVM accepts means exactly the same.
    pub fn compile(&self) -> Result<MsrFilter, CompileError> {
        // Every index at which some verdict can change.
        let mut cuts: Vec<u64> = self
            .rules
            .iter()
            .flat_map(|r| [u64::from(r.range.first()), u64::from(r.range.last()) + 1])
            .chain([0, 0x800, 0x900])
            .filter(|c| *c <= u64::from(u32::MAX))
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut ranges: Vec<FilterRange> = Vec::new();
        let mut needed = 0u64;
        for access in [Access::READ, Access::WRITE] {
            let mut open: Option<MsrRange> = None;
            for (i, cut) in cuts.iter().enumerate() {
                let first = *cut as u32;
                let last = cuts.get(i + 1).map_or(u32::MAX, |next| (*next - 1) as u32);
                if MsrRange::X2APIC.contains(first) || self.verdict(first, access) == self.default {
                    continue;
                }
                let mut at = u64::from(first);
                while at <= u64::from(last) {
                    let start = open.map_or(at as u32, MsrRange::first);
                    if at - u64::from(start) >= u64::from(FilterRange::MAX_MSRS) {
                        needed += 1;
                        if needed <= 16 {
                            ranges.extend(open.map(|span| self.fill(span, access)));
                        }
                        open = None;
                        continue;
                    }
                    let end = u64::from(last)
                        .min(u64::from(start) + u64::from(FilterRange::MAX_MSRS) - 1);
                    open = MsrRange::new(start, end as u32).ok();
                    at = end + 1;
                }
            }
            if let Some(span) = open {
                needed += 1;
                if needed <= 16 {
                    ranges.push(self.fill(span, access));
                }
            }
        }
        if needed > MsrFilter::MAX_RANGES as u64 {
            return Err(CompileError::TooManyRanges { needed });
        }
        if ranges.is_empty() && self.default == Verdict::Deny {
            ranges.push(FilterRange::denying(MsrRange::single(0), Access::all()));
        }
        Ok(MsrFilter::from_parts(self.default, ranges))
    }

    fn fill(&self, span: MsrRange, access: Access) -> FilterRange {
        let mut range = FilterRange::denying(span, access);
        for index in span.first()..=span.last() {
            range.set(index, self.verdict(index, access));
        }
        range
    }
}
