//! Initial values: what MSRs that KVM keeps hold when a vCPU starts.
//!
//! An initial value is given to KVM by `KVM_SET_MSRS` when the vCPU is set up, as firmware or a VMM's restore would
//! (Linux, Documentation/virt/kvm/api.rst, 4.19). From then on the register is KVM's: the guest reads and writes it under KVM's
//! own rules for guests, and no access reaches userspace. A device is the other way for a value to come about: userspace
//! answers each access. An MSR has one or the other, never both.

use std::fmt;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use msr_bus::{MsrBus, U64};
use msr_filter::MsrRange;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{MsrPlan, PlanError, VmMsrsError};

/// What an MSR that KVM keeps holds when a vCPU starts (`[[msr.initial]]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(try_from = "Written", into = "Written")]
pub struct InitialMsr {
    /// The MSR index.
    pub index: u32,
    /// The value of the bits that `mask` has; 0 in the others.
    pub value: u64,
    /// The bits that are given. The others stay as KVM has them.
    pub mask: u64,
    /// What becomes of the VM where KVM does not take the value.
    pub refused: OnRefusal,
}

/// What becomes of a VM whose KVM refuses an initial value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnRefusal {
    /// It is not built.
    #[default]
    Error,
    /// It is built without the value, and a warning names the MSR.
    Warn,
}

/// An initial value as a configuration writes it.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
struct Written {
    /// The MSR, by index or name.
    msr: MsrRange,
    /// The value; only bits that `mask` has.
    value: U64,
    /// The bits that are given, all of them unless said. The others stay as KVM has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask: Option<U64>,
    /// What becomes of the VM where KVM does not take the value: "error" (it is not built) or "warn" (it is built without).
    #[serde(default, skip_serializing_if = "is_error")]
    refused: OnRefusal,
}

impl Serialize for Written {
    /// Without field names, as in postcard, nothing may be left out.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        (self.msr, self.value, self.mask, self.refused).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let (msr, value, mask, refused) = Deserialize::deserialize(deserializer)?;
        Ok(Self {
            msr,
            value,
            mask,
            refused,
        })
    }
}

fn is_error(refused: &OnRefusal) -> bool {
    *refused == OnRefusal::Error
}

/// What is wrong with an initial value as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum WrittenError {
    #[error("msr: {0} is a range, and an initial value is for one MSR")]
    Range(MsrRange),
    #[error(
        "value: bits {bits:#x} are not in the mask {mask:#x}, so they would stay as KVM has them"
    )]
    OutsideMask { bits: u64, mask: u64 },
}

impl TryFrom<Written> for InitialMsr {
    type Error = WrittenError;

    fn try_from(written: Written) -> Result<Self, WrittenError> {
        if written.msr.len() != 1 {
            return Err(WrittenError::Range(written.msr));
        }
        let (value, mask) = (
            written.value.0,
            written.mask.map_or(u64::MAX, |mask| mask.0),
        );
        if value & !mask != 0 {
            let bits = value & !mask;
            return Err(WrittenError::OutsideMask { bits, mask });
        }
        Ok(Self {
            index: written.msr.first(),
            value,
            mask,
            refused: written.refused,
        })
    }
}

impl From<InitialMsr> for Written {
    fn from(initial: InitialMsr) -> Self {
        Self {
            msr: MsrRange::single(initial.index),
            value: U64(initial.value),
            mask: (initial.mask != u64::MAX).then_some(U64(initial.mask)),
            refused: initial.refused,
        }
    }
}

/// An initial value that KVM does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedMsr {
    /// What was asked for.
    pub initial: InitialMsr,
    /// What KVM was given, or `None` where it does not even tell what the MSR holds, and only some bits were asked for.
    pub value: Option<u64>,
}

impl fmt::Display for RefusedMsr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.initial.index;
        f.write_str("MSR ")?;
        if let Some(name) = msr_filter::names::name(index) {
            write!(f, "{name} ")?;
        }
        match self.value {
            Some(value) => write!(f, "{index:#x} = {value:#x}"),
            None => write!(f, "{index:#x}, which it does not have"),
        }
    }
}

/// Several refused values, for messages.
pub struct RefusedMsrs<'a>(pub &'a [RefusedMsr]);

impl fmt::Display for RefusedMsrs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, refused) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            write!(f, "{separator}{refused}")?;
        }
        Ok(())
    }
}

/// Each initial value is of an MSR of its own, and of one that KVM answers.
pub(super) fn check(initial: &[InitialMsr], bus: &MsrBus) -> Result<(), PlanError> {
    for (place, InitialMsr { index, .. }) in initial.iter().enumerate() {
        let (number, index) = (place + 1, *index);
        if let Some(first) = initial[..place].iter().position(|i| i.index == index) {
            return Err(PlanError::InitialTwice {
                index,
                first: first + 1,
                second: number,
            });
        }
        let one = MsrRange::single(index);
        if let Some((claim, device)) = bus.claims().find(|(c, _)| c.intersection(one).is_some()) {
            let device = device.name().to_owned();
            return Err(PlanError::InitialClaimed {
                number,
                index,
                device,
                claim,
            });
        }
    }
    Ok(())
}

impl MsrPlan {
    /// Gives a vCPU its initial values, once it has its CPUID. Returns what KVM refused and may be without.
    ///
    /// # Errors
    ///
    /// [`VmMsrsError::InitialRefused`] for values that may not be refused, and [`VmMsrsError::SetMsrs`].
    pub fn set_initial(&self, vcpu: &VcpuFd) -> Result<Vec<RefusedMsr>, VmMsrsError> {
        let refused = set(vcpu, &self.initial).map_err(VmMsrsError::SetMsrs)?;
        let (errors, warnings): (Vec<_>, Vec<_>) = refused
            .into_iter()
            .partition(|refused| refused.initial.refused == OnRefusal::Error);
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(VmMsrsError::InitialRefused(errors))
        }
    }
}

/// Gives a vCPU its initial values, in order, and returns those that KVM refuses. Belongs after `KVM_SET_CPUID2`, which KVM
/// consults for many MSRs.
///
/// # Errors
///
/// Those of `KVM_GET_MSRS` and `KVM_SET_MSRS` themselves. That KVM refuses an MSR or a value is none of them: the ioctls
/// tell it by the number of MSRs they return.
fn set(vcpu: &VcpuFd, values: &[InitialMsr]) -> Result<Vec<RefusedMsr>, kvm_ioctls::Error> {
    let mut refused = Vec::new();
    for initial in values {
        let kept = if initial.mask == u64::MAX {
            Some(0)
        } else {
            let mut one = one(initial.index, 0)?;
            (vcpu.get_msrs(&mut one)? == 1).then(|| one.as_slice()[0].data & !initial.mask)
        };
        let value = kept.map(|kept| kept | initial.value);
        let taken = match value {
            Some(value) => vcpu.set_msrs(&one(initial.index, value)?)? == 1,
            None => false,
        };
        if !taken {
            refused.push(RefusedMsr {
                initial: *initial,
                value,
            });
        }
    }
    Ok(refused)
}

fn one(index: u32, data: u64) -> Result<Msrs, kvm_ioctls::Error> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    // It fails for more entries than KVM's limit only.
    Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<InitialMsr, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn all_bits_are_given_unless_there_is_a_mask() {
        let whole = parse("msr = \"IA32_ARCH_CAPABILITIES\"\nvalue = \"0xc4c\"").unwrap();
        assert_eq!(
            whole,
            InitialMsr {
                index: 0x10a,
                value: 0xc4c,
                mask: u64::MAX,
                refused: OnRefusal::Error,
            }
        );
        let part = parse("msr = 0x8b\nvalue = 4\nmask = 6\nrefused = \"warn\"").unwrap();
        assert_eq!((part.value, part.mask), (4, 6));
        assert_eq!(part.refused, OnRefusal::Warn);
    }

    #[test]
    fn an_initial_value_is_written_as_it_is_read() {
        for text in [
            "msr = \"0x10a\"\nvalue = \"0xc4c\"\n",
            "msr = \"0x8b\"\nvalue = \"0x4\"\nmask = \"0x6\"\nrefused = \"warn\"\n",
        ] {
            let initial = parse(text).unwrap();
            assert_eq!(parse(&toml::to_string(&initial).unwrap()).unwrap(), initial);
        }
    }

    #[test]
    fn a_range_and_a_value_outside_its_mask_are_refused() {
        for (text, words) in [
            ("msr = \"0x10-0x11\"\nvalue = 0", "0x10-0x11 is a range"),
            (
                "msr = 1\nvalue = 3\nmask = 1",
                "bits 0x2 are not in the mask 0x1",
            ),
            ("msr = 1", "missing field `value`"),
            ("msr = 1\nvalue = 1\nmsk = 1", "unknown field `msk`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_refused_value_is_told_by_name_and_index() {
        let initial = parse("msr = 0x10a\nvalue = 1").unwrap();
        let told = [
            RefusedMsr {
                initial,
                value: Some(1),
            },
            RefusedMsr {
                initial: InitialMsr {
                    index: 0x3fff,
                    ..initial
                },
                value: None,
            },
        ];
        assert_eq!(
            RefusedMsrs(&told).to_string(),
            "MSR IA32_ARCH_CAPABILITIES 0x10a = 0x1, MSR 0x3fff, which it does not have"
        );
    }
}
