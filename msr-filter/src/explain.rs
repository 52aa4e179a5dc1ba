//! Who decides an access, and how.

use core::fmt;

use crate::{Access, FilterSpec, MsrFilter, MsrRange, Verdict};

/// What in a filter, or in the rules it came from, decides an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// Nothing: KVM asks no filter about x2APIC registers and allows them.
    X2Apic,
    /// The range at this position in [`MsrFilter::ranges`].
    Range(usize),
    /// The rule at this position in [`FilterSpec::rules`].
    Rule(usize),
    /// The default, because no range or rule speaks of the access.
    Default,
}

impl fmt::Display for DecidedBy {
    /// Writes `range 3`, with positions that count from 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X2Apic => f.write_str("x2APIC, which KVM never filters"),
            Self::Range(range) => write!(f, "range {range}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::Default => f.write_str("the default"),
        }
    }
}

impl MsrFilter {
    /// What KVM decides for one access, as [`verdict`](Self::verdict) says, and what makes it decide so.
    pub fn explain(&self, index: u32, access: Access) -> (Verdict, DecidedBy) {
        if MsrRange::X2APIC.contains(index) {
            return (Verdict::Allow, DecidedBy::X2Apic);
        }
        self.ranges()
            .iter()
            .enumerate()
            .find_map(|(i, range)| Some((range.verdict(index, access)?, DecidedBy::Range(i))))
            .unwrap_or((self.default_verdict(), DecidedBy::Default))
    }
}

impl FilterSpec {
    /// What the filter of these rules decides for one access (READ or WRITE), and which rule makes it
    /// decide so.
    ///
    /// Unlike [`verdict`](Self::verdict) this knows that rules have no say in x2APIC registers.
    pub fn explain(&self, index: u32, access: Access) -> (Verdict, DecidedBy) {
        if MsrRange::X2APIC.contains(index) {
            return (Verdict::Allow, DecidedBy::X2Apic);
        }
        self.rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.matches(index, access))
            .map_or((self.default, DecidedBy::Default), |(i, rule)| {
                (rule.verdict, DecidedBy::Rule(i))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::Rule;

    #[test]
    fn the_deciding_rule_and_range_are_named() {
        let spec = FilterSpec::new(Verdict::Allow)
            .rule(Rule::new(MsrRange::ALL, Access::empty(), Verdict::Deny))
            .rule(Rule::new(0x10, Access::WRITE, Verdict::Deny))
            .rule(Rule::new(0xc000_0080, Access::all(), Verdict::Deny));
        let filter = spec.compile().unwrap();
        let deny = Verdict::Deny;
        for (index, access, verdict, rule, range) in [
            (
                0x10,
                Access::WRITE,
                deny,
                DecidedBy::Rule(1),
                DecidedBy::Range(0),
            ),
            (
                0xc000_0080,
                Access::READ,
                deny,
                DecidedBy::Rule(2),
                DecidedBy::Range(1),
            ),
            (
                0x10,
                Access::READ,
                Verdict::Allow,
                DecidedBy::Default,
                DecidedBy::Default,
            ),
            (
                0x830,
                Access::READ,
                Verdict::Allow,
                DecidedBy::X2Apic,
                DecidedBy::X2Apic,
            ),
        ] {
            assert_eq!(spec.explain(index, access), (verdict, rule));
            assert_eq!(filter.explain(index, access), (verdict, range));
        }
        assert_eq!(DecidedBy::Range(1).to_string(), "range 1");
    }
}
