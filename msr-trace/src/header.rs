//! What a trace says of the machine it was recorded on: enough to understand its records without anything else.

use msr_filter::{Access, FilterSpec, MsrRange, Rule, Verdict};
use serde::{Deserialize, Serialize};

use crate::record::{Answerer, Record};

/// How the names begin of devices that answer for KVM so that its accesses are seen: `msr-vmm run --observe`.
pub const OBSERVER: &str = "observe";

/// The first part of a trace, JSON in the file (docs/trace-format.md). Keys that a reader does not know are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The program that recorded, with its version.
    pub program: String,
    /// When the recording began, in nanoseconds since 1970.
    pub wall_time: u64,
    /// The same moment in nanoseconds of `CLOCK_MONOTONIC`, the clock of all records.
    pub start: u64,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// The guest's topology, for people.
    pub topology: String,
    /// The host.
    pub host: Host,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The configuration that the VM was started with, TOML; empty where another VMM ran it.
    pub config: String,
    /// What decided who answers; `None` where another VMM ran it.
    pub policy: Option<Policy>,
    /// Whether records hold the guest's instruction pointer.
    pub with_rip: bool,
    /// What the trace cannot hold: MSRs that nobody watched, and why.
    pub not_seen: Vec<NotSeen>,
}

/// The host that a trace was recorded on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its kernel's release.
    pub release: String,
    /// Its processor's name.
    pub cpu: String,
}

/// The kernel that the guest was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// The image's path on the host.
    pub path: String,
    /// The image's GNU build ID, in hexadecimal digits, where it has one.
    pub build_id: Option<String>,
}

/// The rules and devices that were in force at the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The verdict where no rule speaks.
    pub default: Verdict,
    /// The rules, in order: the first that matches decides.
    pub rules: Vec<PolicyRule>,
    /// Which device claims which MSRs.
    pub claims: Vec<Claim>,
}

/// A rule and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// The MSRs.
    pub msrs: MsrRange,
    /// The accesses.
    pub access: Access,
    /// The verdict.
    pub verdict: Verdict,
    /// Where it came from, for people.
    pub source: String,
}

/// A device's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The MSRs.
    pub msrs: MsrRange,
    /// The device's name.
    pub device: String,
}

/// MSRs whose accesses a trace does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotSeen {
    /// The MSRs; `None` for all that no other line speaks of.
    pub msrs: Option<MsrRange>,
    /// Why.
    pub why: String,
}

impl Policy {
    /// The filter that the rules mean.
    pub fn spec(&self) -> FilterSpec {
        let mut spec = FilterSpec::new(self.default);
        spec.rules.extend(
            self.rules
                .iter()
                .map(|rule| Rule::new(rule.msrs, rule.access, rule.verdict)),
        );
        spec
    }

    /// The device that claims `index`.
    pub fn device(&self, index: u32) -> Option<&str> {
        let claim = self.claims.iter().find(|claim| claim.msrs.contains(index));
        claim.map(|claim| claim.device.as_str())
    }

    /// The rule that decides about an access, for people.
    pub fn rule(&self, index: u32, access: Access) -> Option<&str> {
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.msrs.contains(index) && rule.access.contains(access))?;
        Some(&rule.source)
    }
}

impl Header {
    /// Who answered a record: a device by its name.
    pub fn answerer(&self, record: &Record) -> &str {
        match record.answerer {
            Answerer::Kernel => "kernel",
            Answerer::Fallback(_) => "unclaimed",
            Answerer::Device(_) => self
                .policy
                .as_ref()
                .and_then(|policy| policy.device(record.index))
                .unwrap_or("a device"),
        }
    }

    /// The rule that decided about a record.
    pub fn rule(&self, record: &Record) -> &str {
        self.policy
            .as_ref()
            .and_then(|policy| policy.rule(record.index, record.kind.access()))
            .unwrap_or("default")
    }
}
