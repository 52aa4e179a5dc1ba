//! The `[msr]` part of a configuration.

use std::path::PathBuf;

use msr_bus::{DeviceConfig, ExitReason, Fallback, Unclaimed};
use msr_filter::{FilterConfig, Verdict};
use serde::{Deserialize, Deserializer, Serialize};

use crate::InitialMsr;

/// Who answers which MSR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MsrConfig {
    /// The reasons for which KVM asks userspace; for the others it injects #GP itself.
    pub exits: Vec<ExitReason>,
    /// The answer to what no device claims: `"fault"`, `"ignore"`, or a table with one for each reason.
    #[serde(deserialize_with = "uniform_or_each")]
    pub unclaimed: Fallback,
    /// A profile to build on: the name of one that comes with the VMM, or a file. Its rules come after those
    /// of `filter`, and its default takes the place of `filter`'s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// What the kernel may answer, apart from what devices claim.
    #[serde(skip_serializing_if = "is_default")]
    pub filter: FilterConfig,
    /// What MSRs that KVM keeps hold when a vCPU starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initial: Vec<InitialMsr>,
    /// The MSR devices.
    #[serde(rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceConfig>,
}

impl Default for MsrConfig {
    fn default() -> Self {
        Self {
            exits: ExitReason::ALL.to_vec(),
            unclaimed: Fallback::default(),
            profile: None,
            filter: no_rules(),
            initial: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// The kernel may answer whatever no device claims.
fn no_rules() -> FilterConfig {
    FilterConfig {
        default: Verdict::Allow,
        rules: Vec::new(),
    }
}

fn is_default(filter: &FilterConfig) -> bool {
    *filter == no_rules()
}

fn uniform_or_each<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Fallback, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "\"fault\", \"ignore\", or a table that gives one of them for `filter`, `unknown` and `invalid`"
    )]
    enum Written {
        Uniform(Unclaimed),
        Each(Fallback),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::Uniform(answer) => Fallback::uniform(answer),
        Written::Each(fallback) => fallback,
    })
}
