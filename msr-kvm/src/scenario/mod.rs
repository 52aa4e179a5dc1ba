//! Scenarios as a configuration has them: what happens to a guest from outside while it runs, step by step.
//!
//! A step waits (for time, for a text on the console, for accesses to an MSR) and then acts (sets keys of devices, writes an MSR,
//! presses the power button). Here they are read and checked; who has the guest's console and its power button carries
//! them out.

mod check;
mod span;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use msr_bus::U64;
use msr_filter::MsrRange;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use check::{ScenarioError, check};
pub use span::{ParseSpanError, Span};

/// The most scenarios that a VM runs at a time.
pub const MAX_SCENARIOS: usize = 16;
/// The most steps of a scenario.
pub const MAX_STEPS: usize = 1024;
/// The longest text of the console that a step waits for, in bytes.
pub const MAX_TEXT: usize = 256;

/// What happens to the guest from outside while it runs, step by step. Scenarios run beside each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScenarioConfig {
    /// What messages and traces call it: its number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often its steps are taken, one round after the other; 0 is until the guest ends.
    #[serde(default = "once")]
    pub repeat: u32,
    /// What the waits of `jitter` are drawn by: the same seed gives the same waits.
    #[serde(default)]
    pub seed: u64,
    /// Its steps, each begun when the one before it is done.
    #[serde(rename = "step", default)]
    pub steps: Vec<StepConfig>,
}

fn once() -> u32 {
    1
}

/// One step: it begins when the one before it is done, waits until all that it names has come about, and then does all that
/// it names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StepConfig {
    /// Not before the scenario, or its round, is this old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Span>,
    /// Not before the console has printed this text since the step began, within one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Not before an MSR was accessed so often since the step began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses: Option<AccessesConfig>,
    /// This long after all of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Span>,
    /// And up to this long besides, at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// Keys of MSR devices with their new values, by device: `set.thermal.celsius = 95`. Those that can be set while the guest
    /// runs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "keys_by_device")]
    pub set: BTreeMap<String, toml::Table>,
    /// An MSR to write, as the guest would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<WriteConfig>,
    /// What is done to the VM: "power-button" presses the ACPI power button, "pause" lets it stand still until "resume", and
    /// "stop" cuts its power.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub deed: Option<Deed>,
}

fn keys_by_device(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": { "type": "object" } })
}

/// How often which MSR must be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessesConfig {
    /// The MSR, by index or name. Accesses that reach userspace count, reads and writes, of all vCPUs.
    pub msr: MsrRange,
    /// How many; 1 unless given.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub count: u64,
}

fn one() -> u64 {
    1
}

/// A write to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteConfig {
    /// The MSR, by index or name.
    pub msr: MsrRange,
    /// What is written.
    pub value: U64,
    /// The vCPU that writes, counted from 0.
    #[serde(default)]
    pub vcpu: u32,
}

/// What is done to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// The ACPI power button is pressed.
    PowerButton,
    /// vCPUs and devices stand still.
    Pause,
    /// They go on.
    Resume,
    /// The guest ends at once.
    Stop,
}

impl ScenarioConfig {
    /// What it is called as number `number`, counted from 0.
    pub fn title(&self, number: usize) -> Cow<'_, str> {
        match &self.name {
            Some(name) => name.into(),
            None => format!("{}", number + 1).into(),
        }
    }
}

impl fmt::Display for StepConfig {
    /// What the step does: `set thermal.celsius = 95; power-button`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut deeds = Vec::new();
        for (device, keys) in &self.set {
            for (key, value) in keys {
                deeds.push(format!("set {device}.{key} = {value}"));
            }
        }
        if let Some(WriteConfig { msr, value, vcpu }) = self.write {
            deeds.push(format!("write {:#x} to {msr} of vCPU {vcpu}", value.0));
        }
        deeds.extend(self.deed.map(|deed| deed.to_string()));
        f.write_str(&deeds.join("; "))
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerButton => "power-button",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
        })
    }
}
