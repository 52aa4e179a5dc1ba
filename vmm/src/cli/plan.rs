//! The plan of a configuration without a VM, and what in it is probably a mistake.

use msr_bus::{Access, CpuVendor, DeviceModel, MsrRange};
use msr_filter::{FilterSpec, RangeSummary, Rule, Warning};
use msr_kvm::{MsrPlan, MsrPlanBuilder, RuleSource};

use crate::cli::{Failure, rule_warnings};
use crate::config::LoadedConfig;
use crate::vm::VmError;

/// The plan of a configuration, whose machine must be one that can be.
pub(crate) fn plan(loaded: &LoadedConfig, models: &[DeviceModel]) -> Result<MsrPlan, Failure> {
    make(loaded, models).map_err(|error| Failure::of(&error, loaded))
}

fn make(loaded: &LoadedConfig, models: &[DeviceModel]) -> Result<MsrPlan, VmError> {
    let config = &loaded.config;
    config.vm.check()?;
    let topology = config.vm.topology()?;
    let plan = MsrPlan::builder(topology, config.cpu.cpu_identity()?)
        .config(&config.msr, models)
        .and_then(MsrPlanBuilder::build)?;
    Ok(plan)
}

/// Whose CPU the guest is shown.
pub(crate) fn vendor(loaded: &LoadedConfig) -> Option<CpuVendor> {
    let identity = loaded.config.cpu.cpu_identity();
    identity.ok().map(|identity| identity.vendor)
}

/// Logs what in a configuration is probably a mistake, but for what the VM's builder tells ([`warn_of_lost`](crate::builder)).
pub(crate) fn warn(loaded: &LoadedConfig, plan: &MsrPlan) {
    let lost = plan.lost.iter().filter(|lost| !lost.is_of_user());
    for warning in loaded
        .config
        .vm
        .warnings()
        .into_iter()
        .chain(of_rules(plan, vendor(loaded)))
        .chain(lost.map(ToString::to_string))
    {
        log::warn!("{warning}");
    }
    if let Some(faults) = plan.bus.faults() {
        let mut msrs: Vec<MsrRange> = faults.rules().flat_map(|rule| rule.msrs.clone()).collect();
        // Several rules may speak of the same.
        msrs.sort_unstable();
        msrs.dedup();
        let rules = match faults.rules().count() {
            1 => "1 rule".to_owned(),
            several => format!("{several} rules"),
        };
        log::warn!(
            "MSR accesses go wrong on purpose: {rules} of [[msr.fault]], on {}",
            RangeSummary(&msrs)
        );
    }
}

/// What in the rules is probably a mistake, and what of them has no effect because another layer denies it.
pub(crate) fn warnings(plan: &MsrPlan, vendor: Option<CpuVendor>) -> Vec<String> {
    let mut warnings = of_rules(plan, vendor);
    warnings.extend(plan.lost.iter().map(ToString::to_string));
    warnings
}

/// What in the rules is probably a mistake, by where the rules come from.
fn of_rules(plan: &MsrPlan, vendor: Option<CpuVendor>) -> Vec<String> {
    let mut warnings = Vec::new();
    // Each layer on its own: that another has the last word on an MSR is no mistake in it. The configuration's own rules are
    // written beside the devices, and models and profiles without knowing of them.
    for layer in &plan.layers {
        let mut rules: Vec<(Rule, String)> = Vec::new();
        if layer.name.is_empty() {
            let claims = plan.spec.rules.iter().zip(&plan.sources);
            let claims = claims.filter(|(_, source)| matches!(source, RuleSource::Claim { .. }));
            rules.extend(claims.map(|(rule, source)| (*rule, source.to_string())));
        }
        let own = layer.spec.rules.iter().copied();
        rules.extend(own.zip(layer.sources.iter().map(ToString::to_string)));
        let spec = FilterSpec {
            default: layer.spec.default,
            rules: rules.iter().map(|(rule, _)| *rule).collect(),
        };
        warnings.extend(rule_warnings::in_words(&rules, spec.warnings()));
    }
    // What a device answers is not missing.
    let unanswered = |missing: Vec<(u32, Access)>| -> Vec<(u32, Access)> {
        let answered = |index: u32| plan.bus.device(index).is_some();
        missing.into_iter().filter(|(i, _)| !answered(*i)).collect()
    };
    for warning in plan.spec.warnings() {
        let warning = match warning {
            Warning::LinuxNeeds { missing } => match unanswered(missing) {
                missing if missing.is_empty() => continue,
                missing => Warning::LinuxNeeds { missing },
            },
            Warning::LinuxNeedsOnIntel { missing } if vendor != Some(CpuVendor::Amd) => {
                match unanswered(missing) {
                    missing if missing.is_empty() => continue,
                    missing => Warning::LinuxNeedsOnIntel { missing },
                }
            }
            _ => continue,
        };
        warnings.push(warning.to_string());
    }
    warnings
}
