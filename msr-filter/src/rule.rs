//! What a filter is to mean: ordered rules and a default.

use alloc::vec::Vec;
use core::fmt;

use crate::{Access, MsrRange};

/// What becomes of an access: the kernel may answer it, or it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Verdict {
    /// KVM handles the access as if there were no filter.
    Allow,
    /// KVM refuses the access: an exit to userspace with the reason `KVM_MSR_EXIT_REASON_FILTER`
    /// where that is enabled, #GP in the guest otherwise.
    Deny,
}

impl Verdict {
    /// The other verdict.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Allow => Self::Deny,
            Self::Deny => Self::Allow,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// The verdict for some kinds of access to a range of MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The MSRs the rule speaks of.
    pub range: MsrRange,
    /// The kinds of access it speaks of. An empty set never matches.
    pub access: Access,
    /// What becomes of such an access.
    pub verdict: Verdict,
    /// How often the guest accesses each MSR of the range, in each of the kinds, in any unit that all
    /// rules share; 0 where it does not matter. It never changes what the filter means, only the order of its ranges, which
    /// KVM tries one by one.
    pub weight: u32,
}

impl Rule {
    /// A rule that gives `verdict` to every access in `range` of a kind in `access`.
    pub fn new(range: impl Into<MsrRange>, access: Access, verdict: Verdict) -> Self {
        Self {
            range: range.into(),
            access,
            verdict,
            weight: 0,
        }
    }

    /// The same rule for MSRs that are accessed `weight` times each; see [`Rule::weight`].
    #[must_use]
    pub fn with_weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// Whether the rule decides an access of kind `access` (one kind) to `index`.
    pub fn matches(&self, index: u32, access: Access) -> bool {
        self.range.contains(index) && self.access.contains(access)
    }
}

/// A filter as its author thinks of it: the first rule that matches decides, else the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// The verdict where no rule matches.
    pub default: Verdict,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
}

impl FilterSpec {
    /// A specification with no rules yet.
    pub fn new(default: Verdict) -> Self {
        Self {
            default,
            rules: Vec::new(),
        }
    }

    /// Appends a rule, to be tried after those already there.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// What the rules say of one access. `access` is one kind, READ or WRITE.
    ///
    /// x2APIC indices get the rules' word here too, although KVM never filters them.
    pub fn verdict(&self, index: u32, access: Access) -> Verdict {
        self.rules
            .iter()
            .find(|rule| rule.matches(index, access))
            .map_or(self.default, |r| r.verdict)
    }
}
