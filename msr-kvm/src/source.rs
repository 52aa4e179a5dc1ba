//! Where the rules of a VM's filter come from, for messages.

use std::fmt;

use msr_filter::{FilterSpec, MsrRange, RangeSummary, Suggestion};

/// Where a rule of the filter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSource {
    /// A device claims the range, so the kernel may not answer for it.
    Claim {
        /// The device's name.
        device: String,
    },
    /// The user wrote it.
    User {
        /// Its place among the user's rules, from 1.
        number: usize,
        /// The reason given there.
        reason: Option<String>,
    },
    /// A CPU model or a profile has it.
    Layer {
        /// The layer's name, such as "profile deny-writes".
        layer: String,
        /// Its place in the layer, from 1.
        number: usize,
        /// The reason given there.
        reason: Option<String>,
    },
    /// No rule of the layer speaks of the MSR, so its default decides.
    Default {
        /// The layer's name; empty for the configuration's own.
        layer: String,
    },
}

impl RuleSource {
    /// What the rule's author says it is for.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Claim { .. } | Self::Default { .. } => None,
            Self::User { reason, .. } | Self::Layer { reason, .. } => reason.as_deref(),
        }
    }
}

impl fmt::Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim { device } => write!(f, "the claim of device `{device}`"),
            Self::User { number, .. } => write!(f, "rule {number}"),
            Self::Layer { layer, number, .. } => write!(f, "{layer}, rule {number}"),
            Self::Default { layer } if layer.is_empty() => f.write_str("the default"),
            Self::Default { layer } => write!(f, "the default of {layer}"),
        }
    }
}

/// How many ways to make a filter fit a message lists; of the others it says how many they are.
const LISTED: usize = 4;

/// What to do without so that the filter fits, in words.
pub(crate) fn suggestions(
    spec: &FilterSpec,
    sources: &[RuleSource],
    suggestions: &[Suggestion],
) -> String {
    let text = |suggestion: &Suggestion| {
        let rules = in_words(spec, sources, &suggestion.rules);
        format!("{rules} (leaves {})", suggestion.needed)
    };
    let listed: Vec<String> = suggestions.iter().take(LISTED).map(text).collect();
    let listed = listed.join("; ");
    match suggestions.len().saturating_sub(LISTED) {
        0 => listed,
        1 => format!("{listed}; or in one more way"),
        more => format!("{listed}; or in {more} more ways"),
    }
}

/// Some of the rules of `spec` in words. Those that were written as one are told as one.
fn in_words(spec: &FilterSpec, sources: &[RuleSource], rules: &[usize]) -> String {
    let mut told: Vec<(&RuleSource, Vec<MsrRange>)> = Vec::new();
    for number in rules {
        let (source, range) = (&sources[*number], spec.rules[*number].range);
        match told.last_mut() {
            Some((last, ranges)) if *last == source => ranges.push(range),
            _ => told.push((source, vec![range])),
        }
    }
    let text = |(source, ranges): &(&RuleSource, Vec<MsrRange>)| {
        format!("{source} on {}", RangeSummary(ranges))
    };
    told.iter().map(text).collect::<Vec<_>>().join(" and ")
}
