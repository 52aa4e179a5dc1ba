//! Fault rules as a configuration writes them.

use std::fmt;

use msr_filter::{MsrRange, RangeSummary};
use serde::{Deserialize, Serialize};

use crate::{Access, U64};

/// The longest delay, in microseconds: a paused or stopped vCPU is waited for as long.
pub(super) const MOST_DELAY: u32 = 100_000;
/// The most MSRs of a rule that gives stale values, which keeps a value for each MSR and vCPU.
pub(super) const MOST_STALE: u64 = 256;

/// Accesses that go wrong on purpose (`[[msr.fault]]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// The MSRs. A device must claim each of them, because KVM answers the others itself.
    #[cfg_attr(feature = "config", schemars(length(min = 1)))]
    pub msrs: Vec<MsrRange>,
    /// The kinds of access that go wrong, both where it is not said.
    #[serde(default = "Access::all")]
    pub access: Access,
    /// What goes wrong.
    pub kind: FaultKind,
    /// How likely it is that an access goes wrong, from 0 to 1. A rule has this or `interval`.
    #[cfg_attr(feature = "config", schemars(range(min = 0, max = 1)))]
    #[serde(default)]
    pub probability: Option<f64>,
    /// The n-th access goes wrong, and each n-th after that. A rule has this or `probability`.
    #[cfg_attr(feature = "config", schemars(range(min = 1)))]
    #[serde(default)]
    pub interval: Option<u32>,
    /// How many accesses of each vCPU go wrong at most; without end unless given.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many accesses of each vCPU go well before the first can go wrong.
    #[serde(default)]
    pub space: u32,
    /// The bits that `flip` and `random` choose from; all unless given.
    #[serde(default)]
    pub bits: Option<U64>,
    /// How long `delay` takes, in microseconds: at most 100000.
    #[cfg_attr(feature = "config", schemars(range(min = 1, max = MOST_DELAY)))]
    #[serde(default)]
    pub delay_us: Option<u32>,
    /// The vCPUs whose accesses go wrong, counted from 0; all unless given.
    #[serde(default)]
    pub vcpus: Option<Vec<u32>>,
    /// Which of all possible sequences of chances this is. The same seed gives the same faults.
    #[serde(default)]
    pub seed: U64,
}

/// What goes wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The guest gets #GP. No device is asked.
    Gp,
    /// One bit of the value is the other way round: of the value that the guest reads, or that the device is given.
    Flip,
    /// Bits of the value are replaced by chance.
    Random,
    /// A read gives what the vCPU's last read of the MSR gave. A write is lost.
    Stale,
    /// The access takes longer, and nothing else is wrong with it.
    Delay,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gp => "gp",
            Self::Flip => "flip",
            Self::Random => "random",
            Self::Stale => "stale",
            Self::Delay => "delay",
        })
    }
}

impl fmt::Display for FaultConfig {
    /// What goes wrong, with which accesses and when: `flip of bits 0x7f0000 in rw of 0x19c, probability 0.25, seed 0x7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(bits) = self.bits {
            write!(f, " of bits {:#x}", bits.0)?;
        }
        if let Some(delay) = self.delay_us {
            write!(f, " of {delay} us")?;
        }
        write!(f, " in {} of {}", self.access, RangeSummary(&self.msrs))?;
        if let Some(probability) = self.probability {
            write!(f, ", probability {probability}")?;
        }
        if let Some(interval) = self.interval {
            write!(f, ", interval {interval}")?;
        }
        if let Some(times) = self.times {
            write!(f, ", times {times}")?;
        }
        if self.space > 0 {
            write!(f, ", space {}", self.space)?;
        }
        if let Some(vcpus) = &self.vcpus {
            write!(f, ", vCPUs {vcpus:?}")?;
        }
        write!(f, ", seed {:#x}", self.seed.0)
    }
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// It says of no MSR that it goes wrong.
    #[error("msrs: a rule needs at least one MSR")]
    NoMsr,
    /// It says of no access that it goes wrong.
    #[error("access: a rule is for reads, for writes or for both")]
    NoAccess,
    /// It does not say when, or says it twice.
    #[error("a rule has either `probability` or `interval`, and this has {0}")]
    When(&'static str),
    /// That is no probability.
    #[error("probability: {0} is not from 0 to 1")]
    Probability(String),
    /// There is no zeroth access.
    #[error("interval: 0 is no interval; 1 has every access go wrong")]
    Interval,
    /// There is no such bit to choose.
    #[error("bits: there is no bit to choose from")]
    NoBits,
    /// A key means nothing for what goes wrong.
    #[error("{key}: means nothing for kind = \"{kind}\"; it is for {of}")]
    Meaningless {
        /// The key.
        key: &'static str,
        /// The kind that was given.
        kind: FaultKind,
        /// The kinds that it is for.
        of: &'static str,
    },
    /// A delay needs a length.
    #[error("delay_us: kind = \"delay\" takes from 1 to {MOST_DELAY} microseconds{}", .0.map_or(String::new(), |given| format!(", not {given}")))]
    Delay(Option<u32>),
    /// Values of too many MSRs would be kept.
    #[error(
        "msrs: kind = \"stale\" keeps a value for each of its MSRs, {MOST_STALE} at most, and these are {0}"
    )]
    TooMany(u64),
    /// There is no such vCPU.
    #[error("vcpus: there is no vCPU {vcpu}: the guest has {vcpus}, counted from 0")]
    NoVcpu {
        /// The vCPU that was named.
        vcpu: u32,
        /// How many there are.
        vcpus: u32,
    },
    /// No device answers the MSR, so that no access to it need reach the bus.
    #[error(
        "msrs: no device claims {0}, so KVM answers and nothing can go wrong on purpose; a device with type = \"forward\" claims it and hands \
         each access on to KVM"
    )]
    Unclaimed(MsrRange),
}

impl FaultError {
    /// The key that is wrong.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoMsr | Self::TooMany(_) | Self::Unclaimed(_) => "msrs",
            Self::NoAccess => "access",
            Self::When(_) => "kind",
            Self::Probability(_) => "probability",
            Self::Interval => "interval",
            Self::NoBits => "bits",
            Self::Meaningless { key, .. } => key,
            Self::Delay(None) => "kind",
            Self::Delay(Some(_)) => "delay_us",
            Self::NoVcpu { .. } => "vcpus",
        }
    }
}

impl FaultConfig {
    /// Whether the rule can be carried out for a guest of so many vCPUs.
    pub(super) fn check(&self, vcpus: u32) -> Result<(), FaultError> {
        if self.msrs.is_empty() {
            return Err(FaultError::NoMsr);
        }
        if self.access.is_empty() {
            return Err(FaultError::NoAccess);
        }
        match (self.probability, self.interval) {
            (None, None) => return Err(FaultError::When("neither")),
            (Some(_), Some(_)) => return Err(FaultError::When("both")),
            (Some(p), _) if !(0.0..=1.0).contains(&p) => {
                return Err(FaultError::Probability(p.to_string()));
            }
            (_, Some(0)) => return Err(FaultError::Interval),
            _ => {}
        }
        let corrupts = matches!(self.kind, FaultKind::Flip | FaultKind::Random);
        let meaningless = |key, of| {
            let kind = self.kind;
            Err(FaultError::Meaningless { key, kind, of })
        };
        match self.bits {
            Some(_) if !corrupts => return meaningless("bits", "\"flip\" and \"random\""),
            Some(U64(0)) => return Err(FaultError::NoBits),
            _ => {}
        }
        match self.delay_us {
            Some(_) if self.kind != FaultKind::Delay => {
                return meaningless("delay_us", "\"delay\"");
            }
            Some(1..=MOST_DELAY) => {}
            given if self.kind == FaultKind::Delay => return Err(FaultError::Delay(given)),
            _ => {}
        }
        let msrs: u64 = self.msrs.iter().map(|range| range.len()).sum();
        if self.kind == FaultKind::Stale && msrs > MOST_STALE {
            return Err(FaultError::TooMany(msrs));
        }
        let named = self.vcpus.iter().flatten();
        match named.copied().find(|vcpu| *vcpu >= vcpus) {
            Some(vcpu) => Err(FaultError::NoVcpu { vcpu, vcpus }),
            None => Ok(()),
        }
    }
}
