//! Where energy comes from.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize};

use super::meter::Meter;
use super::powercap::{Powercap, PowercapState};
use crate::devices::monotonic_clock::{ClockState, MonotonicClock};
use crate::{DeviceContext, RestoreError, Topology};

/// Energy since the device was made. Every reading is at least as large as those finished before it began.
pub(super) enum EnergySource {
    Model(PowerModel),
    Powercap(Powercap),
}

/// What a restored source continues from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum EnergyState {
    Model(ModelState),
    Powercap(PowercapState),
}

impl EnergySource {
    /// The energy `meter` has counted, in picojoules.
    pub(super) fn picojoules(&self, meter: Meter) -> u128 {
        match self {
            Self::Model(model) => model.picojoules(meter),
            Self::Powercap(powercap) => powercap.picojoules(meter),
        }
    }

    pub(super) fn save(&self) -> EnergyState {
        match self {
            Self::Model(model) => EnergyState::Model(model.save()),
            Self::Powercap(powercap) => EnergyState::Powercap(powercap.save()),
        }
    }

    /// Goes on from `state`, or leaves everything as it was.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Mismatch`] where the state is of another source or topology.
    pub(super) fn restore(&self, state: &EnergyState) -> Result<(), RestoreError> {
        match (self, state) {
            (Self::Model(model), EnergyState::Model(state)) => model.restore(state),
            (Self::Powercap(powercap), EnergyState::Powercap(state)) => powercap.restore(state),
            _ => Err(RestoreError::Mismatch(
                "its energy comes from another source".into(),
            )),
        }
    }
}

/// Power in milliwatts, so that times nanoseconds it is picojoules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Power {
    /// A CPU without work.
    pub(super) idle: u64,
    /// A CPU at work; at least `idle`.
    pub(super) busy: u64,
    /// What a package draws besides its CPUs and its graphics.
    pub(super) package: u64,
    /// The graphics of a package.
    pub(super) graphics: u64,
    /// The memory of a package.
    pub(super) dram: u64,
}

/// Each CPU draws its idle power always and its busy power for the CPU time its vCPU gets; the rest draws
/// what it draws.
///
/// The energy is a function of elapsed times with no rounding in it, so it is exact over any run and as
/// steady as the clock.
pub(super) struct PowerModel {
    /// Held while energy is read, because what was drawn before belongs to the power now.
    rates: RwLock<Rates>,
    topology: Topology,
    clock: MonotonicClock,
}

struct Rates {
    power: Power,
    /// For each consumer, by how many pJ it has drawn more than if its power had always been that of now, modulo 2^128.
    before: Vec<u128>,
}

/// What a restored model continues from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelState {
    clock: ClockState,
    /// See [`Rates::before`]: the upper and the lower half of each.
    before: Vec<[u64; 2]>,
}

/// The consumers that draw the same all the time; the vCPUs come after them.
const PACKAGE: usize = 0;
const GRAPHICS: usize = 1;
const DRAM: usize = 2;
const CPUS: usize = 3;

impl PowerModel {
    pub(super) fn new(power: Power, context: &DeviceContext) -> Self {
        let consumers = CPUS + context.topology.vcpus() as usize;
        Self {
            rates: RwLock::new(Rates {
                power,
                before: vec![0; consumers],
            }),
            topology: context.topology,
            clock: MonotonicClock::new(context),
        }
    }

    fn rates(&self) -> RwLockReadGuard<'_, Rates> {
        // Changes in one assignment.
        self.rates.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn picojoules(&self, meter: Meter) -> u128 {
        let rates = self.rates();
        let now = self.clock.now();
        let drawn = |consumer: usize| {
            let vcpu = consumer.checked_sub(CPUS).map_or(0, |vcpu| vcpu as u32);
            let drawn = rates
                .power
                .drawn(consumer, now, || self.clock.cpu_time(vcpu));
            drawn.wrapping_add(rates.before[consumer])
        };
        let cpus = || {
            let vcpus = meter.vcpus(&self.topology);
            let drawn = vcpus.map(|vcpu| drawn(CPUS + vcpu as usize));
            drawn.fold(0, u128::wrapping_add)
        };
        match meter {
            Meter::Package(_) => drawn(PACKAGE)
                .wrapping_add(drawn(GRAPHICS))
                .wrapping_add(cpus()),
            Meter::Cores(_) | Meter::Core(_) => cpus(),
            Meter::Graphics(_) => drawn(GRAPHICS),
            Meter::Dram(_) => drawn(DRAM),
        }
    }

    /// From now on everything draws what `power` says.
    pub(super) fn change(&self, power: Power) {
        let mut rates = self.rates.write().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let before = rates.before.iter().enumerate().map(|(consumer, before)| {
            let vcpu = consumer.checked_sub(CPUS).map_or(0, |vcpu| vcpu as u32);
            let cpu_time = self.clock.cpu_time(vcpu);
            let old = rates.power.drawn(consumer, now, || cpu_time);
            let new = power.drawn(consumer, now, || cpu_time);
            before.wrapping_add(old).wrapping_sub(new)
        });
        *rates = Rates {
            before: before.collect(),
            power,
        };
    }

    fn save(&self) -> ModelState {
        let rates = self.rates();
        let halves = |value: &u128| [(value >> 64) as u64, *value as u64];
        ModelState {
            clock: self.clock.save(),
            before: rates.before.iter().map(halves).collect(),
        }
    }

    fn restore(&self, state: &ModelState) -> Result<(), RestoreError> {
        self.clock.check(&state.clock)?;
        let mut rates = self.rates.write().unwrap_or_else(PoisonError::into_inner);
        if state.before.len() != rates.before.len() {
            return Err(RestoreError::Mismatch(
                "its energy is of a machine with another number of vCPUs".into(),
            ));
        }
        self.clock.restore(&state.clock);
        let whole = |[upper, lower]: &[u64; 2]| u128::from(*upper) << 64 | u128::from(*lower);
        rates.before = state.before.iter().map(whole).collect();
        Ok(())
    }
}

impl Power {
    /// What a consumer draws in `now` ns, in pJ.
    fn drawn(&self, consumer: usize, now: u64, cpu_time: impl Fn() -> u64) -> u128 {
        let energy = |milliwatts: u64, time: u64| u128::from(milliwatts) * u128::from(time);
        match consumer {
            PACKAGE => energy(self.package, now),
            GRAPHICS => energy(self.graphics, now),
            DRAM => energy(self.dram, now),
            _ => energy(self.idle, now) + energy(self.busy - self.idle, cpu_time()),
        }
    }
}

/// What a counter with a unit of 1/2^`exponent` J shows: the low 32 bits of the energy in that unit.
pub(super) fn counter(picojoules: u128, exponent: u32) -> u64 {
    const JOULE: u128 = 1_000_000_000_000;
    // Whole joules and the rest apart: no intermediate value can overflow.
    let units = ((picojoules / JOULE) << exponent) + (((picojoules % JOULE) << exponent) / JOULE);
    u64::from(units as u32)
}
