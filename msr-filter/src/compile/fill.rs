//! The bitmaps of a plan.

use alloc::vec::Vec;

use super::plan::Plan;
use crate::{Access, FilterRange, MsrRange, Verdict, access_map::AccessMap};

/// Fills in the ranges of `plan`.
///
/// A range of one kind says of every index it spans what `map` says. A range of both kinds comes after
/// all those, so its bit is read only for the kinds they leave: for reads, unless a READ range spans
/// the index as well, and for writes then. Where neither does, the plan serves the index only if both
/// kinds agree on it.
pub(super) fn fill(plan: &Plan, map: &AccessMap) -> Vec<FilterRange> {
    let readers: Vec<MsrRange> = plan
        .ranges
        .iter()
        .filter(|(_, access)| *access == Access::READ)
        .map(|(span, _)| *span)
        .collect();
    let ranges = plan.ranges.iter().map(|(span, access)| {
        let mut range = FilterRange::denying(*span, *access);
        if *access == Access::all() {
            set_bits(&mut range, *span, Access::READ, map);
            for reader in &readers {
                if let Some(part) = reader.intersection(*span) {
                    set_bits(&mut range, part, Access::WRITE, map);
                }
            }
        } else {
            set_bits(&mut range, *span, *access, map);
        }
        range
    });
    ranges.collect()
}

/// Sets the bits of `part` to what `map` says of `access`; x2APIC, where no bit is read, to 1.
fn set_bits(range: &mut FilterRange, part: MsrRange, access: Access, map: &AccessMap) {
    let verdict = |allowed: bool| {
        if allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    };
    for (step, allowed) in map.within(part) {
        range.set(step, verdict(allowed.contains(access)));
    }
    if let Some(x2apic) = part.intersection(MsrRange::X2APIC) {
        range.set(x2apic, Verdict::Allow);
    }
}
