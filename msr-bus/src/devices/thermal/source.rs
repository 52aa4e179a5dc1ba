//! Where temperatures come from.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::devices::host;
use crate::devices::monotonic_clock::{ClockState, MonotonicClock};
use crate::{CpuClock, CpuLocation, DeviceContext, RestoreError, Topology};

/// Which sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A core's own.
    Core,
    /// The hottest of a package.
    Package,
}

/// Temperatures in thousandths of a degree Celsius.
pub(super) enum Temperature {
    Constant(i64),
    Model(Heat),
    Host(Host),
}

impl Temperature {
    /// The temperature at `location`.
    pub(super) fn millidegrees(&self, place: Place, location: CpuLocation) -> i64 {
        match self {
            Self::Constant(millidegrees) => *millidegrees,
            Self::Model(heat) => heat.millidegrees(place, location),
            Self::Host(host) => host.millidegrees(),
        }
    }

    /// Becomes `next`. A model goes on from the temperatures that its cores have, as far as they are possible now.
    pub(super) fn change(&mut self, next: Self) {
        if let (Self::Model(heat), Self::Model(next)) = (&mut *self, &next) {
            return heat.change(next.config);
        }
        *self = next;
    }

    pub(super) fn save(&self) -> Option<HeatState> {
        match self {
            Self::Model(heat) => Some(heat.save()),
            Self::Constant(_) | Self::Host(_) => None,
        }
    }

    /// Whether `state` is of a source like this one.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Mismatch`] where it is not.
    pub(super) fn check(&self, state: Option<&HeatState>) -> Result<(), RestoreError> {
        match (self, state) {
            (Self::Model(heat), Some(state)) => heat.check(state),
            (Self::Constant(_) | Self::Host(_), None) => Ok(()),
            _ => Err(RestoreError::Mismatch(
                "its temperature comes from another source".into(),
            )),
        }
    }

    /// Goes on from a state that [`check`](Self::check) has passed.
    pub(super) fn restore(&self, state: Option<HeatState>) {
        if let (Self::Model(heat), Some(state)) = (self, state) {
            heat.restore(state);
        }
    }
}

/// A sensor of the host.
pub(super) trait Thermometer: Send + Sync {
    /// What it shows, in thousandths of a degree Celsius.
    fn millidegrees(&self) -> io::Result<i64>;
}

/// An open `temp*_input` file (Documentation/hwmon/sysfs-interface.rst).
impl Thermometer for File {
    fn millidegrees(&self) -> io::Result<i64> {
        host::read_number(self)
    }
}

/// One sensor of the host for all of the guest.
pub(super) struct Host {
    thermometer: Box<dyn Thermometer>,
    clock: Arc<dyn CpuClock>,
    /// How old a reading gets before the sensor is read again, in nanoseconds.
    period: u64,
    /// When it was read last, in nanoseconds of the clock.
    read_at: AtomicU64,
    last: AtomicI64,
}

impl Host {
    /// # Errors
    ///
    /// That of the first reading.
    pub(super) fn new(
        thermometer: Box<dyn Thermometer>,
        period: u64,
        clock: Arc<dyn CpuClock>,
    ) -> io::Result<Self> {
        let last = AtomicI64::new(thermometer.millidegrees()?);
        Ok(Self {
            thermometer,
            period,
            read_at: AtomicU64::new(nanoseconds(clock.now())),
            clock,
            last,
        })
    }

    /// What the sensor shows, or did before it failed, at most a period ago.
    fn millidegrees(&self) -> i64 {
        let now = nanoseconds(self.clock.now());
        let due = |read_at: u64| (now.saturating_sub(read_at) >= self.period).then_some(now);
        let ordering = Ordering::Relaxed;
        // Of several CPUs that find it due, one reads.
        if self.read_at.fetch_update(ordering, ordering, due).is_err() {
            return self.last.load(Ordering::Relaxed);
        }
        match self.thermometer.millidegrees() {
            Ok(reading) => {
                self.last.store(reading, Ordering::Relaxed);
                reading
            }
            Err(_) => self.last.load(Ordering::Relaxed),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How hot a core gets, in millionths of a degree, and how slowly, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeatConfig {
    /// Where a core without work ends up.
    pub(super) idle: i64,
    /// Where a core at work ends up; at least `idle`.
    pub(super) busy: i64,
    /// In this time it covers all but 1/e of the way.
    pub(super) time_constant: f64,
}

/// A body per core that nears the temperature its load leads to, by Newton's law of cooling. The load is
/// the CPU time that the vCPUs of the core got since it was last looked at; a core with one thread at
/// work is at work.
pub(super) struct Heat {
    config: HeatConfig,
    topology: Topology,
    clock: MonotonicClock,
    cores: Mutex<Vec<Core>>,
}

/// A core as it was at a time of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Core {
    microdegrees: i64,
    now: u64,
    cpu_time: u64,
}

/// What a restored model continues from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeatState {
    clock: ClockState,
    cores: Vec<Core>,
}

/// The shortest step, in nanoseconds: rounding to millionths of a degree is nothing over so long.
const STEP: u64 = 1_000_000;

impl Heat {
    /// The model, with every core cold.
    pub(super) fn new(config: HeatConfig, context: &DeviceContext) -> Self {
        let topology = context.topology;
        let cold = Core {
            microdegrees: config.idle,
            now: 0,
            cpu_time: 0,
        };
        Self {
            config,
            topology,
            clock: MonotonicClock::new(context),
            cores: Mutex::new(vec![cold; (topology.packages * topology.cores) as usize]),
        }
    }

    fn cores(&self) -> MutexGuard<'_, Vec<Core>> {
        self.cores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millidegrees(&self, place: Place, location: CpuLocation) -> i64 {
        let numbers = match place {
            Place::Core => location.core..location.core.saturating_add(1),
            Place::Package => {
                let first = location.package.saturating_mul(self.topology.cores);
                first..first.saturating_add(self.topology.cores)
            }
        };
        let mut cores = self.cores();
        // A CPU outside the topology has no core, which is idle.
        let temperatures = numbers.filter_map(|number| {
            let core = cores.get_mut(number as usize)?;
            self.advance(core, number);
            Some(core.microdegrees / 1000)
        });
        temperatures.max().unwrap_or(self.config.idle / 1000)
    }

    fn advance(&self, core: &mut Core, number: u32) {
        let now = self.clock.now();
        let elapsed = now.saturating_sub(core.now);
        if elapsed < STEP {
            return;
        }
        let threads = self.topology.threads;
        let vcpus = number * threads..(number + 1) * threads;
        let cpu_time = vcpus
            .map(|id| self.clock.cpu_time(id))
            .fold(0, u64::saturating_add);
        let work = cpu_time.saturating_sub(core.cpu_time);
        let elapsed = elapsed as f64;
        let load = (work as f64 / elapsed).min(1.0);
        let (idle, busy) = (self.config.idle as f64, self.config.busy as f64);
        let end = idle + (busy - idle) * load;
        let left = (-elapsed / self.config.time_constant).exp();
        let microdegrees = end + (core.microdegrees as f64 - end) * left;
        *core = Core {
            microdegrees: microdegrees.round() as i64,
            now,
            cpu_time,
        };
    }

    /// From now on the model has another `config`.
    fn change(&mut self, config: HeatConfig) {
        let mut cores = self.cores().clone();
        for (number, core) in (0..).zip(&mut cores) {
            self.advance(core, number);
            core.microdegrees = core.microdegrees.clamp(config.idle, config.busy);
        }
        *self.cores() = cores;
        self.config = config;
    }

    fn save(&self) -> HeatState {
        HeatState {
            clock: self.clock.save(),
            cores: self.cores().clone(),
        }
    }

    fn check(&self, state: &HeatState) -> Result<(), RestoreError> {
        self.clock.check(&state.clock)?;
        let possible = self.config.idle..=self.config.busy;
        let sound = |core: &Core| possible.contains(&core.microdegrees);
        if state.cores.len() != self.cores().len() || !state.cores.iter().all(sound) {
            return Err(RestoreError::Mismatch(
                "it has other cores, or temperatures that cannot be".into(),
            ));
        }
        Ok(())
    }

    fn restore(&self, state: HeatState) {
        self.clock.restore(&state.clock);
        *self.cores() = state.cores;
    }
}
