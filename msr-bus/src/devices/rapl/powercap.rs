//! The host's own energy counters, attributed by CPU time.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::meter::Meter;
use crate::devices::host;
use crate::devices::monotonic_clock::{ClockState, MonotonicClock};
use crate::{DeviceContext, RestoreError, Topology};

/// A counter of the host, in microjoules.
pub(super) trait Counter: Send + Sync {
    /// What it shows now.
    fn microjoules(&self) -> io::Result<u64>;
}

/// An open `energy_uj` file.
impl Counter for File {
    fn microjoules(&self) -> io::Result<u64> {
        host::read_number(self)
    }
}

/// What a zone of the host measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Package,
    Cores,
    Graphics,
    Dram,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Package, Self::Cores, Self::Graphics, Self::Dram];

    /// By the `name` file of a zone; `None` for zones that no meter needs, such as psys.
    fn of(name: &str) -> Option<Self> {
        match name {
            "core" => Some(Self::Cores),
            "uncore" => Some(Self::Graphics),
            "dram" => Some(Self::Dram),
            package if package.starts_with("package-") => Some(Self::Package),
            _ => None,
        }
    }

    fn measured_by(meter: Meter) -> Self {
        match meter {
            Meter::Package(_) => Self::Package,
            Meter::Cores(_) | Meter::Core(_) => Self::Cores,
            Meter::Graphics(_) => Self::Graphics,
            Meter::Dram(_) => Self::Dram,
        }
    }
}

/// A power zone of the host.
pub(super) struct Zone {
    pub(super) kind: Kind,
    /// Where the counter wraps around to 0, in microjoules.
    pub(super) range: u64,
    pub(super) counter: Box<dyn Counter>,
}

/// The zones under `root`, usually `/sys/class/powercap` (Documentation/power/powercap/powercap.rst).
///
/// # Errors
///
/// A message that names the file and says what the host lacks.
pub(super) fn zones(root: &Path) -> Result<Vec<Zone>, String> {
    let list = || -> io::Result<Vec<_>> { fs::read_dir(root)?.collect() };
    let entries = list().map_err(|e| {
        let root = root.display();
        format!("source: cannot list {root}: {e}; does the host load intel_rapl_msr?")
    })?;
    let mut zones = Vec::new();
    for entry in entries {
        // `intel-rapl-mmio:*` counts the same energy again.
        if !entry
            .file_name()
            .to_string_lossy()
            .starts_with("intel-rapl:")
        {
            continue;
        }
        let file = |name: &str| {
            let path = entry.path().join(name);
            let read = fs::read_to_string(&path);
            read.map_err(|e| format!("source: cannot read {}: {e}", path.display()))
        };
        let Some(kind) = Kind::of(file("name")?.trim_end()) else {
            continue;
        };
        let range = file("max_energy_range_uj")?.trim_end().parse();
        let path = entry.path().join("energy_uj");
        let counter = File::open(&path).map_err(|e| {
            format!(
                "source: cannot open {}: {e}; the kernel lets only root read it",
                path.display()
            )
        })?;
        let shown = counter.microjoules();
        shown.map_err(|e| format!("source: cannot read {}: {e}", path.display()))?;
        zones.push(Zone {
            kind,
            range: range.map_err(|e| {
                let zone = entry.path();
                format!(
                    "source: max_energy_range_uj of {} is no number: {e}",
                    zone.display()
                )
            })?,
            counter: Box::new(counter),
        });
    }
    Ok(zones)
}

/// Charges each vCPU, of all the energy that the host's zones count, the share that its CPU time has in
/// the CPU time of all the host's CPUs. A guest that keeps one of 64 CPUs busy is charged a 64th.
pub(super) struct Powercap {
    zones: Vec<Zone>,
    host_cpus: u64,
    /// How old a sample gets before the counters are read again, in nanoseconds.
    period: u64,
    topology: Topology,
    clock: MonotonicClock,
    ledger: Mutex<Ledger>,
}

struct Ledger {
    now: u64,
    vcpus: Vec<Account>,
    /// What each zone's counter showed last.
    shown: Vec<Option<u64>>,
}

#[derive(Clone, Default)]
struct Account {
    cpu_time: u64,
    /// Picojoules by [`Kind`].
    charged: [u128; Kind::ALL.len()],
}

/// What a restored source continues from: the clock, and for each vCPU and kind of zone the joules charged
/// and the picojoules beyond them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PowercapState {
    clock: ClockState,
    charged: Vec<[(u64, u64); Kind::ALL.len()]>,
}

const JOULE: u128 = 1_000_000_000_000;

impl Powercap {
    /// The source on the host's files under `root`.
    ///
    /// # Errors
    ///
    /// What the host lacks of what `meters` need.
    pub(super) fn open(
        root: &Path,
        period: u64,
        meters: &[Meter],
        context: &DeviceContext,
    ) -> Result<Self, String> {
        let cpus = host::online_cpus().map_err(|e| format!("source: {e}"))?;
        Self::new(zones(root)?, cpus.len() as u64, period, meters, context)
    }

    /// The source on `zones` of a host with `host_cpus` CPUs, read once in `period` nanoseconds at most.
    pub(super) fn new(
        zones: Vec<Zone>,
        host_cpus: u64,
        period: u64,
        meters: &[Meter],
        context: &DeviceContext,
    ) -> Result<Self, String> {
        for meter in meters {
            if let Meter::Core(_) = meter {
                return Err("domains: powercap has no counter per core; leave \"core\" out".into());
            }
            let kind = Kind::measured_by(*meter);
            if !zones.iter().any(|zone| zone.kind == kind) {
                let kind = format!("{kind:?}").to_lowercase();
                return Err(format!(
                    "domains: the host's powercap has no zone that measures the {kind}"
                ));
            }
        }
        let ledger = Ledger {
            now: 0,
            vcpus: vec![Account::default(); context.topology.vcpus() as usize],
            shown: zones.iter().map(|z| z.counter.microjoules().ok()).collect(),
        };
        Ok(Self {
            zones,
            host_cpus: host_cpus.max(1),
            period,
            topology: context.topology,
            clock: MonotonicClock::new(context),
            ledger: Mutex::new(ledger),
        })
    }

    pub(super) fn picojoules(&self, meter: Meter) -> u128 {
        let ledger = self.settled();
        let kind = Kind::measured_by(meter) as usize;
        let vcpus = meter.vcpus(&self.topology);
        vcpus
            .filter_map(|id| Some(ledger.vcpus.get(id as usize)?.charged[kind]))
            .sum()
    }

    /// The ledger, with all energy charged but that of the last period.
    fn settled(&self) -> MutexGuard<'_, Ledger> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let elapsed = now.saturating_sub(ledger.now);
        if elapsed >= self.period {
            ledger.now = now;
            self.charge(&mut ledger, elapsed);
        }
        ledger
    }

    fn charge(&self, ledger: &mut Ledger, elapsed: u64) {
        let mut spent = [0u128; Kind::ALL.len()];
        for (zone, shown) in self.zones.iter().zip(&mut ledger.shown) {
            // A counter that cannot be read stands still until it can.
            let Ok(shows) = zone.counter.microjoules() else {
                continue;
            };
            let microjoules = match shown.replace(shows) {
                Some(shown) if shown <= shows => shows - shown,
                Some(shown) => zone.range.saturating_sub(shown).saturating_add(shows),
                None => 0,
            };
            spent[zone.kind as usize] += u128::from(microjoules) * 1_000_000;
        }
        let capacity = u128::from(elapsed) * u128::from(self.host_cpus);
        for (id, account) in (0..).zip(&mut ledger.vcpus) {
            let cpu_time = self.clock.cpu_time(id);
            let got = u128::from(cpu_time - account.cpu_time).min(u128::from(elapsed));
            account.cpu_time = cpu_time;
            // As a fraction of 2^32, so that the product below stays within 128 bits.
            let share = (got << 32) / capacity;
            for (charged, spent) in account.charged.iter_mut().zip(&spent) {
                *charged += (spent * share) >> 32;
            }
        }
    }

    pub(super) fn save(&self) -> PowercapState {
        let ledger = self.settled();
        let split = |picojoules: &u128| {
            let joules = u64::try_from(picojoules / JOULE).unwrap_or(u64::MAX);
            (joules, (picojoules % JOULE) as u64)
        };
        PowercapState {
            clock: self.clock.save(),
            charged: ledger
                .vcpus
                .iter()
                .map(|account| account.charged.each_ref().map(split))
                .collect(),
        }
    }

    pub(super) fn restore(&self, state: &PowercapState) -> Result<(), RestoreError> {
        self.clock.check(&state.clock)?;
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if state.charged.len() != ledger.vcpus.len() {
            return Err(RestoreError::Mismatch(
                "it charges another number of vCPUs".into(),
            ));
        }
        let parts = state.charged.iter().flatten();
        if let Some((_, rest)) = parts.clone().find(|(_, rest)| u128::from(*rest) >= JOULE) {
            return Err(RestoreError::Mismatch(format!(
                "it charges {rest} picojoules besides the whole joules, which is a joule or more"
            )));
        }
        self.clock.restore(&state.clock);
        ledger.now = self.clock.now();
        for (id, (account, charged)) in (0..).zip(ledger.vcpus.iter_mut().zip(&state.charged)) {
            account.cpu_time = self.clock.cpu_time(id);
            account.charged = charged
                .map(|(joules, picojoules)| u128::from(joules) * JOULE + u128::from(picojoules));
        }
        for (zone, shown) in self.zones.iter().zip(&mut ledger.shown) {
            *shown = zone.counter.microjoules().ok();
        }
        Ok(())
    }
}
