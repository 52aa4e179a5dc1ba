//! `msr-vmm explain`: who answers an MSR, and why.

use msr_bus::{Access, DeviceModel, ExitReason, Faults, MsrRange, Unclaimed};
use msr_filter::{DecidedBy, Verdict, fields, names};

use serde_json::json;

use crate::cli::args::ExplainArgs;
use crate::cli::plan::plan;
use crate::cli::{Failure, print};
use msr_kvm::{MsrPlan, RuleSource};

/// Prints who answers a read and a write of an MSR.
pub(crate) fn explain(args: &ExplainArgs, models: &[DeviceModel]) -> Result<(), Failure> {
    let range: MsrRange = args.msr.parse().map_err(Failure::usage)?;
    if range.len() != 1 {
        return Err(Failure::usage(format!(
            "{} is a range: explain takes one MSR",
            args.msr
        )));
    }
    let plan = plan(&args.source.load()?, models)?;
    let index = range.first();
    let answers = [("read", Access::READ), ("write", Access::WRITE)]
        .map(|(kind, access)| (kind, answer(&plan, index, access)));
    let faults = plan.bus.faults().into_iter().flat_map(Faults::rules);
    let faults: Vec<String> = faults
        .filter(|rule| rule.msrs.iter().any(|msrs| msrs.contains(index)))
        .map(ToString::to_string)
        .collect();
    let initial = plan.initial.iter().find(|initial| initial.index == index);
    if args.json {
        let mut json = json!({ "msr": index, "name": names::name(index) });
        if let Some(initial) = initial {
            json["initial"] = json!({
                "value": format!("{:#x}", initial.value),
                "mask": format!("{:#x}", initial.mask),
            });
        }
        if !faults.is_empty() {
            json["faults"] = json!(faults);
        }
        for (kind, (who, why)) in answers {
            json[kind] = json!({ "answered_by": who, "why": why });
        }
        return print(&format!("{json}\n"));
    }
    let name = names::name(index).unwrap_or("(no name known)");
    let mut text = format!("MSR {index:#x} {name}\n");
    if let Some(layout) = fields::layout(index) {
        let fields = layout
            .fields
            .iter()
            .map(|field| match field.high - field.low {
                0 => format!("{} ({})", field.name, field.low),
                _ => format!("{} ({}:{})", field.name, field.high, field.low),
            });
        let fields: Vec<String> = fields.collect();
        text += &format!(
            "  fields {}\n         - {}\n",
            fields.join(" "),
            layout.source
        );
    }
    if let Some(initial) = initial {
        text += &format!("  starts as {:#x}", initial.value);
        if initial.mask != u64::MAX {
            text += &format!(", bits {:#x}", initial.mask);
        }
        text += ": [[msr.initial]]\n";
    }
    for (kind, (who, why)) in answers {
        text += &format!("  {kind:<6} {who}\n");
        for reason in why {
            text += &format!("         - {reason}\n");
        }
    }
    for fault in faults {
        text += &format!("  fault  {fault}: [[msr.fault]]\n");
    }
    print(&text)
}

/// Who answers, and the reasons in the order of the access's way.
fn answer(plan: &MsrPlan, index: u32, access: Access) -> (String, Vec<String>) {
    let (verdict, range) = plan.filter.explain(index, access);
    let mut why = rules(plan, index, access);
    why.push(range_text(range, verdict));
    if verdict == Verdict::Allow {
        let unknown = refused(plan, ExitReason::Unknown);
        let invalid = refused(plan, ExitReason::Invalid);
        why.push(format!("if KVM does not know the MSR: {unknown}"));
        why.push(format!("if KVM rejects the access or the value: {invalid}"));
        return ("the kernel (KVM)".into(), why);
    }
    if index == msr_filter::TSC_DEADLINE && access == Access::WRITE {
        why.push(msr_filter::FAST_PATH.into());
    }
    if !plan.exits.contains(&ExitReason::Filter) {
        why.push(refused(plan, ExitReason::Filter));
        return ("#GP".into(), why);
    }
    if let Some(device) = plan.bus.device(index) {
        why.push("KVM exits to userspace with the reason filter".into());
        return (format!("device `{}`", device.name()), why);
    }
    why.push("KVM exits to userspace with the reason filter, and no device claims the MSR".into());
    let fallback = plan.bus.fallback().answer(ExitReason::Filter);
    why.push(format!("msr.unclaimed says {} for that", word(fallback)));
    let who = match (fallback, access) {
        (Unclaimed::Fault, _) => "#GP",
        (Unclaimed::Ignore, Access::READ) => "default: 0",
        (Unclaimed::Ignore, _) => "default: write dropped",
    };
    (who.into(), why)
}

/// Which rules decide: a device's claim, or each layer's.
fn rules(plan: &MsrPlan, index: u32, access: Access) -> Vec<String> {
    if MsrRange::X2APIC.contains(index) {
        return vec!["an x2APIC MSR, which KVM never filters".into()];
    }
    let says = |source: &RuleSource, verdict, range: Option<MsrRange>| {
        let range = range.map_or(String::new(), |range| format!(" for {range}"));
        let reason = source
            .reason()
            .map_or(String::new(), |text| format!(" ({text})"));
        format!("{source} says {verdict}{range}{reason}")
    };
    if let (verdict, DecidedBy::Rule(number)) = plan.spec.explain(index, access)
        && let source @ RuleSource::Claim { .. } = &plan.sources[number]
    {
        return vec![says(source, verdict, Some(plan.spec.rules[number].range))];
    }
    let verdicts = plan.verdicts(index, access).into_iter();
    verdicts
        .map(|(verdict, source)| match &source {
            RuleSource::Default { .. } => {
                format!("no rule speaks of it, and {source} is {verdict}")
            }
            _ => says(&source, verdict, None),
        })
        .collect()
}

fn range_text(decided: DecidedBy, verdict: Verdict) -> String {
    match decided {
        DecidedBy::Range(number) => format!("range {} of the filter says {verdict}", number + 1),
        DecidedBy::X2Apic => "the filter is not asked".into(),
        _ => format!("no range of the filter spans it, and the filter's default is {verdict}"),
    }
}

/// What becomes of an access that KVM refuses for `reason`.
fn refused(plan: &MsrPlan, reason: ExitReason) -> String {
    if !plan.exits.contains(&reason) {
        return format!("#GP, because msr.exits lacks \"{reason}\"");
    }
    let answer = word(plan.bus.fallback().answer(reason));
    format!("an exit to userspace, where msr.unclaimed says {answer}")
}

fn word(answer: Unclaimed) -> &'static str {
    match answer {
        Unclaimed::Fault => "fault",
        Unclaimed::Ignore => "ignore",
    }
}
