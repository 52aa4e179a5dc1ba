//! Where energy comes from.

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
    Model(ClockState),
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
            Self::Model(model) => EnergyState::Model(model.clock.save()),
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
            (Self::Model(model), EnergyState::Model(state)) => {
                model.clock.check(state)?;
                model.clock.restore(state);
                Ok(())
            }
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
    power: Power,
    topology: Topology,
    clock: MonotonicClock,
}

impl PowerModel {
    pub(super) fn new(power: Power, context: &DeviceContext) -> Self {
        Self {
            power,
            topology: context.topology,
            clock: MonotonicClock::new(context),
        }
    }

    fn picojoules(&self, meter: Meter) -> u128 {
        let power = &self.power;
        let now = u128::from(self.clock.now());
        let drawn = |milliwatts: u64| u128::from(milliwatts) * now;
        match meter {
            Meter::Package(_) => drawn(power.package + power.graphics) + self.cpus(meter, now),
            Meter::Cores(_) | Meter::Core(_) => self.cpus(meter, now),
            Meter::Graphics(_) => drawn(power.graphics),
            Meter::Dram(_) => drawn(power.dram),
        }
    }

    fn cpus(&self, meter: Meter, now: u128) -> u128 {
        let idle = u128::from(self.power.idle) * now;
        let extra = u128::from(self.power.busy - self.power.idle);
        let vcpus = meter.vcpus(&self.topology);
        vcpus
            .map(|id| idle + extra * u128::from(self.clock.cpu_time(id)))
            .sum()
    }
}

/// What a counter with a unit of 1/2^`exponent` J shows: the low 32 bits of the energy in that unit.
pub(super) fn counter(picojoules: u128, exponent: u32) -> u64 {
    const JOULE: u128 = 1_000_000_000_000;
    // Whole joules and the rest apart: no intermediate value can overflow.
    let units = ((picojoules / JOULE) << exponent) + (((picojoules % JOULE) << exponent) / JOULE);
    u64::from(units as u32)
}
