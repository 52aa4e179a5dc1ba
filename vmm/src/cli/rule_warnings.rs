//! Warnings about rules, in words. A rule of a file may list hundreds of ranges, each of which is a rule of the filter:
//! what is to be said of several of them is said once.

use msr_filter::{Access, MsrRange, RangeSummary, Rule, Warning};
use msr_kvm::{LostRule, RuleSource};

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

    fn in_words(&self, source: &str, ranges: &[MsrRange], ignored: &[MsrRange]) -> String {
        let rule = format!("{source} on {}", RangeSummary(ranges));
        match self {
            Self::Shadowed { by, on } => format!(
                "{rule} has no effect: what comes before decides all it speaks of, first {by} on {on}"
            ),
            Self::X2Apic => format!(
                "{rule} has no effect on {}: KVM never filters the x2APIC MSRs",
                RangeSummary(ignored)
            ),
            Self::FastPath => format!("{rule}: {}", msr_filter::FAST_PATH),
            Self::NoAccess => format!("{rule} has no effect: it is for no kind of access"),
        }
    }
}

/// The warnings that are about rules, each of which has its source beside it.
pub(super) fn in_words(rules: &[(Rule, String)], warnings: Vec<Warning>) -> Vec<String> {
    let mut told: Vec<(&str, Fault, Vec<MsrRange>, Vec<MsrRange>)> = Vec::new();
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
            Some((last, like, ranges, all)) if *last == *source && like.is_like(&fault) => {
                ranges.push(rule.range);
                all.extend(ignored);
            }
            _ => told.push((
                source,
                fault,
                vec![rule.range],
                ignored.into_iter().collect(),
            )),
        }
    }
    let words = told.iter();
    words
        .map(|(source, fault, ranges, ignored)| fault.in_words(source, ranges, ignored))
        .collect()
}

/// What of the layers' rules others deny.
pub(super) fn lost_in_words(lost: &[LostRule]) -> Vec<String> {
    let mut told: Vec<(&RuleSource, &RuleSource, Access, Vec<MsrRange>)> = Vec::new();
    for lost in lost {
        let (rule, by, access) = (&lost.rule, &lost.by, lost.access);
        let like = told
            .iter_mut()
            .find(|(r, b, a, _)| (*r, *b, *a) == (rule, by, access));
        match like {
            Some((.., ranges)) => ranges.push(lost.msrs),
            None => told.push((rule, by, access, vec![lost.msrs])),
        }
    }
    let words = told.iter();
    words
        .map(|(rule, by, access, ranges)| {
            let msrs = RangeSummary(ranges);
            format!("{rule} allows {msrs} ({access}), which {by} denies: what one layer denies stays denied")
        })
        .collect()
}
