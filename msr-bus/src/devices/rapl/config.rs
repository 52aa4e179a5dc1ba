//! The keys, and what they amount to.

use std::path::PathBuf;

use serde::Deserialize;

use super::energy::Power;
use crate::{CpuVendor, Topology};

/// The keys of a `[[msr.device]]` with `type = "rapl"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is measured. Intel: "package", "dram", "pp0" (the cores) and "pp1" (the graphics); unless given,
    /// "package" and "dram". AMD: "package" and "core"; unless given, both.
    pub domains: Option<Vec<Domain>>,
    /// Where energy comes from: "model" (the watts below and the CPU time that the vCPUs' threads really get) or
    /// "powercap" (the host's own counters, of which each vCPU is charged the share that its CPU time has in the
    /// CPU time of all the host's CPUs).
    pub source: Source,
    /// With "model": what each CPU draws without work, in W to a thousandth, up to 10000.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub idle_watts: f64,
    /// With "model": what each CPU draws at work, in W; at least `idle_watts`.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub busy_watts: f64,
    /// With "model": what each package draws besides its CPUs and its graphics, in W.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub package_watts: f64,
    /// With "model": what each package's memory draws, in W. Linux leaves out a domain whose counter stays at 0.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub dram_watts: f64,
    /// With "model" and "pp1": what each package's graphics draws, in W.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub pp1_watts: f64,
    /// Intel: each package's thermal design power, in W; the first power limit's reset value, and 5/6 of the second's.
    /// Unless given, what the package draws with every CPU at work.
    pub tdp_watts: Option<f64>,
    /// A unit of energy is 1/2^N J, N from 0 to 31. Unless given, 14 (61 uJ) for Intel and 16 (15.3 uJ) for AMD.
    pub energy_unit: Option<u32>,
    /// Intel: the same for "dram". Servers since Haswell count memory in 15.3 uJ (N = 16) whatever
    /// MSR_RAPL_POWER_UNIT says, and Linux knows them by model; for a client, say the same as `energy_unit`.
    pub dram_energy_unit: u32,
    /// A unit of power is 1/2^N W, N from 0 to 15.
    pub power_unit: u32,
    /// A unit of time is 1/2^N s, N from 0 to 15.
    pub time_unit: u32,
    /// With "powercap": the directory of the host's power zones.
    pub powercap: PathBuf,
    /// With "powercap": how often the host's counters are read, in seconds from 0.001 to 3600. They count what others
    /// on the host do too, and read often they give away what is computed there (PLATYPUS, CVE-2020-8694); the
    /// hardware updates them once in a millisecond.
    pub powercap_seconds: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domains: None,
            source: Source::Model,
            idle_watts: 1.0,
            busy_watts: 8.0,
            package_watts: 10.0,
            dram_watts: 3.0,
            pp1_watts: 0.5,
            tdp_watts: None,
            energy_unit: None,
            dram_energy_unit: 16,
            power_unit: 3,
            time_unit: 10,
            powercap: "/sys/class/powercap".into(),
            powercap_seconds: 1.0,
        }
    }
}

/// Something whose energy is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The whole package.
    Package,
    /// The package's memory.
    Dram,
    /// The package's cores, power plane 0.
    Pp0,
    /// The package's graphics, power plane 1.
    Pp1,
    /// Each core for itself.
    Core,
}

/// Where energy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Watts and CPU time.
    Model,
    /// The host's counters.
    Powercap,
}

/// The unit exponents of `MSR_RAPL_POWER_UNIT`: a unit is 1/2^exponent of a W, J or s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units {
    pub(super) power: u32,
    pub(super) energy: u32,
    pub(super) dram_energy: u32,
    pub(super) time: u32,
}

impl Units {
    /// The register: power in 3:0, energy in 12:8, time in 19:16 (SDM volume 3B, section 15.10.1; AMD
    /// PPR, `RAPL_PWR_UNIT`).
    pub(super) fn register(&self) -> u64 {
        u64::from(self.power | self.energy << 8 | self.time << 16)
    }

    /// Milliwatts in units of power, cut to the 15 bits that every power field has.
    pub(super) fn power(&self, milliwatts: u64) -> u64 {
        ((milliwatts << self.power) / 1000).min(MAX_POWER)
    }
}

/// The largest value of a 15-bit power field.
const MAX_POWER: u64 = 0x7fff;

impl Config {
    /// The domains, each of them one that `vendor` has.
    pub(super) fn domains(&self, vendor: CpuVendor) -> Result<Vec<Domain>, String> {
        use Domain::{Core, Dram, Package, Pp0, Pp1};
        let (all, default): (&[_], _) = match vendor {
            CpuVendor::Intel => (&[Package, Dram, Pp0, Pp1], [Package, Dram]),
            CpuVendor::Amd => (&[Package, Core], [Package, Core]),
        };
        let Some(domains) = &self.domains else {
            return Ok(default.to_vec());
        };
        if let Some(domain) = domains.iter().find(|domain| !all.contains(domain)) {
            let names: Vec<_> = all.iter().map(|d| format!("\"{}\"", d.name())).collect();
            return Err(format!(
                "domains: no {vendor:?} CPU has \"{}\"; its domains are {}",
                domain.name(),
                names.join(", ")
            ));
        }
        if domains.is_empty() {
            return Err("domains: name at least one, such as \"package\"".into());
        }
        Ok(domains.clone())
    }

    pub(super) fn units(&self, vendor: CpuVendor) -> Result<Units, String> {
        let default = match vendor {
            CpuVendor::Intel => 14,
            CpuVendor::Amd => 16,
        };
        let energy = self.energy_unit.unwrap_or(default);
        for (key, exponent, most) in [
            ("energy_unit", energy, 31),
            ("dram_energy_unit", self.dram_energy_unit, 31),
            ("power_unit", self.power_unit, 15),
            ("time_unit", self.time_unit, 15),
        ] {
            if exponent > most {
                return Err(format!(
                    "{key}: 1/2^{exponent} does not fit the unit register; the exponent is at most {most}"
                ));
            }
        }
        Ok(Units {
            power: self.power_unit,
            energy,
            dram_energy: self.dram_energy_unit,
            time: self.time_unit,
        })
    }

    pub(super) fn power(&self, domains: &[Domain]) -> Result<Power, String> {
        let graphics = milliwatts("pp1_watts", self.pp1_watts)?;
        if self.busy_watts < self.idle_watts {
            return Err(format!(
                "busy_watts: {} W is less than the {} W of `idle_watts`",
                self.busy_watts, self.idle_watts
            ));
        }
        Ok(Power {
            idle: milliwatts("idle_watts", self.idle_watts)?,
            busy: milliwatts("busy_watts", self.busy_watts)?,
            package: milliwatts("package_watts", self.package_watts)?,
            graphics: if domains.contains(&Domain::Pp1) {
                graphics
            } else {
                0
            },
            dram: milliwatts("dram_watts", self.dram_watts)?,
        })
    }

    /// A package's thermal design power, in milliwatts.
    pub(super) fn tdp(
        &self,
        power: &Power,
        units: &Units,
        topology: &Topology,
    ) -> Result<u64, String> {
        let Some(watts) = self.tdp_watts else {
            let cpus = u64::from(topology.cores) * u64::from(topology.threads);
            return Ok(power.package + power.busy * cpus);
        };
        let tdp = milliwatts("tdp_watts", watts)?;
        let most = (MAX_POWER >> units.power) * 5 / 6;
        if tdp > most * 1000 {
            return Err(format!(
                "tdp_watts: {watts} W is too much for power limits in 1/2^{} W; they hold {most} W",
                units.power
            ));
        }
        Ok(tdp)
    }
}

impl Domain {
    fn name(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Dram => "dram",
            Self::Pp0 => "pp0",
            Self::Pp1 => "pp1",
            Self::Core => "core",
        }
    }
}

fn milliwatts(key: &str, watts: f64) -> Result<u64, String> {
    // Far above any package, and low enough that energies fit 128 bits for as long as the clock runs.
    const MOST: f64 = 10_000.0;
    if (0.0..=MOST).contains(&watts) {
        Ok((watts * 1000.0).round() as u64)
    } else {
        Err(format!("{key}: {watts} W is not between 0 and {MOST} W"))
    }
}
