//! What is answered: the results of the methods.

use msr_bus::U64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::AnsweredBy;
use crate::shutdown::ShutdownReason;

/// What was saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotResult {
    /// How many bytes of the guest's memory are not in holes.
    pub memory: u64,
    /// How long the guest had to stand still for it, in seconds. One that was paused before has stood still for longer.
    pub pause: f64,
    /// Whether the guest executes now: if so, it may write to its disks, which are then not those of the snapshot.
    pub state: State,
}

/// What a trace came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceResult {
    /// Its file.
    pub file: String,
    /// How many records it has.
    pub records: u64,
    /// How many were lost.
    pub lost: u64,
    /// How many bytes the file has.
    pub bytes: u64,
}

/// Whether the guest executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The vCPUs execute.
    Running,
    /// Everything stands still.
    Paused,
}

/// The VM's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Whether the guest executes.
    pub state: State,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// Seconds since they were started.
    pub uptime: f64,
    /// How many MSR accesses reached userspace.
    pub msr_exits: u64,
    /// Whether a driver in the guest waits for the power button.
    pub handles_power_button: bool,
    /// The file of the trace that is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// The process of the VMM.
    pub pid: u32,
}

/// Something was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    /// Whether the guest executes now.
    pub state: State,
}

/// How often one MSR reached userspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrStat {
    /// Its index.
    pub index: u32,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// RDMSRs, those that faulted included.
    pub reads: u64,
    /// WRMSRs, those that faulted included.
    pub writes: u64,
    /// Accesses that were answered with #GP.
    pub faults: u64,
    /// The device that answers; null for the default.
    pub device: Option<String>,
}

/// A rule of the filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterRule {
    /// The MSRs: an index or a range. "default" for the verdict on what no rule names.
    pub msrs: String,
    /// The kinds of access: "r", "w" or "rw".
    pub access: String,
    /// "allow" or "deny".
    pub verdict: String,
    /// Where the rule comes from.
    pub source: String,
}

/// An MSR device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceSummary {
    /// Its name.
    pub name: String,
    /// The MSRs it answers for: indices and ranges.
    pub msrs: Vec<String>,
}

/// An MSR device, looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceDetails {
    /// Its name.
    pub name: String,
    /// Its model; null for a device that a program has added.
    pub model: Option<String>,
    /// Its keys: those of the configuration and what was set since. The others have their defaults.
    pub keys: Map<String, Value>,
    /// The keys that can change while the guest runs.
    pub live: Vec<String>,
    /// Its saved state; null for a device that keeps none.
    pub state: Value,
}

/// An access to an MSR, answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrResult {
    /// The MSR's index.
    pub index: u32,
    /// The value read, or 0 for a write; null for #GP.
    pub value: Option<U64>,
    /// Who answered.
    pub by: AnsweredBy,
}

/// How the guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitResult {
    /// "power-off", "reset", "stopped", "debug-exit" or "fault".
    pub reason: String,
    /// With "fault": which, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// With "debug-exit": the status that the guest gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
}

impl From<&ShutdownReason> for WaitResult {
    fn from(reason: &ShutdownReason) -> Self {
        let (word, fault, status) = match reason {
            ShutdownReason::PowerOff => ("power-off", None, None),
            ShutdownReason::Reset => ("reset", None, None),
            ShutdownReason::Stopped => ("stopped", None, None),
            ShutdownReason::DebugExit(status) => ("debug-exit", None, Some(*status)),
            ShutdownReason::Fault(fault) => ("fault", Some(fault.to_string()), None),
        };
        Self {
            reason: word.to_owned(),
            fault,
            status,
        }
    }
}
