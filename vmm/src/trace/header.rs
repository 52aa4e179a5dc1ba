//! A trace's header: the machine, as far as this process knows it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use msr_bus::MsrBus;
use msr_filter::FilterSpec;
use msr_kvm::{MsrPlan, RuleSource};
use msr_trace::{Claim, Header, Host, Policy, PolicyRule};

use super::observer::monotonic;

/// The header of a trace that begins now, of a VM with as many vCPUs and of `plan`. What else is known of the VM is for the
/// caller to add.
pub fn header(vcpus: u32, plan: Option<&MsrPlan>) -> Header {
    let policy = plan.map(|plan| policy(&plan.spec, &plan.sources, &plan.bus));
    header_with(vcpus, policy)
}

/// The same of a VM with this policy.
pub(super) fn header_with(vcpus: u32, policy: Option<Policy>) -> Header {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Header {
        program: concat!("msr-vmm ", env!("CARGO_PKG_VERSION")).to_owned(),
        wall_time: now.map_or(0, |now| now.as_nanos() as u64),
        start: monotonic(),
        vcpus,
        host: Host {
            release: first_line("/proc/sys/kernel/osrelease"),
            cpu: cpu_name(),
        },
        policy,
        ..Header::default()
    }
}

/// Who answers under these rules, each with its source, and the claims of `bus`.
pub(super) fn policy(spec: &FilterSpec, sources: &[RuleSource], bus: &MsrBus) -> Policy {
    let rules = spec.rules.iter().zip(sources);
    Policy {
        default: spec.default,
        rules: rules
            .map(|(rule, source)| PolicyRule {
                msrs: rule.range,
                access: rule.access,
                verdict: rule.verdict,
                source: source.to_string(),
            })
            .collect(),
        claims: bus
            .claims()
            .map(|(msrs, device)| Claim {
                msrs,
                device: device.name().to_owned(),
            })
            .collect(),
    }
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    name.map_or(String::new(), |name| {
        name.trim_start_matches([' ', '\t', ':']).to_owned()
    })
}
