//! The MSR filter that KVM has now, with the rules that made it.

use msr_filter::{FilterConfig, FilterSpec, MsrFilter, Verdict};
use msr_kvm::{FilterLayer, Layer, MsrPlan, PlanError, RuleSource};

/// A filter with its rules.
#[derive(Clone, Debug)]
pub struct FilterInForce {
    /// The configuration's own rules, which models and the profile narrow; none where somebody gave KVM a filter that was
    /// compiled elsewhere.
    pub rules: Option<FilterConfig>,
    /// All rules: the devices' claims, then what the configuration's own rules, the models and the profile allow together.
    pub spec: FilterSpec,
    /// Where each of those rules comes from.
    pub sources: Vec<RuleSource>,
    /// The same as KVM has it.
    pub filter: MsrFilter,
}

impl FilterInForce {
    /// The filter that a VM starts with, whose own rules are these.
    pub(crate) fn of(plan: &MsrPlan, rules: &FilterConfig) -> Self {
        Self {
            rules: Some(rules.clone()),
            spec: plan.spec.clone(),
            sources: plan.sources.clone(),
            filter: plan.filter.clone(),
        }
    }

    /// The filter of other own rules, behind the same claims and narrowed by the same models and profile.
    pub(crate) fn with_rules(plan: &MsrPlan, rules: &FilterConfig) -> Result<Self, PlanError> {
        let own = FilterLayer {
            name: String::new(),
            filter: rules.clone(),
        };
        let (spec, sources, filter) = plan.with_own(Layer::from(&own))?;
        Ok(Self {
            rules: Some(rules.clone()),
            spec,
            sources,
            filter,
        })
    }

    /// A filter of which the rules are not known.
    pub(crate) fn compiled(filter: &MsrFilter) -> Self {
        Self {
            rules: None,
            spec: FilterSpec::new(Verdict::Deny),
            sources: Vec::new(),
            filter: filter.clone(),
        }
    }
}
