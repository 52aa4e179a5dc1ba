//! Where the rules of a VM's filter come from, for messages.

use std::fmt;

#[cfg(feature = "config")]
use msr_filter::FilterConfig;
use msr_filter::{FilterSpec, MsrRange, Suggestion};

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
    /// The profile has it.
    Profile {
        /// Its place in the profile, from 1.
        number: usize,
        /// The reason given there.
        reason: Option<String>,
    },
}

impl RuleSource {
    #[cfg(feature = "config")]
    /// The sources of the rules that [`FilterSpec::from`] makes of `config`, in their order.
    pub(crate) fn of_config(
        config: &FilterConfig,
        make: impl Fn(usize, Option<String>) -> Self,
    ) -> Vec<Self> {
        let rules = (1..).zip(&config.rules);
        rules
            .flat_map(|(number, rule)| rule.msrs.iter().map(move |_| (number, rule.reason.clone())))
            .map(|(number, reason)| make(number, reason))
            .collect()
    }

    /// What the rule's author says it is for.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Claim { .. } => None,
            Self::User { reason, .. } | Self::Profile { reason, .. } => reason.as_deref(),
        }
    }
}

impl fmt::Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim { device } => write!(f, "the claim of device `{device}`"),
            Self::User { number, .. } => write!(f, "rule {number}"),
            Self::Profile { number, .. } => write!(f, "the profile's rule {number}"),
        }
    }
}

/// What to do without so that the filter fits, in words.
pub(crate) fn suggestions(
    spec: &FilterSpec,
    sources: &[RuleSource],
    suggestions: &[Suggestion],
) -> String {
    let rule = |number: &usize| {
        let range: MsrRange = spec.rules[*number].range;
        format!("{} on {range}", sources[*number])
    };
    let text = |suggestion: &Suggestion| {
        let rules: Vec<String> = suggestion.rules.iter().map(rule).collect();
        format!("{} (leaves {})", rules.join(" and "), suggestion.needed)
    };
    let suggestions: Vec<String> = suggestions.iter().map(text).collect();
    suggestions.join("; ")
}
