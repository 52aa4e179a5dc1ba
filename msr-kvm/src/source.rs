//! Where the rules of a VM's filter come from, for messages.

use std::fmt;

use msr_filter::{FilterSpec, MsrRange, Suggestion};

use crate::layers::FilterLayer;

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
    /// The sources of the rules that [`FilterSpec::from`] makes of a layer's filter, in their order.
    pub(crate) fn of_layer(layer: &FilterLayer) -> Vec<Self> {
        let rules = (1..).zip(&layer.filter.rules);
        rules
            .flat_map(|(number, rule)| rule.msrs.iter().map(move |_| (number, rule.reason.clone())))
            .map(|(number, reason)| {
                if layer.name.is_empty() {
                    Self::User { number, reason }
                } else {
                    let layer = layer.name.clone();
                    Self::Layer {
                        layer,
                        number,
                        reason,
                    }
                }
            })
            .collect()
    }

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
