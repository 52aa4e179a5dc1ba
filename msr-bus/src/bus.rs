//! The bus: devices by the indices they claim.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::lookup::{Lookup, Owner};
use crate::state::NamedState;
use crate::{
    Access, AnsweredBy, BusState, DeviceState, Fallback, FaultConfig, FaultError, FaultKind,
    Faults, GeneralProtection, MsrAccess, MsrDevice, MsrEvent, MsrObserver, MsrRange, RestoreError,
};

/// Devices by the MSR indices they claim. Built once, then immutable and shared by all vCPU threads:
/// dispatching an access takes no lock and allocates nothing.
pub struct MsrBus {
    devices: Box<[Arc<dyn MsrDevice>]>,
    claims: Box<[(MsrRange, Owner)]>,
    lookup: Lookup,
    fallback: Fallback,
    observers: Box<[Arc<dyn MsrObserver>]>,
    /// There only where something is to go wrong.
    faults: Option<Box<Faults>>,
}

/// Why devices cannot share a bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two claims overlap.
    #[error("devices `{first}` and `{second}` both claim MSR {range}")]
    Overlap {
        /// The device that was added first.
        first: String,
        /// The device that was added later, or the same one where it claims an index twice.
        second: String,
        /// The indices both claim.
        range: MsrRange,
    },
    /// A device claims indices that never leave the kernel.
    #[error(
        "device `{device}` claims MSR {range}, but KVM never filters the x2APIC MSRs 0x800-0x8ff"
    )]
    X2apic {
        /// The device.
        device: String,
        /// What it claims of the x2APIC range.
        range: MsrRange,
    },
    /// Two devices have the same name, so that neither messages nor saved state could tell them apart.
    #[error("two devices are called `{0}`: give one of them another `name`")]
    SameName(String),
    /// There are more devices than the bus can tell apart.
    #[error("{0} devices are too many, a bus takes at most 65535")]
    TooMany(usize),
    /// A rule for faults cannot be carried out.
    #[error("fault {number}: {source}")]
    Fault {
        /// The rule's place, from 1.
        number: usize,
        /// What is wrong with it.
        source: FaultError,
    },
}

/// Collects what a bus is made of.
#[derive(Default)]
pub struct BusBuilder {
    devices: Vec<Arc<dyn MsrDevice>>,
    fallback: Fallback,
    observers: Vec<Arc<dyn MsrObserver>>,
    faults: Vec<FaultConfig>,
    vcpus: u32,
}

impl BusBuilder {
    /// Adds a device.
    #[must_use]
    pub fn device(mut self, device: Arc<dyn MsrDevice>) -> Self {
        self.devices.push(device);
        self
    }

    /// Sets what becomes of accesses that no device claims; #GP unless said otherwise.
    #[must_use]
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Adds an observer, which sees every access. Several are called in the order in which they were added.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn MsrObserver>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Has accesses go wrong on purpose, in a guest of at most so many vCPUs.
    #[must_use]
    pub fn faults(mut self, rules: Vec<FaultConfig>, vcpus: u32) -> Self {
        (self.faults, self.vcpus) = (rules, vcpus);
        self
    }

    /// Builds the bus.
    ///
    /// # Errors
    ///
    /// [`BuildError`], which names the devices and the range that are in each other's way.
    pub fn build(self) -> Result<MsrBus, BuildError> {
        if self.devices.len() > usize::from(Owner::MAX) {
            return Err(BuildError::TooMany(self.devices.len()));
        }
        let mut names = HashSet::new();
        if let Some(twice) = self.devices.iter().find(|d| !names.insert(d.name())) {
            return Err(BuildError::SameName(twice.name().to_owned()));
        }
        let mut claims: Vec<(MsrRange, Owner)> = Vec::new();
        for (owner, device) in (0..).zip(&self.devices) {
            claims.extend(device.claims().into_iter().map(|range| (range, owner)));
        }
        claims.sort_unstable();
        let name = |owner: Owner| self.devices[usize::from(owner)].name().to_owned();
        for (range, owner) in &claims {
            if let Some(range) = range.intersection(MsrRange::X2APIC) {
                return Err(BuildError::X2apic {
                    device: name(*owner),
                    range,
                });
            }
        }
        for pair in claims.windows(2) {
            let [(a, a_owner), (b, b_owner)] = pair else {
                unreachable!("windows of two")
            };
            if let Some(range) = a.intersection(*b) {
                let (first, second) = (*a_owner.min(b_owner), *a_owner.max(b_owner));
                return Err(BuildError::Overlap {
                    first: name(first),
                    second: name(second),
                    range,
                });
            }
        }
        let ranges: Vec<MsrRange> = claims.iter().map(|(range, _)| *range).collect();
        let faults = faults(&self.faults, self.vcpus, &ranges)?;
        Ok(MsrBus {
            faults,
            lookup: Lookup::new(&claims),
            devices: self.devices.into_boxed_slice(),
            claims: claims.into_boxed_slice(),
            fallback: self.fallback,
            observers: self.observers.into_boxed_slice(),
        })
    }
}

/// The faults of these rules, if there are any, on MSRs that are claimed.
fn faults(
    rules: &[FaultConfig],
    vcpus: u32,
    claims: &[MsrRange],
) -> Result<Option<Box<Faults>>, BuildError> {
    let wrong = |(number, source)| BuildError::Fault {
        number: number + 1,
        source,
    };
    let faults = Faults::new(rules, vcpus).map_err(wrong)?;
    match faults.unclaimed(claims) {
        Some((number, range)) => Err(wrong((number, FaultError::Unclaimed(range)))),
        None => Ok((!rules.is_empty()).then(|| Box::new(faults))),
    }
}

impl fmt::Debug for MsrBus {
    /// The devices' names and what they claim.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (range, device) in self.claims() {
            map.entry(&format_args!("{range}"), &device.name());
        }
        map.finish()
    }
}

impl fmt::Debug for BusBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.devices.iter().map(|device| device.name()))
            .finish()
    }
}

impl MsrBus {
    /// A builder with no device, a fallback of #GP and no observer.
    pub fn builder() -> BusBuilder {
        BusBuilder::default()
    }

    /// Answers an RDMSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] where the guest is to get #GP.
    #[inline]
    pub fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let device = self.device(access.index);
        let answer = || match device {
            Some(device) => device.read(access),
            None => self.fallback.read(access.reason),
        };
        let (outcome, injected) = match &self.faults {
            None => (answer(), None),
            Some(faults) => faults.read(access, answer),
        };
        self.observe(access, (Access::READ, 0), outcome, device, injected);
        outcome
    }

    /// Answers a WRMSR of `value`.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] where the guest is to get #GP.
    #[inline]
    pub fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let device = self.device(access.index);
        let answer = |value| match device {
            Some(device) => device.write(access, value),
            None => self.fallback.read(access.reason).map(drop),
        };
        let (outcome, injected) = match &self.faults {
            None => (answer(value), None),
            Some(faults) => faults.write(access, value, answer),
        };
        let given = outcome.map(|()| value);
        self.observe(access, (Access::WRITE, value), given, device, injected);
        outcome
    }

    /// The device that claims `index`, if one does.
    #[inline]
    pub fn device(&self, index: u32) -> Option<&dyn MsrDevice> {
        self.lookup
            .owner(index)
            .map(|owner| &*self.devices[usize::from(owner)])
    }

    /// Every claim with its device, in ascending order.
    pub fn claims(&self) -> impl Iterator<Item = (MsrRange, &dyn MsrDevice)> {
        self.claims
            .iter()
            .map(|(range, owner)| (*range, &*self.devices[usize::from(*owner)]))
    }

    /// What becomes of accesses that no device claims.
    pub fn fallback(&self) -> Fallback {
        self.fallback
    }

    /// What goes wrong on purpose, if anything does.
    pub fn faults(&self) -> Option<&Faults> {
        self.faults.as_deref()
    }

    /// The state of every device that keeps any. No vCPU may run meanwhile.
    pub fn save(&self) -> BusState {
        let devices = self
            .devices
            .iter()
            .filter_map(|d| {
                Some(NamedState {
                    device: d.name().to_owned(),
                    state: d.save()?,
                })
            })
            .collect();
        BusState {
            version: BusState::VERSION,
            devices,
            faults: self.faults().map_or(Vec::new(), Faults::save),
        }
    }

    /// Restores the state that a bus with the same devices saved. No vCPU may run meanwhile.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]. Where it is about one device's data, the bus is half restored and not fit for use;
    /// otherwise nothing has changed.
    pub fn restore(&self, state: &BusState) -> Result<(), RestoreError> {
        BusState::check_version(state.version)?;
        let mut saved: HashMap<&str, &DeviceState> = HashMap::new();
        for named in &state.devices {
            if saved.insert(&named.device, &named.state).is_some() {
                return Err(RestoreError::Twice(named.device.clone()));
            }
        }
        let mut restores = Vec::new();
        for device in &self.devices {
            match saved.remove(device.name()) {
                Some(state) => restores.push((device, state)),
                None if device.save().is_some() => {
                    return Err(RestoreError::Missing(device.name().to_owned()));
                }
                None => {}
            }
        }
        if let Some(unclaimed) = saved.into_keys().min() {
            return Err(RestoreError::Unclaimed(unclaimed.to_owned()));
        }
        match &self.faults {
            Some(faults) => faults.restore(&state.faults)?,
            None if state.faults.is_empty() => {}
            None => {
                return Err(RestoreError::Mismatch(
                    "it counts for fault rules, and there are none".into(),
                ));
            }
        }
        for (device, state) in restores {
            device
                .restore(state)
                .map_err(|source| RestoreError::Device {
                    device: device.name().to_owned(),
                    source: Box::new(source),
                })?;
        }
        Ok(())
    }

    #[inline]
    fn observe(
        &self,
        access: &MsrAccess<'_>,
        (kind, written): (Access, u64),
        outcome: Result<u64, GeneralProtection>,
        device: Option<&dyn MsrDevice>,
        injected: Option<FaultKind>,
    ) {
        for observer in &self.observers {
            let answered_by = device.map_or(AnsweredBy::Fallback, AnsweredBy::Device);
            observer.observe(&MsrEvent {
                access,
                kind,
                written,
                outcome,
                answered_by,
                injected,
            });
        }
    }
}

#[cfg(test)]
mod tests;
