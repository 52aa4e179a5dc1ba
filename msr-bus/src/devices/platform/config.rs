//! The keys, and what they amount to.

use serde::Deserialize;

use crate::U64;

/// The keys of a `[[msr.device]]` with `type = "platform"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The base frequency, in MHz. Intel: a multiple of 100, what turbostat calls base frequency. AMD: the first
    /// P-state, a multiple of 25.
    pub base_mhz: u32,
    /// The lowest frequency, in MHz; at most `base_mhz`. AMD: the last P-state.
    #[serde(default = "default_min_mhz")]
    pub min_mhz: u32,
    /// The highest frequency that the platform lets cores have now, in MHz, as firmware or a power controller limits it: no
    /// limit unless given. Intel: a multiple of 100 from `min_mhz` up to the highest turbo frequency, and IA32_PERF_STATUS
    /// shows no more. AMD: the frequency of a P-state, which PStateCurLim shows.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub limit_mhz: Option<u32>,
    /// Intel: the highest frequencies with 1, 2, ... cores at work (or, with `turbo_cores`, up to that many), in MHz:
    /// a number for any count, or a list of up to eight. At least `base_mhz`, which it is unless given.
    pub turbo_mhz: Option<Turbo>,
    /// Intel: for each entry of `turbo_mhz`, up to how many cores of a package it holds for, in ascending order. With
    /// it MSR 0x1ae exists and is MSR_TURBO_RATIO_LIMIT_CORES, as on servers since Skylake.
    pub turbo_cores: Option<Vec<u8>>,
    /// Intel: whether the registers of configurable TDP, MSRs 0x648 to 0x64c, exist (client CPUs since Ivy Bridge,
    /// servers since Haswell). They offer no level but the nominal one.
    #[serde(default = "yes")]
    pub config_tdp: bool,
    /// Intel: whether software may make CPUID fault outside the kernel. KVM does the faulting.
    #[serde(default)]
    pub cpuid_faulting: bool,
    /// Intel: IA32_MISC_ENABLE after reset. Unless given 0x11809: fast strings, automatic thermal control and
    /// SpeedStep on, branch trace and precise event sampling absent.
    #[serde(default = "default_misc_enable")]
    pub misc_enable: U64,
    /// AMD: the P-states' frequencies, in MHz, multiples of 25 from `base_mhz` downwards, up to eight. Unless given,
    /// `base_mhz` and `min_mhz`.
    pub p_states_mhz: Option<Vec<u32>>,
}

/// Turbo frequencies in MHz.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected a frequency in MHz or a list of them")]
pub enum Turbo {
    /// The same for any number of cores at work.
    Any(u32),
    /// Fewer cores first.
    ByCores(Vec<u32>),
}

fn default_min_mhz() -> u32 {
    800
}

fn yes() -> bool {
    true
}

/// What IA32_MISC_ENABLE holds after reset.
///
/// Linux's start-up code reads the register before it can survive a #GP, and needs bit 34 clear.
pub(super) const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 3 | 1 << 11 | 1 << 12 | 1 << 16;

fn default_misc_enable() -> U64 {
    U64(MISC_ENABLE_RESET)
}

/// Frequencies as the ratios of the registers, in steps of `step` MHz.
pub(super) struct Ratios {
    step: u32,
}

impl Ratios {
    pub(super) const fn of(step: u32) -> Self {
        Self { step }
    }

    /// A frequency as a ratio of 8 bits.
    pub(super) fn ratio(&self, key: &str, mhz: u32) -> Result<u64, String> {
        let step = self.step;
        let most = step * 255;
        if !mhz.is_multiple_of(step) || mhz == 0 || mhz > most {
            return Err(format!(
                "{key}: {mhz} MHz is not a multiple of {step} MHz from {step} to {most}"
            ));
        }
        Ok(u64::from(mhz / step))
    }
}

impl Config {
    /// Refuses the keys that speak of another vendor's registers.
    pub(super) fn refuse(&self, vendor: &str, keys: &[(&str, bool)]) -> Result<(), String> {
        match keys.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(format!("{key}: no {vendor} CPU has registers for it")),
            None => Ok(()),
        }
    }

    /// Refuses a lowest frequency above the base.
    pub(super) fn check_min(&self) -> Result<(), String> {
        if self.min_mhz > self.base_mhz {
            return Err(format!(
                "min_mhz: {} MHz is more than the {} MHz of `base_mhz`",
                self.min_mhz, self.base_mhz
            ));
        }
        Ok(())
    }
}
