//! Intel's registers.

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use super::Config;
use super::config::{Ratios, Turbo};
use crate::devices::lockable::Lockable;
use crate::{
    CpuLocation, DeviceState, GeneralProtection, MsrAccess, PerScope, RestoreError, Scope, Topology,
};

const CORE_THREAD_COUNT: u32 = 0x35; // MSR_CORE_THREAD_COUNT
const PLATFORM_INFO: u32 = 0xce; // MSR_PLATFORM_INFO
const MISC_FEATURES: u32 = 0x140; // MSR_MISC_FEATURES_ENABLES
const PERF_STATUS: u32 = 0x198; // IA32_PERF_STATUS
const PERF_CTL: u32 = 0x199; // IA32_PERF_CTL
const MISC_ENABLE: u32 = 0x1a0; // IA32_MISC_ENABLE
const TURBO_RATIO_LIMIT: u32 = 0x1ad; // MSR_TURBO_RATIO_LIMIT
const TURBO_CORES: u32 = 0x1ae; // MSR_TURBO_RATIO_LIMIT_CORES
const TDP_NOMINAL: u32 = 0x648; // MSR_CONFIG_TDP_NOMINAL
const TDP_LEVEL_1: u32 = 0x649; // MSR_CONFIG_TDP_LEVEL1
const TDP_LEVEL_2: u32 = 0x64a; // MSR_CONFIG_TDP_LEVEL2
const TDP_CONTROL: u32 = 0x64b; // MSR_CONFIG_TDP_CONTROL
const TURBO_ACTIVATION: u32 = 0x64c; // MSR_TURBO_ACTIVATION_RATIO

/// The bus clock that ratios multiply, in MHz, since Sandy Bridge.
const BUS_MHZ: u32 = 100;

/// CPUID faulting: bit 31 of `MSR_PLATFORM_INFO`, bit 0 of `MSR_MISC_FEATURES_ENABLES`.
const INFO_CPUID_FAULTING: u64 = 1 << 31;
const CPUID_FAULTING: u64 = 1 << 0;

/// `IA32_PERF_CTL`: the target in 15:0, of which the ratio is the upper byte, and turbo disengaged.
const TARGET: u64 = 0xffff;
const DISENGAGE_TURBO: u64 = 1 << 32;

/// `IA32_MISC_ENABLE`: what software may switch. Fast strings (0), automatic thermal control (3),
/// SpeedStep (16), xTPR messages off (23), turbo off (38).
const SWITCHES: u64 = 1 << 0 | 1 << 3 | 1 << 16 | 1 << 23 | TURBO_OFF;
const TURBO_OFF: u64 = 1 << 38;
/// Bits that keep their reset value whatever is written: performance monitoring available (7), branch
/// trace (11) and precise event sampling (12) unavailable are read-only, and MONITOR (18), limited CPUID
/// (22) and no execute-disable (34) would change what CPUID shows, which is not in the device's hands.
const FIXED: u64 = 1 << 7 | 1 << 11 | 1 << 12 | 1 << 18 | 1 << 22 | 1 << 34;

/// The version of [`State`].
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// `IA32_PERF_CTL` and `IA32_MISC_ENABLE` of each thread.
    threads: Vec<[u64; 2]>,
    /// `MSR_CONFIG_TDP_CONTROL` and `MSR_TURBO_ACTIVATION_RATIO` of each package.
    packages: Vec<[u64; 2]>,
}

#[derive(Debug)]
struct Thread {
    perf_ctl: AtomicU64,
    misc_enable: AtomicU64,
}

#[derive(Debug)]
struct Package {
    tdp_control: Lockable,
    turbo_activation: Lockable,
}

#[derive(Debug)]
pub(super) struct Intel {
    min: u64,
    base: u64,
    /// The highest turbo ratio.
    max: u64,
    /// The highest ratio that the platform allows now.
    limit: AtomicU64,
    turbo: u64,
    turbo_cores: Option<u64>,
    config_tdp: bool,
    cpuid_faulting: bool,
    topology: Topology,
    /// `IA32_MISC_ENABLE` after reset.
    misc_enable: u64,
    threads: PerScope<Thread>,
    packages: PerScope<Package>,
}

impl Intel {
    pub(super) fn new(config: &Config, topology: &Topology) -> Result<Self, String> {
        config.refuse("Intel", &[("p_states_mhz", config.p_states_mhz.is_some())])?;
        let ratios = Ratios::of(BUS_MHZ);
        let base = ratios.ratio("base_mhz", config.base_mhz)?;
        let turbo = turbo_ratios(config, &ratios, base)?;
        let misc_enable = config.misc_enable.0;
        if misc_enable & !(SWITCHES | FIXED) != 0 {
            return Err(format!(
                "misc_enable: {misc_enable:#x} has reserved bits; {:#x} are the others",
                SWITCHES | FIXED
            ));
        }
        let intel = Self {
            limit: AtomicU64::new(u64::MAX),
            min: ratios.ratio("min_mhz", config.min_mhz)?,
            base,
            max: turbo.iter().copied().fold(base, u64::max),
            turbo: bytes(turbo.iter().copied()),
            turbo_cores: turbo_cores(config, turbo.len())?,
            config_tdp: config.config_tdp,
            cpuid_faulting: config.cpuid_faulting,
            topology: *topology,
            misc_enable,
            threads: PerScope::new(Scope::Thread, topology, |_| Thread {
                perf_ctl: AtomicU64::new(base << 8),
                misc_enable: AtomicU64::new(misc_enable),
            }),
            packages: PerScope::new(Scope::Package, topology, |_| Package::new(base)),
        };
        intel.set_limit(config)?;
        Ok(intel)
    }

    /// Takes over the limit that `config` has.
    pub(super) fn set_limit(&self, config: &Config) -> Result<(), String> {
        let limit = match config.limit_mhz {
            None => u64::MAX,
            Some(mhz) => {
                let limit = Ratios::of(BUS_MHZ).ratio("limit_mhz", mhz)?;
                let step = u64::from(BUS_MHZ);
                if !(self.min..=self.max).contains(&limit) {
                    return Err(format!(
                        "limit_mhz: {mhz} MHz is not between the lowest frequency, {} MHz, and the highest, {} MHz",
                        self.min * step,
                        self.max * step
                    ));
                }
                limit
            }
        };
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn claims(&self) -> Vec<MsrRange> {
        let mut claims = vec![
            CORE_THREAD_COUNT,
            PLATFORM_INFO,
            MISC_FEATURES,
            PERF_STATUS,
            PERF_CTL,
            MISC_ENABLE,
            TURBO_RATIO_LIMIT,
        ];
        if self.turbo_cores.is_some() {
            claims.push(TURBO_CORES);
        }
        if self.config_tdp {
            claims.extend(TDP_NOMINAL..=TURBO_ACTIVATION);
        }
        claims.into_iter().map(MsrRange::single).collect()
    }

    /// KVM does the faulting of CPUID, so its register says whether.
    pub(super) fn leaves_to_kvm(&self, index: u32) -> bool {
        self.cpuid_faulting && index == MISC_FEATURES
    }

    pub(super) fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let location = access.cpu.location();
        Ok(match access.index {
            CORE_THREAD_COUNT => self.core_thread_count(),
            PLATFORM_INFO => self.platform_info(),
            MISC_FEATURES if self.cpuid_faulting => {
                let features = access.cpu.kernel_msr(MISC_FEATURES);
                features.map_err(|_| GeneralProtection)? & CPUID_FAULTING
            }
            MISC_FEATURES => 0,
            PERF_STATUS => self.current(location) << 8,
            PERF_CTL => self.threads.at(location).perf_ctl.load(Ordering::Relaxed),
            MISC_ENABLE => {
                let thread = self.threads.at(location);
                thread.misc_enable.load(Ordering::Relaxed)
            }
            TURBO_RATIO_LIMIT => self.turbo,
            TURBO_CORES => self.turbo_cores.ok_or(GeneralProtection)?,
            TDP_NOMINAL => self.base,
            TDP_LEVEL_1 | TDP_LEVEL_2 => 0,
            TDP_CONTROL => self.packages.at(location).tdp_control.read(),
            TURBO_ACTIVATION => self.packages.at(location).turbo_activation.read(),
            _ => return Err(GeneralProtection),
        })
    }

    pub(super) fn write(
        &self,
        access: &MsrAccess<'_>,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let location = access.cpu.location();
        match access.index {
            MISC_FEATURES => self.write_misc_features(access, value),
            PERF_CTL if value & !(TARGET | DISENGAGE_TURBO) == 0 => {
                let thread = self.threads.at(location);
                thread.perf_ctl.store(value, Ordering::Relaxed);
                Ok(())
            }
            MISC_ENABLE if value & !(SWITCHES | FIXED) == 0 => {
                let register = &self.threads.at(location).misc_enable;
                let fixed = register.load(Ordering::Relaxed) & FIXED;
                register.store(value & SWITCHES | fixed, Ordering::Relaxed);
                Ok(())
            }
            TDP_CONTROL => self.packages.at(location).tdp_control.write(value),
            TURBO_ACTIVATION => self.packages.at(location).turbo_activation.write(value),
            _ => Err(GeneralProtection),
        }
    }

    fn write_misc_features(
        &self,
        access: &MsrAccess<'_>,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let defined = if self.cpuid_faulting {
            CPUID_FAULTING
        } else {
            0
        };
        if value & !defined != 0 {
            return Err(GeneralProtection);
        }
        // Linux writes 0 at start-up whether or not there is anything to switch.
        if self.cpuid_faulting {
            let set = access.cpu.set_kernel_msr(MISC_FEATURES, value);
            set.map_err(|_| GeneralProtection)?;
        }
        Ok(())
    }

    /// Threads of a package in 15:0, cores in 31:16.
    fn core_thread_count(&self) -> u64 {
        let cores = u64::from(self.topology.cores);
        let threads = cores * u64::from(self.topology.threads);
        threads.min(0xffff) | cores.min(0xffff) << 16
    }

    /// The base ratio in 15:8, the most efficient in 47:40, the least in 55:48. No ratio or TDP limit is
    /// programmable (28 and 29 clear) and there is no TDP level but the nominal one (34:33 clear).
    fn platform_info(&self) -> u64 {
        let faulting = if self.cpuid_faulting {
            INFO_CPUID_FAULTING
        } else {
            0
        };
        self.base << 8 | faulting | self.min << 40 | self.min << 48
    }

    /// The ratio of a core: the highest that one of its threads asks for and may have.
    fn current(&self, location: CpuLocation) -> u64 {
        let limit = self.limit.load(Ordering::Relaxed);
        let per_core = self.topology.threads as usize;
        let threads = self.threads.iter().skip(location.core as usize * per_core);
        let granted = threads.take(per_core).map(|thread| {
            let perf_ctl = thread.perf_ctl.load(Ordering::Relaxed);
            let misc_enable = thread.misc_enable.load(Ordering::Relaxed);
            let turbo = perf_ctl & DISENGAGE_TURBO == 0 && misc_enable & TURBO_OFF == 0;
            let most = if turbo { self.max } else { self.base };
            (perf_ctl >> 8 & 0xff).clamp(self.min, most)
        });
        granted.max().unwrap_or(self.base).min(limit)
    }

    pub(super) fn save(&self) -> DeviceState {
        let threads = self.threads.iter().map(|thread| {
            [&thread.perf_ctl, &thread.misc_enable].map(|r| r.load(Ordering::Relaxed))
        });
        let packages = self
            .packages
            .iter()
            .map(|package| [package.tdp_control.read(), package.turbo_activation.read()]);
        let state = State {
            threads: threads.collect(),
            packages: packages.collect(),
        };
        DeviceState::encode(VERSION, &state)
    }

    pub(super) fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(VERSION)?;
        let (threads, packages) = (&state.threads, &state.packages);
        if threads.len() != self.threads.len() || packages.len() != self.packages.len() {
            return Err(RestoreError::Mismatch("it is of another topology".into()));
        }
        let sound = |[perf_ctl, misc_enable]: &[u64; 2]| {
            perf_ctl & !(TARGET | DISENGAGE_TURBO) == 0
                && misc_enable & !SWITCHES == self.misc_enable & !SWITCHES
        };
        let packages = || self.packages.iter().zip(packages);
        let sound_package = |(package, [control, activation]): (&Package, &[u64; 2])| {
            let (tdp, turbo) = (&package.tdp_control, &package.turbo_activation);
            if self.config_tdp {
                tdp.reaches(*control) && turbo.reaches(*activation)
            } else {
                tdp.is_reset(*control) && turbo.is_reset(*activation)
            }
        };
        if !threads.iter().all(sound) || !packages().all(sound_package) {
            return Err(RestoreError::Mismatch(
                "a register holds what no guest can write to it".into(),
            ));
        }
        for (thread, [perf_ctl, misc_enable]) in self.threads.iter().zip(threads) {
            thread.perf_ctl.store(*perf_ctl, Ordering::Relaxed);
            thread.misc_enable.store(*misc_enable, Ordering::Relaxed);
        }
        for (package, [control, activation]) in packages() {
            package.tdp_control.restore(*control);
            package.turbo_activation.restore(*activation);
        }
        Ok(())
    }
}

impl Package {
    /// With no level to choose, the TDP control has its lock (31) only. Turbo is activated above the
    /// highest ratio without it (7:0), and that too can be locked.
    fn new(base: u64) -> Self {
        const LOCK: u64 = 1 << 31;
        Self {
            tdp_control: Lockable::new(LOCK, LOCK, 0),
            turbo_activation: Lockable::new(0xff | LOCK, LOCK, base - 1),
        }
    }
}

/// The turbo ratios from fewer cores to more.
fn turbo_ratios(config: &Config, ratios: &Ratios, base: u64) -> Result<Vec<u64>, String> {
    const KEY: &str = "turbo_mhz";
    let mhz = match &config.turbo_mhz {
        None => return Ok(vec![base; 8]),
        Some(Turbo::Any(mhz)) => {
            let groups = config.turbo_cores.as_ref().map_or(8, Vec::len);
            vec![*mhz; groups]
        }
        Some(Turbo::ByCores(list)) => list.clone(),
    };
    if mhz.is_empty() || mhz.len() > 8 {
        return Err(format!("{KEY}: {} frequencies are not 1 to 8", mhz.len()));
    }
    if mhz.iter().any(|mhz| *mhz < config.base_mhz) || mhz.windows(2).any(|pair| pair[0] < pair[1])
    {
        return Err(format!(
            "{KEY}: more cores at work are not faster, and none slower than the {} MHz of `base_mhz`",
            config.base_mhz
        ));
    }
    mhz.iter().map(|mhz| ratios.ratio(KEY, *mhz)).collect()
}

fn turbo_cores(config: &Config, frequencies: usize) -> Result<Option<u64>, String> {
    let Some(cores) = &config.turbo_cores else {
        return Ok(None);
    };
    if cores.len() != frequencies {
        return Err(format!(
            "turbo_cores: {} counts of cores for {frequencies} frequencies of `turbo_mhz`",
            cores.len()
        ));
    }
    if cores[0] == 0 || cores.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("turbo_cores: the counts of cores begin above 0 and ascend".into());
    }
    Ok(Some(bytes(cores.iter().copied().map(u64::from))))
}

/// Up to eight bytes, the first in 7:0.
fn bytes(values: impl Iterator<Item = u64>) -> u64 {
    (0..).zip(values).map(|(i, value)| value << (8 * i)).sum()
}
