//! One rule at work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::config::{FaultConfig, FaultError, FaultKind};
use super::decision::{any, draw, happens, one_of};
use super::state::{FaultState, VcpuFaults};
use crate::{Access, MsrAccess, RestoreError, U64};

/// A rule, and what each vCPU has met of it. The numbers of a vCPU are written by its own thread alone.
#[derive(Debug)]
pub(super) struct FaultRule {
    number: u64,
    config: FaultConfig,
    vcpus: Box<[PerVcpu]>,
}

#[derive(Debug)]
struct PerVcpu {
    /// Whether its accesses go wrong at all.
    chosen: bool,
    accesses: AtomicU64,
    injected: AtomicU64,
    /// What its last reads gave, in the order of the rule's MSRs.
    last: Box<[Last]>,
}

/// What a read of an MSR gave, if there was one.
#[derive(Debug, Default)]
struct Last {
    known: AtomicBool,
    value: AtomicU64,
}

impl FaultRule {
    pub(super) fn new(number: u64, config: &FaultConfig, vcpus: u32) -> Result<Self, FaultError> {
        config.check(vcpus)?;
        let msrs = match config.kind {
            FaultKind::Stale => config.msrs.iter().map(|range| range.len()).sum(),
            _ => 0,
        };
        let per_vcpu = |vcpu: u32| PerVcpu {
            chosen: config
                .vcpus
                .as_ref()
                .is_none_or(|only| only.contains(&vcpu)),
            accesses: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            last: (0..msrs).map(|_| Last::default()).collect(),
        };
        Ok(Self {
            number,
            vcpus: (0..vcpus).map(per_vcpu).collect(),
            config: config.clone(),
        })
    }

    pub(super) fn config(&self) -> &FaultConfig {
        &self.config
    }

    pub(super) fn kind(&self) -> FaultKind {
        self.config.kind
    }

    pub(super) fn injected(&self) -> u64 {
        let of = |vcpu: &PerVcpu| vcpu.injected.load(Ordering::Relaxed);
        self.vcpus.iter().map(of).sum()
    }

    fn vcpu(&self, access: &MsrAccess<'_>) -> Option<&PerVcpu> {
        let vcpu = self.vcpus.get(access.cpu.id().0 as usize);
        vcpu.filter(|vcpu| vcpu.chosen)
    }

    /// Whether the rule speaks of the access.
    pub(super) fn matches(&self, access: &MsrAccess<'_>, kind: Access) -> bool {
        self.config.access.contains(kind)
            && self
                .config
                .msrs
                .iter()
                .any(|range| range.contains(access.index))
            && self.vcpu(access).is_some()
    }

    /// Counts the access. Gives a number drawn for it where it goes wrong, which it does where it `may`.
    pub(super) fn count(&self, access: &MsrAccess<'_>, kind: Access, may: bool) -> Option<u64> {
        let vcpu = self.vcpu(access)?;
        let count = vcpu.accesses.fetch_add(1, Ordering::Relaxed) + 1;
        let FaultConfig {
            probability,
            interval,
            times,
            space,
            seed,
            ..
        } = &self.config;
        let spent = |times: u32| vcpu.injected.load(Ordering::Relaxed) >= u64::from(times);
        let after_space = count.saturating_sub(u64::from(*space));
        let nothing_stale = self.config.kind == FaultKind::Stale
            && kind == Access::READ
            && self.last(access).is_none();
        if after_space == 0 || !may || nothing_stale || times.is_some_and(spent) {
            return None;
        }
        let drawn = draw(seed.0, self.number, access.cpu.id().0, count);
        let goes_wrong = match (interval, probability) {
            (Some(interval), _) => after_space.is_multiple_of(u64::from(*interval)),
            (None, probability) => happens(drawn, probability.unwrap_or(0.0)),
        };
        goes_wrong.then(|| {
            vcpu.injected.fetch_add(1, Ordering::Relaxed);
            drawn
        })
    }

    /// The value with what goes wrong with it.
    pub(super) fn corrupt(&self, value: u64, drawn: u64) -> u64 {
        let bits = self.config.bits.map_or(u64::MAX, |bits| bits.0);
        match self.config.kind {
            FaultKind::Flip => value ^ one_of(bits, drawn),
            _ => value & !bits | any(drawn) & bits,
        }
    }

    /// Has the vCPU wait.
    pub(super) fn delay(&self) {
        let time = self.config.delay_us.unwrap_or(0);
        thread::sleep(Duration::from_micros(time.into()));
    }

    /// Where what the MSR gave is kept.
    fn place(&self, access: &MsrAccess<'_>) -> Option<&Last> {
        if self.config.kind != FaultKind::Stale {
            return None;
        }
        let mut before = 0;
        for range in &self.config.msrs {
            if range.contains(access.index) {
                let place = before + u64::from(access.index - range.first());
                return self.vcpu(access)?.last.get(place as usize);
            }
            before += range.len();
        }
        None
    }

    /// What the vCPU's last read of the MSR gave.
    pub(super) fn last(&self, access: &MsrAccess<'_>) -> Option<u64> {
        let last = self.place(access)?;
        let known = last.known.load(Ordering::Relaxed);
        known.then(|| last.value.load(Ordering::Relaxed))
    }

    /// Keeps what a read gave.
    pub(super) fn remember(&self, access: &MsrAccess<'_>, value: u64) {
        if let Some(last) = self.place(access) {
            last.value.store(value, Ordering::Relaxed);
            last.known.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn save(&self) -> FaultState {
        let of = |vcpu: &PerVcpu| VcpuFaults {
            accesses: vcpu.accesses.load(Ordering::Relaxed),
            injected: vcpu.injected.load(Ordering::Relaxed),
            last: vcpu.last.iter().map(Last::get).collect(),
        };
        FaultState {
            vcpus: self.vcpus.iter().map(of).collect(),
        }
    }

    /// Whether the rule could have counted that.
    pub(super) fn check(&self, state: &FaultState) -> Result<(), RestoreError> {
        let mismatch = |what: String| {
            let rule = self.number + 1;
            Err(RestoreError::Mismatch(format!("fault rule {rule}: {what}")))
        };
        if state.vcpus.len() != self.vcpus.len() {
            let (saved, here) = (state.vcpus.len(), self.vcpus.len());
            return mismatch(format!("it counts for {saved} vCPUs, and there are {here}"));
        }
        for (number, (vcpu, saved)) in self.vcpus.iter().zip(&state.vcpus).enumerate() {
            let VcpuFaults {
                accesses,
                injected,
                last,
            } = saved;
            if last.len() != vcpu.last.len() {
                return mismatch(format!(
                    "vCPU {number} has {} last values, and the rule keeps {}",
                    last.len(),
                    vcpu.last.len()
                ));
            }
            let after_space = accesses.saturating_sub(self.config.space.into());
            let possible = match self.config.interval {
                Some(interval) => after_space / u64::from(interval),
                None => after_space,
            };
            let possible = self
                .config
                .times
                .map_or(possible, |times| possible.min(times.into()));
            if *injected > possible || !vcpu.chosen && *accesses > 0 {
                return mismatch(format!(
                    "vCPU {number} cannot have met {injected} faults in {accesses} accesses"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn restore(&self, state: &FaultState) {
        for (vcpu, saved) in self.vcpus.iter().zip(&state.vcpus) {
            vcpu.accesses.store(saved.accesses, Ordering::Relaxed);
            vcpu.injected.store(saved.injected, Ordering::Relaxed);
            for (last, saved) in vcpu.last.iter().zip(&saved.last) {
                last.known.store(saved.is_some(), Ordering::Relaxed);
                last.value
                    .store(saved.map_or(0, |value| value.0), Ordering::Relaxed);
            }
        }
    }
}

impl Last {
    fn get(&self) -> Option<U64> {
        let known = self.known.load(Ordering::Relaxed);
        known.then(|| U64(self.value.load(Ordering::Relaxed)))
    }
}
