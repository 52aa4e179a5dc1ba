//! Digital thermal sensors (SDM volume 3B, section 15.8, and volume 4 for the scopes).
//!
//! | MSR | Register | Scope |
//! |---|---|---|
//! | 0x19b | `IA32_THERM_INTERRUPT` | core |
//! | 0x19c | `IA32_THERM_STATUS` | core |
//! | 0x1a2 | `MSR_TEMPERATURE_TARGET`, read-only | package |
//! | 0x1b1 | `IA32_PACKAGE_THERM_STATUS` | package |
//! | 0x1b2 | `IA32_PACKAGE_THERM_INTERRUPT` | package |
//!
//! A sensor shows how many degrees it is below TjMax. Its status bits follow the temperature, its log bits
//! stay set until software writes them as 0. Both are brought up to date when software looks, and when the
//! temperature is set from outside: what came and went otherwise between two looks is not seen, and what still
//! holds is logged again.
//!
//! A temperature that is set from outside and crosses TjMax or a threshold makes the interrupts that software has enabled for
//! that, at each CPU of the core or package: see [`InterruptRequests`](crate::InterruptRequests). No other change makes one,
//! because nobody looks. There is no critical temperature beyond TjMax, so its interrupt never comes, and nothing throttles.
//!
//! AMD has no such MSRs; its sensors are behind PCI.

mod config;
mod source;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

pub use self::config::{Config, Source};
use self::source::{HeatState, Place, Temperature};
use crate::{
    CpuLocation, CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess,
    MsrDevice, PerScope, RestoreError, Scope, Syscall, VcpuId,
};

const THERM_INTERRUPT: u32 = 0x19b; // IA32_THERM_INTERRUPT
const THERM_STATUS: u32 = 0x19c; // IA32_THERM_STATUS
const TEMPERATURE_TARGET: u32 = 0x1a2; // MSR_TEMPERATURE_TARGET
const PACKAGE_THERM_STATUS: u32 = 0x1b1; // IA32_PACKAGE_THERM_STATUS
const PACKAGE_THERM_INTERRUPT: u32 = 0x1b2; // IA32_PACKAGE_THERM_INTERRUPT

/// Status bits; the log bit of each is the next higher.
const THERMAL_STATUS: u64 = 1 << 0;
const PROCHOT: u64 = 1 << 2;
const THRESHOLD_1: u64 = 1 << 6;
const THRESHOLD_2: u64 = 1 << 8;
/// Enables of the interrupt registers: of an interrupt for reaching TjMax, for leaving it, for PROCHOT#, and for crossing a
/// threshold in either direction.
const HIGH_ENABLE: u64 = 1 << 0;
const LOW_ENABLE: u64 = 1 << 1;
const PROCHOT_ENABLE: u64 = 1 << 2;
const THRESHOLD_1_ENABLE: u64 = 1 << 15;
const THRESHOLD_2_ENABLE: u64 = 1 << 23;
/// The log bits of 15:0.
const LOGS: u64 = 0xaaaa;
/// Those that a temperature can set.
const THERMAL_LOGS: u64 = (THERMAL_STATUS | PROCHOT | THRESHOLD_1 | THRESHOLD_2) << 1;
/// The readout, 22:16, is valid. Linux asks the package's sensor for it too.
const VALID: u64 = 1 << 31;
/// The resolution in degrees, 30:27.
const ONE_DEGREE: u64 = 1 << 27;

/// What may be written to the status registers without #GP. Only log bits take notice. The package's has
/// no current-limit and cross-domain bits (15:12) and no resolution.
const STATUS_BITS: u64 = 0xffff | 0x7f << 16 | 0xf << 27 | VALID;
const PACKAGE_STATUS_BITS: u64 = 0xfff | 0x7f << 16 | VALID;
/// Interrupt enables (4:0, 15, 23, 24) and the two thresholds (14:8, 22:16). The package's register has
/// no FORCEPR# enable (3).
const INTERRUPT_BITS: u64 = 0x01ff_ff1f;
const PACKAGE_INTERRUPT_BITS: u64 = INTERRUPT_BITS & !(1 << 3);

/// The version of [`State`].
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    heat: Option<HeatState>,
    /// The interrupt register and the log bits of each core.
    cores: Vec<[u64; 2]>,
    /// The same of each package.
    packages: Vec<[u64; 2]>,
}

#[derive(Debug, Default)]
struct Sensor {
    interrupt: AtomicU64,
    log: AtomicU64,
}

/// The device.
pub struct Thermal {
    name: String,
    tjmax: u32,
    /// Replaced where the source is set while the guest runs.
    temperature: RwLock<Temperature>,
    cores: PerScope<Sensor>,
    packages: PerScope<Sensor>,
}

impl Model for Thermal {
    const TYPE: &'static str = "thermal";
    const SUMMARY: &'static str =
        "Intel's digital thermal sensors of cores and packages, with thresholds";
    const SYSCALLS: &'static [Syscall] =
        &[Syscall::CLOCK_GETTIME, Syscall::FUTEX, Syscall::PREAD64];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        if context.cpu.vendor != CpuVendor::Intel {
            return Err("no AMD CPU shows its temperature in MSRs; leave the device out".into());
        }
        if !(1..=150).contains(&config.tjmax) {
            return Err(format!(
                "tjmax: {} is not between 1 and 150 degrees Celsius",
                config.tjmax
            ));
        }
        let temperature = config.temperature(context)?;
        Ok(Self::with_temperature(
            name,
            config.tjmax,
            temperature,
            context,
        ))
    }

    /// The sensors are looked at with the new temperature, so that the log bits tell of it even if it is set again before
    /// software looks.
    fn apply(
        &self,
        config: Config,
        changed: &[&str],
        context: &DeviceContext,
    ) -> Result<(), String> {
        config.check_change(changed)?;
        let next = config.temperature(context)?;
        let vcpus = || (0..context.topology.vcpus()).map(VcpuId);
        let looks = || -> Vec<[u64; 2]> {
            let places = vcpus().map(|vcpu| {
                let location = context.topology.locate(vcpu);
                [Place::Core, Place::Package].map(|place| self.status(place, location))
            });
            places.collect()
        };
        let before = looks();
        self.temperature
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .change(next);
        for ((vcpu, before), after) in vcpus().zip(before).zip(looks()) {
            let location = context.topology.locate(vcpu);
            let interrupts = |(place, (before, after))| {
                let sensor: &Sensor = self.sensor(place, location);
                let enabled = sensor.interrupt.load(Ordering::Relaxed);
                crosses(enabled, before, after)
            };
            let changes = before.into_iter().zip(after);
            if [Place::Core, Place::Package]
                .into_iter()
                .zip(changes)
                .any(interrupts)
            {
                context.interrupts.request_thermal(vcpu);
            }
        }
        Ok(())
    }
}

/// Whether a sensor whose status changes makes an interrupt, with these enables (SDM volume 3B, "Digital Thermal Sensor
/// Interrupts").
fn crosses(enabled: u64, before: u64, after: u64) -> bool {
    let (reached, left) = (after & !before, before & !after);
    [
        (HIGH_ENABLE, reached & THERMAL_STATUS),
        (LOW_ENABLE, left & THERMAL_STATUS),
        (PROCHOT_ENABLE, reached & PROCHOT),
        (THRESHOLD_1_ENABLE, (reached | left) & THRESHOLD_1),
        (THRESHOLD_2_ENABLE, (reached | left) & THRESHOLD_2),
    ]
    .iter()
    .any(|(enable, change)| enabled & enable != 0 && *change != 0)
}

impl Thermal {
    fn temperature(&self) -> RwLockReadGuard<'_, Temperature> {
        // It is replaced in one assignment.
        self.temperature
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn with_temperature(
        name: String,
        tjmax: u32,
        temperature: Temperature,
        context: &DeviceContext,
    ) -> Self {
        let sensors = |scope| PerScope::new(scope, &context.topology, |_| Sensor::default());
        Self {
            name,
            tjmax,
            temperature: RwLock::new(temperature),
            cores: sensors(Scope::Core),
            packages: sensors(Scope::Package),
        }
    }

    fn sensor(&self, place: Place, location: CpuLocation) -> &Sensor {
        match place {
            Place::Core => self.cores.at(location),
            Place::Package => self.packages.at(location),
        }
    }

    /// Looks at a sensor, logs what it says, and gives its status register.
    fn status(&self, place: Place, location: CpuLocation) -> u64 {
        let sensor = self.sensor(place, location);
        let below = i64::from(self.tjmax) * 1000 - self.temperature().millidegrees(place, location);
        // Whole degrees, the part of one that is left counting as one: not yet at the next.
        let readout = (below.saturating_add(999) / 1000).clamp(0, 0x7f) as u64;
        let interrupt = sensor.interrupt.load(Ordering::Relaxed);
        let reached = |threshold: u64| readout <= threshold & 0x7f;
        let mut status = 0;
        for (bit, holds) in [
            (THERMAL_STATUS | PROCHOT, below <= 0),
            (THRESHOLD_1, reached(interrupt >> 8)),
            (THRESHOLD_2, reached(interrupt >> 16)),
        ] {
            if holds {
                status |= bit;
            }
        }
        let now = status << 1;
        let log = sensor.log.fetch_or(now, Ordering::Relaxed) | now;
        let resolution = match place {
            Place::Core => ONE_DEGREE,
            Place::Package => 0,
        };
        VALID | resolution | readout << 16 | log | status
    }
}

impl MsrDevice for Thermal {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        let indices = [
            THERM_INTERRUPT,
            THERM_STATUS,
            TEMPERATURE_TARGET,
            PACKAGE_THERM_STATUS,
            PACKAGE_THERM_INTERRUPT,
        ];
        indices.map(MsrRange::single).to_vec()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let location = access.cpu.location();
        let interrupt = |place| {
            let sensor = self.sensor(place, location);
            sensor.interrupt.load(Ordering::Relaxed)
        };
        Ok(match access.index {
            THERM_STATUS => self.status(Place::Core, location),
            PACKAGE_THERM_STATUS => self.status(Place::Package, location),
            THERM_INTERRUPT => interrupt(Place::Core),
            PACKAGE_THERM_INTERRUPT => interrupt(Place::Package),
            TEMPERATURE_TARGET => u64::from(self.tjmax) << 16,
            _ => return Err(GeneralProtection),
        })
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let location = access.cpu.location();
        let (place, status, defined) = match access.index {
            THERM_STATUS => (Place::Core, true, STATUS_BITS),
            PACKAGE_THERM_STATUS => (Place::Package, true, PACKAGE_STATUS_BITS),
            THERM_INTERRUPT => (Place::Core, false, INTERRUPT_BITS),
            PACKAGE_THERM_INTERRUPT => (Place::Package, false, PACKAGE_INTERRUPT_BITS),
            _ => return Err(GeneralProtection),
        };
        if value & !defined != 0 {
            return Err(GeneralProtection);
        }
        // What the old thresholds say up to now is logged before they, or the log, change.
        self.status(place, location);
        let sensor = self.sensor(place, location);
        if status {
            sensor.log.fetch_and(value & LOGS, Ordering::Relaxed);
        } else {
            sensor.interrupt.store(value, Ordering::Relaxed);
        }
        Ok(())
    }

    fn save(&self) -> Option<DeviceState> {
        let registers = |sensors: &PerScope<Sensor>| {
            let sensors = sensors.iter();
            let registers =
                sensors.map(|s| [&s.interrupt, &s.log].map(|r| r.load(Ordering::Relaxed)));
            registers.collect()
        };
        let state = State {
            heat: self.temperature().save(),
            cores: registers(&self.cores),
            packages: registers(&self.packages),
        };
        Some(DeviceState::encode(VERSION, &state))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(VERSION)?;
        let scopes = [
            (&self.cores, &state.cores, INTERRUPT_BITS),
            (&self.packages, &state.packages, PACKAGE_INTERRUPT_BITS),
        ];
        for (sensors, saved, defined) in scopes {
            let sound =
                |[interrupt, log]: &[u64; 2]| interrupt & !defined == 0 && log & !THERMAL_LOGS == 0;
            if saved.len() != sensors.len() || !saved.iter().all(sound) {
                return Err(RestoreError::Mismatch(
                    "it is of another topology, or reserved bits are set".into(),
                ));
            }
        }
        self.temperature().check(state.heat.as_ref())?;
        for (sensors, saved, _) in scopes {
            for (sensor, [interrupt, log]) in sensors.iter().zip(saved) {
                sensor.interrupt.store(*interrupt, Ordering::Relaxed);
                sensor.log.store(*log, Ordering::Relaxed);
            }
        }
        self.temperature().restore(state.heat);
        Ok(())
    }
}
