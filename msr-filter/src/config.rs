//! A filter as configuration files and profiles write it.

use alloc::{string::String, vec::Vec};

use crate::{Access, FilterSpec, MsrRange, Rule, Verdict};

/// A default and rules as a user writes them: a rule may name several MSRs and say why it is there.
///
/// This is the VMM's `[msr.filter]` and, at top level, a profile file. The first rule that matches
/// decides, as in [`FilterSpec`].
///
/// ```
/// # #[cfg(feature = "serde")] {
/// use msr_filter::{Access, FilterConfig, FilterSpec, Verdict};
///
/// let config: FilterConfig = toml::from_str(r#"
///     default = "allow"
///
///     [[rule]]
///     msrs = ["MSR_PLATFORM_INFO", "0x600-0x63f", 0x1b]
///     access = "w"          # "rw" where it isn't said
///     verdict = "deny"
///     reason = "The guest only looks."
/// "#)?;
/// let spec = FilterSpec::from(&config);
/// assert_eq!(spec.verdict(0xce, Access::WRITE), Verdict::Deny);
/// assert_eq!(spec.verdict(0xce, Access::READ), Verdict::Allow);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(remote = "Self", deny_unknown_fields))]
pub struct FilterConfig {
    /// The verdict where no rule matches: allow where it is not said, as in KVM without a filter.
    #[cfg_attr(feature = "serde", serde(default = "allow"))]
    pub default: Verdict,
    /// The rules, in the order in which they are tried.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "rule", default, skip_serializing_if = "Vec::is_empty")
    )]
    pub rules: Vec<RuleConfig>,
}

/// One rule of a [`FilterConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(remote = "Self", deny_unknown_fields))]
pub struct RuleConfig {
    /// The MSRs the rule speaks of. At least one, when it comes from a file.
    #[cfg_attr(
        feature = "serde",
        serde(deserialize_with = "serde_impls::at_least_one")
    )]
    #[cfg_attr(feature = "schemars", schemars(length(min = 1)))]
    pub msrs: Vec<MsrRange>,
    /// The kinds of access it speaks of, both where it is not said.
    #[cfg_attr(feature = "serde", serde(default = "Access::all"))]
    pub access: Access,
    /// What becomes of such an access.
    pub verdict: Verdict,
    /// Why the rule is there, for people.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub reason: Option<String>,
    /// How often each of the MSRs is accessed, in any unit that all rules share; see
    /// [`Rule::weight`].
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_zero"))]
    pub weight: u32,
}

impl FilterConfig {
    /// The position in `rules` of the rule that number `rule` of the converted
    /// [`FilterSpec`] was made from, or `None` if that has no such rule.
    ///
    /// The two number their rules differently because a rule here may name several ranges.
    pub fn origin(&self, rule: usize) -> Option<usize> {
        let mut end = 0;
        self.rules.iter().position(|config| {
            end += config.msrs.len();
            rule < end
        })
    }
}

impl From<&FilterConfig> for FilterSpec {
    /// One rule for each range of each rule, in the same order.
    fn from(config: &FilterConfig) -> Self {
        let rules = config.rules.iter().flat_map(|rule| {
            rule.msrs.iter().map(|range| Rule {
                range: *range,
                access: rule.access,
                verdict: rule.verdict,
                weight: rule.weight,
            })
        });
        Self {
            default: config.default,
            rules: rules.collect(),
        }
    }
}

impl From<&FilterSpec> for FilterConfig {
    /// Neighbouring rules that differ in their range only become one.
    fn from(spec: &FilterSpec) -> Self {
        let same =
            |a: &Rule, b: &Rule| (a.access, a.verdict, a.weight) == (b.access, b.verdict, b.weight);
        let rules = spec.rules.chunk_by(same).map(|group| RuleConfig {
            msrs: group.iter().map(|rule| rule.range).collect(),
            access: group[0].access,
            verdict: group[0].verdict,
            reason: None,
            weight: group[0].weight,
        });
        Self {
            default: spec.default,
            rules: rules.collect(),
        }
    }
}

#[cfg(feature = "serde")]
fn allow() -> Verdict {
    Verdict::Allow
}

#[cfg(feature = "serde")]
fn is_zero(weight: &u32) -> bool {
    *weight == 0
}

/// A rule without MSRs would be silently without effect.
#[cfg(feature = "serde")]
mod serde_impls;
#[cfg(all(test, feature = "serde"))]
mod tests;
