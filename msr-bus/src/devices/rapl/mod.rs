//! Running average power limit: energy counters, and power limits that read back.
//!
//! Intel's registers are of package scope (SDM volume 3B, section 15.10, "Platform Specific Power
//! Management Support"): `MSR_RAPL_POWER_UNIT` and, for each domain, an energy counter and a limit that
//! software may write until it sets the lock bit; package and memory have the information registers that
//! Linux's `intel_rapl_msr` and turbostat read too, the planes their policies. AMD's (PPR for family
//! 19h) are read-only counters, one per core and one per package.
//!
//! Energy is modelled from the CPU time that the vCPUs' threads get, or is the guest's share of what the
//! host's own counters show. A counter starts at 0, as at reset, has 32 bits and wraps around; with 61 uJ
//! and 100 W that takes three quarters of an hour. Limits throttle nothing, so the throttled time of the
//! `*_PERF_STATUS` registers stays 0.
//!
//! Linux takes a domain whose counter reads 0 for absent. When the guest's drivers load, a domain that
//! draws anything has counted for long enough.

mod config;
mod energy;
mod limits;
mod meter;
mod powercap;
#[cfg(test)]
mod tests;

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use self::config::Units;
pub use self::config::{Config, Domain, Source};
use self::energy::{EnergySource, EnergyState, Power, PowerModel, counter};
use self::limits::Limit;
use self::meter::Meter;
use self::powercap::Powercap;
use super::host;
use crate::{
    CpuLocation, CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess,
    MsrDevice, PerScope, RestoreError, Scope, Syscall, Topology,
};

/// What a register of a domain holds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The units of all others.
    Unit,
    /// The power limit.
    Limit,
    /// Energy since reset.
    Energy,
    /// Time spent throttled.
    Throttled,
    /// The range of limits that make sense.
    Info,
    /// The priority of a power plane.
    Policy,
}

/// Intel's registers (SDM volume 4, the tables of Sandy Bridge and its successors). The units serve all
/// domains.
const INTEL: &[(u32, Domain, Kind)] = &[
    (0x606, Domain::Package, Kind::Unit),      // MSR_RAPL_POWER_UNIT
    (0x610, Domain::Package, Kind::Limit),     // MSR_PKG_POWER_LIMIT
    (0x611, Domain::Package, Kind::Energy),    // MSR_PKG_ENERGY_STATUS
    (0x613, Domain::Package, Kind::Throttled), // MSR_PKG_PERF_STATUS
    (0x614, Domain::Package, Kind::Info),      // MSR_PKG_POWER_INFO
    (0x618, Domain::Dram, Kind::Limit),        // MSR_DRAM_POWER_LIMIT
    (0x619, Domain::Dram, Kind::Energy),       // MSR_DRAM_ENERGY_STATUS
    (0x61b, Domain::Dram, Kind::Throttled),    // MSR_DRAM_PERF_STATUS
    (0x61c, Domain::Dram, Kind::Info),         // MSR_DRAM_POWER_INFO
    (0x638, Domain::Pp0, Kind::Limit),         // MSR_PP0_POWER_LIMIT
    (0x639, Domain::Pp0, Kind::Energy),        // MSR_PP0_ENERGY_STATUS
    (0x63a, Domain::Pp0, Kind::Policy),        // MSR_PP0_POLICY
    (0x640, Domain::Pp1, Kind::Limit),         // MSR_PP1_POWER_LIMIT
    (0x641, Domain::Pp1, Kind::Energy),        // MSR_PP1_ENERGY_STATUS
    (0x642, Domain::Pp1, Kind::Policy),        // MSR_PP1_POLICY
];

/// AMD's registers (PPR for family 19h model 01h, MSRC001_0299 to MSRC001_029B).
const AMD: &[(u32, Domain, Kind)] = &[
    (0xc001_0299, Domain::Package, Kind::Unit), // RAPL_PWR_UNIT
    (0xc001_029a, Domain::Core, Kind::Energy),  // CORE_ENERGY_STAT
    (0xc001_029b, Domain::Package, Kind::Energy), // PKG_ENERGY_STAT
];

/// The version of [`State`].
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    energy: EnergyState,
    /// For each package and each domain of [`LIMITED`], the limit and the policy.
    limits: Vec<[[u64; 2]; LIMITED.len()]>,
}

/// The domains with limits, in the order in which they are kept.
const LIMITED: [Domain; 4] = [Domain::Package, Domain::Dram, Domain::Pp0, Domain::Pp1];

/// The device.
pub struct Rapl {
    name: String,
    registers: Vec<(u32, Domain, Kind)>,
    units: Units,
    info: [u64; LIMITED.len()],
    limits: PerScope<[Limit; LIMITED.len()]>,
    source: EnergySource,
}

impl Model for Rapl {
    const TYPE: &'static str = "rapl";
    const SUMMARY: &'static str =
        "energy counters from CPU time or the host's powercap, and power limits that read back";
    const SYSCALLS: &'static [Syscall] =
        &[Syscall::CLOCK_GETTIME, Syscall::FUTEX, Syscall::PREAD64];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let domains = config.domains(context.cpu.vendor)?;
        let meters: Vec<_> = domains
            .iter()
            .map(|domain| meter(*domain, CpuLocation::default()))
            .collect();
        let source = match config.source {
            Source::Model => EnergySource::Model(PowerModel::new(config.power(&domains)?, context)),
            Source::Powercap => {
                let period = host::period("powercap_seconds", config.powercap_seconds)?;
                log::warn!(
                    "{name}: the guest is shown its share of the host's energy, read every {} s: that tells it of the host's \
                     other work too, the more the shorter `powercap_seconds` is",
                    config.powercap_seconds
                );
                EnergySource::Powercap(Powercap::open(&config.powercap, period, &meters, context)?)
            }
        };
        Self::with_source(name, &config, source, context)
    }

    /// The counters go on from where they are. What the registers tell of the package's design stays as it is.
    fn apply(
        &self,
        config: Config,
        changed: &[&str],
        context: &DeviceContext,
    ) -> Result<(), String> {
        let EnergySource::Model(model) = &self.source else {
            let key = changed.first().unwrap_or(&"source");
            return Err(format!("{key}: it counts with source = \"model\" alone"));
        };
        let domains = config.domains(context.cpu.vendor)?;
        model.change(config.power(&domains)?);
        Ok(())
    }
}

impl Rapl {
    fn with_source(
        name: String,
        config: &Config,
        source: EnergySource,
        context: &DeviceContext,
    ) -> Result<Self, String> {
        let vendor = context.cpu.vendor;
        let domains = config.domains(vendor)?;
        let units = config.units(vendor)?;
        let power = config.power(&domains)?;
        let tdp = config.tdp(&power, &units, &context.topology)?;
        let topology = &context.topology;
        let registers = match vendor {
            CpuVendor::Intel => INTEL,
            CpuVendor::Amd => AMD,
        };
        let has = |domain: Domain, kind| matches!(kind, Kind::Unit) || domains.contains(&domain);
        Ok(Self {
            name,
            registers: registers
                .iter()
                .filter(|(_, domain, kind)| has(*domain, *kind))
                .copied()
                .collect(),
            info: info(&power, tdp, &units, topology),
            limits: PerScope::new(Scope::Package, topology, |_| reset_limits(tdp, &units)),
            units,
            source,
        })
    }

    fn register(&self, index: u32) -> Result<(Domain, Kind), GeneralProtection> {
        let register = self.registers.iter().find(|(msr, ..)| *msr == index);
        register
            .map(|(_, domain, kind)| (*domain, *kind))
            .ok_or(GeneralProtection)
    }

    fn limit(&self, domain: Domain, location: CpuLocation) -> Result<&Limit, GeneralProtection> {
        let place = limited(domain)?;
        Ok(&self.limits.at(location)[place])
    }
}

/// Where `domain` has its limits.
fn limited(domain: Domain) -> Result<usize, GeneralProtection> {
    let place = LIMITED.iter().position(|limited| *limited == domain);
    place.ok_or(GeneralProtection)
}

/// What a register of `domain` measures for the CPU at `location`.
fn meter(domain: Domain, location: CpuLocation) -> Meter {
    match domain {
        Domain::Package => Meter::Package(location.package),
        Domain::Dram => Meter::Dram(location.package),
        Domain::Pp0 => Meter::Cores(location.package),
        Domain::Pp1 => Meter::Graphics(location.package),
        Domain::Core => Meter::Core(location.core),
    }
}

/// The limits after reset, as firmware leaves them on servers: the package may draw its thermal design
/// power over 1 s and 6/5 of it over 1/256 s, both enabled; the planes have no limit.
fn reset_limits(tdp: u64, units: &Units) -> [Limit; LIMITED.len()] {
    const ENABLE: u64 = 1 << 15;
    // A window of 2^Y units of time, with Y in the low five bits of the field.
    let window = |exponent: u32| u64::from(exponent) << 17;
    let long = units.power(tdp) | ENABLE | window(units.time);
    let short = units.power(tdp * 6 / 5) | ENABLE | window(units.time.saturating_sub(8));
    LIMITED.map(|domain| match domain {
        Domain::Package => Limit::of_package(long | short << 32),
        _ => Limit::of_plane(),
    })
}

/// The information registers: thermal design power in 14:0, the least and the most power in 30:16 and
/// 46:32, the longest time window (2^Y units of time; 32 s here) in 53:48.
fn info(power: &Power, tdp: u64, units: &Units, topology: &Topology) -> [u64; LIMITED.len()] {
    let cpus = u64::from(topology.cores) * u64::from(topology.threads);
    let window = u64::from(units.time + 5) << 48;
    let info = |least, most| {
        let (least, most) = (units.power(least), units.power(most));
        most | least << 16 | most << 32 | window
    };
    LIMITED.map(|domain| match domain {
        Domain::Package => info((power.package + power.idle * cpus).min(tdp), tdp),
        Domain::Dram => info(power.dram, power.dram),
        _ => 0,
    })
}

impl MsrDevice for Rapl {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        self.registers
            .iter()
            .map(|(msr, ..)| MsrRange::single(*msr))
            .collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let (domain, kind) = self.register(access.index)?;
        let location = access.cpu.location();
        Ok(match kind {
            Kind::Unit => self.units.register(),
            Kind::Energy => {
                let unit = match domain {
                    Domain::Dram => self.units.dram_energy,
                    _ => self.units.energy,
                };
                counter(self.source.picojoules(meter(domain, location)), unit)
            }
            Kind::Limit => self.limit(domain, location)?.limit(),
            Kind::Policy => self.limit(domain, location)?.policy(),
            Kind::Throttled => 0,
            Kind::Info => self.info[limited(domain)?],
        })
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let (domain, kind) = self.register(access.index)?;
        let location = access.cpu.location();
        match kind {
            Kind::Limit => self.limit(domain, location)?.write_limit(value),
            Kind::Policy => self.limit(domain, location)?.write_policy(value),
            Kind::Unit | Kind::Energy | Kind::Throttled | Kind::Info => Err(GeneralProtection),
        }
    }

    fn save(&self) -> Option<DeviceState> {
        let limits = self.limits.iter();
        let state = State {
            energy: self.source.save(),
            limits: limits.map(|l| l.each_ref().map(Limit::save)).collect(),
        };
        Some(DeviceState::encode(VERSION, &state))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(VERSION)?;
        let packages = self.limits.iter().zip(&state.limits);
        let limits = || {
            packages
                .clone()
                .flat_map(|(limits, saved)| limits.iter().zip(saved))
        };
        if state.limits.len() != self.limits.len() {
            return Err(RestoreError::Mismatch("it has other packages".into()));
        }
        let has = |domain: Domain, kind: fn(&Kind) -> bool| {
            let mut registers = self.registers.iter();
            registers.any(|(_, of, is)| *of == domain && kind(is))
        };
        let sound = limits()
            .zip(LIMITED.iter().cycle())
            .all(|((limit, saved), domain)| {
                let has_limit = has(*domain, |kind| matches!(kind, Kind::Limit));
                let has_policy = has(*domain, |kind| matches!(kind, Kind::Policy));
                limit.reaches(*saved, has_limit, has_policy)
            });
        if !sound {
            return Err(RestoreError::Mismatch(
                "a power limit or policy is one that no guest can set".into(),
            ));
        }
        self.source.restore(&state.energy)?;
        limits().for_each(|(limit, saved)| limit.restore(*saved));
        Ok(())
    }
}
