//! What becomes of an access that no device claims.

use serde::{Deserialize, Serialize};

use crate::{ExitReason, GeneralProtection};

/// The answer to an access that no device claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Unclaimed {
    /// The guest gets #GP, as hardware does for an MSR it lacks.
    #[default]
    Fault,
    /// Reads give 0 and writes are dropped, as `kvm.ignore_msrs=1` has it.
    Ignore,
}

/// The answer for each exit reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// For accesses the filter denies.
    pub filter: Unclaimed,
    /// For MSRs KVM does not know.
    pub unknown: Unclaimed,
    /// For values or kinds of access that KVM rejects.
    pub invalid: Unclaimed,
}

impl Fallback {
    /// The same answer whatever the reason.
    pub const fn uniform(answer: Unclaimed) -> Self {
        Self {
            filter: answer,
            unknown: answer,
            invalid: answer,
        }
    }

    /// The answer for one exit reason.
    pub const fn answer(&self, reason: ExitReason) -> Unclaimed {
        match reason {
            ExitReason::Filter => self.filter,
            ExitReason::Unknown => self.unknown,
            ExitReason::Invalid => self.invalid,
        }
    }

    pub(crate) fn read(&self, reason: ExitReason) -> Result<u64, GeneralProtection> {
        match self.answer(reason) {
            Unclaimed::Fault => Err(GeneralProtection),
            Unclaimed::Ignore => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests;
