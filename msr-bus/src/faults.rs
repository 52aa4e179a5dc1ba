//! Faults on demand: accesses that go wrong on purpose, so that a driver's error paths are tested.
//!
//! A rule ([`FaultConfig`]) names MSRs and says what goes wrong with which of their accesses, in the terms of the kernel's fault
//! injection (Documentation/fault-injection/fault-injection.rst): by `probability` or at an `interval`, at most so many `times`,
//! after a `space`. [`Faults`] stands between the bus and its devices. A bus without rules pays one branch for an access.
//!
//! Each vCPU counts its own accesses, and whether one goes wrong depends on the rule, its seed, the vCPU and that count alone.
//! So the same guest meets the same faults again, in whatever order its vCPUs run. The counts are state: a restored bus goes on
//! where it was saved. Of several rules for an access the first that has it go wrong does, and all of them count it.
//!
//! Left out: accesses that KVM answers, which no bus sees. An MSR needs a device that claims it, be it `forward`, which hands the
//! access back to KVM.

mod config;
mod decision;
mod rule;
mod state;
#[cfg(test)]
mod tests;

use crate::{Access, GeneralProtection, MsrAccess, MsrRange, RestoreError};

pub use config::{FaultConfig, FaultError, FaultKind};
use rule::FaultRule;
pub(crate) use state::FaultState;

/// The rules, with what they have counted.
#[derive(Debug)]
pub struct Faults {
    rules: Box<[FaultRule]>,
}

/// An answer, and what went wrong on the way.
pub(crate) type Answered<T> = (Result<T, GeneralProtection>, Option<FaultKind>);

impl Faults {
    /// The faults of these rules, for a guest of at most so many vCPUs.
    ///
    /// # Errors
    ///
    /// [`FaultError`] with the number of the rule, counted from 0.
    pub fn new(rules: &[FaultConfig], vcpus: u32) -> Result<Self, (usize, FaultError)> {
        let rules = rules.iter().enumerate().map(|(number, config)| {
            FaultRule::new(number as u64, config, vcpus).map_err(|error| (number, error))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// The rules as they were given.
    pub fn rules(&self) -> impl Iterator<Item = &FaultConfig> {
        self.rules.iter().map(FaultRule::config)
    }

    /// A rule's MSRs that are not among these claims, which ascend, with the number of the rule, counted from 0.
    pub(crate) fn unclaimed(&self, claims: &[MsrRange]) -> Option<(usize, MsrRange)> {
        self.rules().enumerate().find_map(|(number, rule)| {
            let gap = |range: &MsrRange| first_gap(*range, claims);
            Some((number, rule.msrs.iter().find_map(gap)?))
        })
    }

    /// How many faults there have been, of all rules and vCPUs.
    pub fn injected(&self) -> u64 {
        self.rules.iter().map(FaultRule::injected).sum()
    }

    /// Answers a read, which `answer` would answer.
    pub(crate) fn read(
        &self,
        access: &MsrAccess<'_>,
        answer: impl FnOnce() -> Result<u64, GeneralProtection>,
    ) -> Answered<u64> {
        let Some((rule, draw)) = self.decide(access, Access::READ) else {
            let outcome = answer();
            self.remember(access, outcome);
            return (outcome, None);
        };
        let kind = rule.kind();
        let outcome = match kind {
            FaultKind::Gp => Err(GeneralProtection),
            FaultKind::Stale => rule.last(access).map_or_else(answer, Ok),
            FaultKind::Flip | FaultKind::Random => answer().map(|value| rule.corrupt(value, draw)),
            FaultKind::Delay => {
                rule.delay();
                let outcome = answer();
                self.remember(access, outcome);
                outcome
            }
        };
        (outcome, Some(kind))
    }

    /// Answers a write of `value`, which `answer` would answer.
    pub(crate) fn write(
        &self,
        access: &MsrAccess<'_>,
        value: u64,
        answer: impl FnOnce(u64) -> Result<(), GeneralProtection>,
    ) -> Answered<()> {
        let Some((rule, draw)) = self.decide(access, Access::WRITE) else {
            return (answer(value), None);
        };
        let kind = rule.kind();
        let outcome = match kind {
            FaultKind::Gp => Err(GeneralProtection),
            // The register keeps what it has.
            FaultKind::Stale => Ok(()),
            FaultKind::Flip | FaultKind::Random => answer(rule.corrupt(value, draw)),
            FaultKind::Delay => {
                rule.delay();
                answer(value)
            }
        };
        (outcome, Some(kind))
    }

    /// The rule that has the access go wrong, with the number that it drew for it.
    fn decide(&self, access: &MsrAccess<'_>, kind: Access) -> Option<(&FaultRule, u64)> {
        let mut decided = None;
        for rule in &self.rules {
            if !rule.matches(access, kind) {
                continue;
            }
            let draw = rule.count(access, kind, decided.is_none());
            if decided.is_none() {
                decided = draw.map(|draw| (rule, draw));
            }
        }
        decided
    }

    /// Keeps what the guest got for the rules whose fault it will be.
    fn remember(&self, access: &MsrAccess<'_>, outcome: Result<u64, GeneralProtection>) {
        if let Ok(value) = outcome {
            for rule in &self.rules {
                rule.remember(access, value);
            }
        }
    }

    /// What has been counted. No vCPU may run meanwhile.
    pub(crate) fn save(&self) -> Vec<FaultState> {
        self.rules.iter().map(FaultRule::save).collect()
    }

    /// Takes over what the same rules have counted. No vCPU may run meanwhile.
    pub(crate) fn restore(&self, states: &[FaultState]) -> Result<(), RestoreError> {
        if states.len() != self.rules.len() {
            return Err(RestoreError::Mismatch(format!(
                "it counts for {} fault rules, and there are {}",
                states.len(),
                self.rules.len()
            )));
        }
        // All of them, before one is changed.
        for (rule, state) in self.rules.iter().zip(states) {
            rule.check(state)?;
        }
        for (rule, state) in self.rules.iter().zip(states) {
            rule.restore(state);
        }
        Ok(())
    }
}

/// The first part of `range` that none of the `claims`, which ascend, has.
fn first_gap(range: MsrRange, claims: &[MsrRange]) -> Option<MsrRange> {
    let mut next = range.first();
    for claim in claims.iter().filter_map(|claim| claim.intersection(range)) {
        if claim.first() > next {
            return MsrRange::new(next, claim.first() - 1).ok();
        }
        if claim.last() == range.last() {
            return None;
        }
        next = claim.last() + 1;
    }
    MsrRange::new(next, range.last()).ok()
}
