//! The MSRs of a vCPU, saved.

use serde::{Deserialize, Serialize};

/// An MSR with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMsr {
    /// The MSR's index.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// The MSRs of one vCPU, in any order. What it holds is checked when it is restored, and not before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MsrState {
    /// The MSRs.
    pub msrs: Vec<SavedMsr>,
}

impl MsrState {
    /// The value of an MSR, if it was saved.
    pub fn value(&self, index: u32) -> Option<u64> {
        let saved = self.msrs.iter().find(|msr| msr.index == index)?;
        Some(saved.value)
    }

    /// Changes the value of an MSR that was saved, and says whether it was.
    pub fn set(&mut self, index: u32, value: u64) -> bool {
        let saved = self.msrs.iter_mut().find(|msr| msr.index == index);
        saved.map(|msr| msr.value = value).is_some()
    }
}

/// An MSR in words: its name where it has one, and its index.
pub(super) fn described(index: u32) -> String {
    match msr_filter::names::name(index) {
        Some(name) => format!("{name} ({index:#x})"),
        None => format!("MSR {index:#x}"),
    }
}
