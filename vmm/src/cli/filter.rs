//! `msr-vmm filter`: the filter that KVM gets.

use std::fmt::Write;
use std::path::Path;

use msr_bus::{Access, CpuVendor};
use msr_filter::{FilterConfig, FilterSpec, MsrFilter, MsrRange, Rule, Warning, names};
use serde_json::json;

use crate::cli::args::FilterArgs;
use crate::cli::{Failure, models, print};
use crate::config::{Config, ConfigError};
use crate::vm::VmError;
use msr_kvm::{MsrConfig, MsrPlan, MsrPlanBuilder, RuleSource};

/// Prints a file's filter, or what changes from it to another file's.
pub(crate) fn filter(args: &FilterArgs) -> Result<(), Failure> {
    let (plan, vendor) = compile(&args.file)?;
    let warnings = warnings(&plan, vendor);
    let text = match &args.diff {
        None if args.json => {
            let mut json = serde_json::to_value(&plan.filter).map_err(Failure::fault)?;
            json["warnings"] = json!(warnings);
            format!("{json}\n")
        }
        None => table(&plan.filter, &warnings),
        Some(other) => diff(&plan.filter, &compile(other)?.0.filter, args.json),
    };
    print(&text)
}

/// A file's filter: a profile's, or that of a VM's configuration with its devices. For the latter also whose CPU the guest is
/// shown; a profile may be for any.
fn compile(path: &Path) -> Result<(MsrPlan, Option<CpuVendor>), Failure> {
    let profile = profile(path).map_err(Failure::usage)?;
    let is_profile = profile.is_some();
    let config = match profile {
        Some(filter) => Config {
            msr: MsrConfig {
                filter,
                ..MsrConfig::default()
            },
            ..Config::default()
        },
        None => Config::from_file(path).map_err(Failure::usage)?,
    };
    let plan = plan(&config).map_err(|failure| failure.in_config(path))?;
    let vendor = config.cpu.cpu_identity().ok().map(|cpu| cpu.vendor);
    Ok((plan, vendor.filter(|_| !is_profile)))
}

/// The plan of a configuration, without a VM.
pub(crate) fn plan(config: &Config) -> Result<MsrPlan, Failure> {
    let topology = config.vm.topology().map_err(Failure::usage)?;
    let cpu = config
        .cpu
        .cpu_identity()
        .map_err(|error| Failure::usage(VmError::from(error)))?;
    MsrPlan::builder(topology, cpu)
        .config(&config.msr, models())
        .and_then(MsrPlanBuilder::build)
        .map_err(|error| Failure::usage(VmError::from(error)))
}

/// The filter of a profile, which is a [`FilterConfig`] at a file's top level; `None` for another file.
fn profile(path: &Path) -> Result<Option<FilterConfig>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let is_profile = text
        .parse::<toml::Table>()
        .is_ok_and(|table| table.contains_key("default") || table.contains_key("rule"));
    if !is_profile {
        return Ok(None);
    }
    toml::from_str(&text)
        .map(Some)
        .map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

/// What in the rules is probably a mistake, by where the rules come from.
fn warnings(plan: &MsrPlan, vendor: Option<CpuVendor>) -> Vec<String> {
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
        let told = spec.warnings().into_iter();
        warnings.extend(told.filter_map(|warning| of_rule(&rules, warning)));
    }
    for lost in &plan.lost {
        warnings.push(lost.to_string());
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

/// A warning about one rule.
fn of_rule(rules: &[(Rule, String)], warning: Warning) -> Option<String> {
    let rule = |number: usize| format!("{} on {}", rules[number].1, rules[number].0.range);
    match warning {
        Warning::Shadowed { rule: number, by } => Some(format!(
            "{} has no effect: what comes before decides all it speaks of, first {}",
            rule(number),
            rule(by)
        )),
        Warning::X2Apic {
            rule: number,
            ignored,
        } => Some(format!(
            "{} has no effect on {ignored}: KVM never filters the x2APIC MSRs",
            rule(number)
        )),
        Warning::FastPath { rule: number } => {
            Some(format!("{}: {}", rule(number), msr_filter::FAST_PATH))
        }
        Warning::NoAccess { rule: number } => Some(format!(
            "{} has no effect: it is for no kind of access",
            rule(number)
        )),
        _ => None,
    }
}

fn table(filter: &MsrFilter, warnings: &[String]) -> String {
    let mut text = String::new();
    let ranges = filter.ranges();
    // Writing to a string does not fail.
    let _ = writeln!(text, "default: {}", filter.default_verdict());
    let _ = writeln!(
        text,
        "ranges:  {} of {}",
        ranges.len(),
        MsrFilter::MAX_RANGES
    );
    if !ranges.is_empty() {
        let _ = writeln!(
            text,
            "{:>4}  {:<6}  {:<10}  {:<10}  {:>6}  {:>7}  {:>6}  {:>5}",
            "#", "access", "first", "last", "MSRs", "allowed", "denied", "bytes"
        );
    }
    for (number, range) in (1..).zip(ranges) {
        let span = range.span();
        let allowed = u64::from(range.allowed());
        let _ = writeln!(
            text,
            "{number:>4}  {:<6}  {:#010x}  {:#010x}  {:>6}  {allowed:>7}  {:>6}  {:>5}",
            range.access(),
            span.first(),
            span.last(),
            span.len(),
            span.len() - allowed,
            range.bitmap().len() * 8,
        );
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn diff(from: &MsrFilter, to: &MsrFilter, json: bool) -> String {
    let changes = from.diff(to);
    if json {
        let changes: Vec<_> = changes
            .iter()
            .map(|c| {
                json!({
                    "first": c.range.first(), "last": c.range.last(), "access": c.access,
                    "from": c.from, "to": c.to,
                })
            })
            .collect();
        return format!("{}\n", json!(changes));
    }
    if changes.is_empty() {
        return "no access changes its verdict\n".into();
    }
    let mut text = format!(
        "{:<24}{:<8}{:<7}{:<7}{}\n",
        "MSR", "access", "from", "to", "name"
    );
    for change in changes {
        let range = change.range.to_string();
        let _ = writeln!(
            text,
            "{range:<24}{:<8}{:<7}{:<7}{}",
            change.access,
            change.from,
            change.to,
            name(change.range)
        );
    }
    text
}

/// The name of a range's only MSR.
fn name(range: MsrRange) -> &'static str {
    match range.len() {
        1 => names::name(range.first()).unwrap_or(""),
        _ => "",
    }
}
