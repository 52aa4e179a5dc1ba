//! Warnings about rules, in words. A rule of a file may list hundreds of ranges, each of which is a rule of the filter:
//! what is to be said of several of them is said once.

use std::fmt;

use msr_filter::{MsrRange, RangeSummary, Rule, Warning};

/// What is wrong with ranges of a rule.
#[derive(PartialEq)]
enum Fault {
    /// Others decide all that it speaks of.
    Shadowed {
        /// Where the first of them is written.
        by: String,
        on: MsrRange,
    },
    X2Apic,
    FastPath,
    NoAccess,
}

impl Fault {
    /// Whether both are said by one sentence.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shadowed { by, .. }, Self::Shadowed { by: other, .. }) => by == other,
            _ => self == other,
        }
    }
}

/// A sentence.
struct Told<'a> {
    /// Where the rule is written.
    source: &'a str,
    fault: Fault,
    ranges: Vec<MsrRange>,
    /// Of the ranges, what KVM does not filter.
    ignored: Vec<MsrRange>,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.source, RangeSummary(&self.ranges))?;
        match &self.fault {
            Fault::Shadowed { by, on } => write!(
                f,
                " has no effect: what comes before decides all it speaks of, first {by} on {on}"
            ),
            Fault::X2Apic => write!(
                f,
                " has no effect on {}: KVM never filters the x2APIC MSRs",
                RangeSummary(&self.ignored)
            ),
            Fault::FastPath => write!(f, ": {}", msr_filter::FAST_PATH),
            Fault::NoAccess => f.write_str(" has no effect: it is for no kind of access"),
        }
    }
}

/// The warnings that are about rules, each of which has its source beside it.
pub(super) fn in_words(rules: &[(Rule, String)], warnings: Vec<Warning>) -> Vec<String> {
    let mut told: Vec<Told<'_>> = Vec::new();
    for warning in warnings {
        let (number, fault, ignored) = match warning {
            Warning::Shadowed { rule, by } => {
                let (first, source) = &rules[by];
                let (by, on) = (source.clone(), first.range);
                (rule, Fault::Shadowed { by, on }, None)
            }
            Warning::X2Apic { rule, ignored } => (rule, Fault::X2Apic, Some(ignored)),
            Warning::FastPath { rule } => (rule, Fault::FastPath, None),
            Warning::NoAccess { rule } => (rule, Fault::NoAccess, None),
            _ => continue,
        };
        let (rule, source) = &rules[number];
        match told.last_mut() {
            Some(last) if last.source == source && last.fault.is_like(&fault) => {
                last.ranges.push(rule.range);
                last.ignored.extend(ignored);
            }
            _ => told.push(Told {
                source,
                fault,
                ranges: vec![rule.range],
                ignored: ignored.into_iter().collect(),
            }),
        }
    }
    told.iter().map(ToString::to_string).collect()
}
