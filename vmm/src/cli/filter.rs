//! `msr-vmm filter`: the filter that KVM gets.

use std::fmt::Write;
use std::path::Path;

use msr_bus::{CpuVendor, DeviceModel, Document};
use msr_filter::{FilterConfig, MsrFilter, MsrRange, names};
use msr_kvm::MsrPlan;
use serde_json::json;

use crate::cli::args::{ConfigArgs, FilterArgs};
use crate::cli::plan::{plan, vendor, warnings};
use crate::cli::{Failure, print};
use crate::config::LoadedConfig;
use crate::models::ModelName;

/// Prints a filter, or what changes from it to another file's.
pub(crate) fn filter(args: &FilterArgs, models: &[DeviceModel]) -> Result<(), Failure> {
    let (plan, vendor) = compile(args.file.as_deref(), &args.source, models)?;
    let warnings = warnings(&plan, vendor);
    let text = match &args.diff {
        None if args.json => {
            let mut json = serde_json::to_value(&plan.filter).map_err(Failure::fault)?;
            json["warnings"] = json!(warnings);
            format!("{json}\n")
        }
        None => table(&plan.filter, &warnings),
        Some(other) => {
            let (other, _) = compile(Some(other), &args.source, models)?;
            diff(&plan.filter, &other.filter, args.json)
        }
    };
    print(&text)
}

/// The filter of a profile, or of a VM's configuration with its devices. For the latter also whose CPU the guest is shown; a
/// profile may be for any.
fn compile(
    file: Option<&Path>,
    source: &ConfigArgs,
    models: &[DeviceModel],
) -> Result<(MsrPlan, Option<CpuVendor>), Failure> {
    let Some(path) = file else {
        let loaded = source.load()?;
        return Ok((plan(&loaded, models)?, vendor(&loaded)));
    };
    let file = Document::read(path).map_err(Failure::usage)?;
    let is_profile = file
        .table()
        .is_ok_and(|table| table.contains_key("default") || table.contains_key("rule"));
    let mut loaded = if is_profile {
        let mut loaded = source.load()?;
        loaded.config.msr.filter = file.parse::<FilterConfig>().map_err(Failure::usage)?;
        loaded
    } else {
        let model = source.model.as_deref().map(ModelName::new);
        let folder = path.parent().unwrap_or(Path::new(""));
        LoadedConfig::of(file, folder, model.as_ref()).map_err(Failure::usage)?
    };
    if let Some(profile) = &source.profile {
        loaded.config.msr.profile = Some(profile.clone());
    }
    let vendor = vendor(&loaded).filter(|_| !is_profile);
    Ok((plan(&loaded, models)?, vendor))
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
