//! What the rules have counted, as it is saved.

use serde::{Deserialize, Serialize};

use crate::U64;

/// What one rule has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultState {
    pub(super) vcpus: Vec<VcpuFaults>,
}

/// What one vCPU has met of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VcpuFaults {
    /// The accesses that the rule speaks of.
    pub(super) accesses: u64,
    /// Those that went wrong.
    pub(super) injected: u64,
    /// What the last reads gave, for a rule that gives stale values.
    pub(super) last: Vec<Option<U64>>,
}
