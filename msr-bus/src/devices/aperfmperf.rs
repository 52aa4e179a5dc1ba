//! `IA32_APERF` and `IA32_MPERF`: from their ratio software tells how fast a CPU ran while it worked.
//!
//! Both count per thread, in the C0 state only: MPERF (0xe7) at the frequency of the TSC, APERF (0xe8) at
//! the frequency that the CPU really ran at (SDM volume 3B, section 15.2; AMD APM volume 2, section
//! 17.2.1). AMD has read-only copies at 0xc00000e7 and 0xc00000e8. Software may write the counters, and
//! they count on from what it wrote.
//!
//! A vCPU is at work while its thread has a CPU of the host, so both follow the thread's CPU time. They
//! never run backwards, whatever the host's clocks do and across save and restore.
//!
//! Linux that is shown APERFMPERF by CPUID (leaf 6, bit 0 of ECX) reads both in every scheduler tick.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use super::monotonic_clock::{ClockState, MonotonicClock};
use crate::{
    CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice,
    PerScope, RestoreError, Scope, Syscall, VcpuId,
};

const MPERF: u32 = 0xe7; // IA32_MPERF
const APERF: u32 = 0xe8; // IA32_APERF
const MPERF_READ_ONLY: u32 = 0xc000_00e7; // MPerfReadOnly
const APERF_READ_ONLY: u32 = 0xc000_00e8; // APerfReadOnly

/// The version of [`State`].
const VERSION: u32 = 1;

/// The keys of a `[[msr.device]]` with `type = "aperfmperf"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The frequency at which MPERF counts, in MHz to a thousandth: that of the guest's TSC, which it is unless given.
    pub tsc_mhz: Option<f64>,
    /// How fast a CPU at work runs, as a multiple of `tsc_mhz`, from 0.01 to 100, to a millionth: APERF counts so
    /// much faster.
    #[serde(default = "one")]
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub ratio: f64,
    /// When MPERF counts. "busy": while the vCPU's thread has a CPU, so that APERF/MPERF is `ratio` and MPERF/TSC how
    /// busy the vCPU is. "always": all the time, so that APERF/MPERF is `ratio` times the share of a CPU that the
    /// vCPU really got.
    #[serde(default)]
    pub mperf: Mperf,
}

/// When MPERF counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mperf {
    /// While the vCPU's thread has a CPU.
    #[default]
    Busy,
    /// All the time.
    Always,
}

fn one() -> f64 {
    1.0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    clock: ClockState,
    /// What the guest's writes added to MPERF and APERF of each thread.
    added: Vec<[u64; 2]>,
}

#[derive(Clone, Copy, Debug)]
enum Counter {
    Mperf,
    Aperf,
}

/// The device.
pub struct AperfMperf {
    name: String,
    clock: MonotonicClock,
    /// Unless it is the clock's.
    tsc_khz: Option<u32>,
    /// In millionths. It is held while a counter is read or written, because `added` belongs to it.
    ratio: RwLock<u64>,
    mperf: Mperf,
    vendor: CpuVendor,
    /// What a guest's writes added to each counter, modulo 2^64.
    added: PerScope<[AtomicU64; 2]>,
}

impl Model for AperfMperf {
    const TYPE: &'static str = "aperfmperf";
    const SUMMARY: &'static str = "APERF and MPERF from the CPU time that the vCPUs really get";
    const SYSCALLS: &'static [Syscall] = &[Syscall::CLOCK_GETTIME, Syscall::FUTEX];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        if let Some(tsc_mhz) = config.tsc_mhz
            && !(1.0..=100_000.0).contains(&tsc_mhz)
        {
            return Err(format!(
                "tsc_mhz: {tsc_mhz} MHz is not between 1 and 100000 MHz"
            ));
        }
        Ok(Self {
            name,
            clock: MonotonicClock::new(context),
            tsc_khz: config.tsc_mhz.map(|mhz| (mhz * 1e3).round() as u32),
            ratio: RwLock::new(millionths(config.ratio)?),
            mperf: config.mperf,
            vendor: context.cpu.vendor,
            added: PerScope::new(Scope::Thread, &context.topology, |_| Default::default()),
        })
    }

    /// The counters go on from where they are.
    fn apply(&self, config: Config, _: &[&str], context: &DeviceContext) -> Result<(), String> {
        let next = millionths(config.ratio)?;
        let mut ratio = self.ratio.write().unwrap_or_else(PoisonError::into_inner);
        for vcpu in (0..context.topology.vcpus()).map(VcpuId) {
            let location = context.topology.locate(vcpu);
            let before = self.count(Counter::Aperf, vcpu.0, *ratio);
            let after = self.count(Counter::Aperf, vcpu.0, next);
            self.added.at(location)[Counter::Aperf as usize]
                .fetch_add(before.wrapping_sub(after), Ordering::Relaxed);
        }
        *ratio = next;
        Ok(())
    }
}

fn millionths(ratio: f64) -> Result<u64, String> {
    if (0.01..=100.0).contains(&ratio) {
        Ok((ratio * 1e6).round() as u64)
    } else {
        Err(format!("ratio: {ratio} is not between 0.01 and 100"))
    }
}

impl AperfMperf {
    fn ratio(&self) -> RwLockReadGuard<'_, u64> {
        // One integer.
        self.ratio.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a counter of a vCPU would show had the guest written none, and had `ratio` held all the time.
    fn count(&self, counter: Counter, vcpu: u32, ratio: u64) -> u64 {
        let cpu_time = || self.clock.cpu_time(vcpu);
        let (nanoseconds, ratio) = match (counter, self.mperf) {
            (Counter::Mperf, Mperf::Always) => (self.clock.now(), 1_000_000),
            (Counter::Mperf, Mperf::Busy) => (cpu_time(), 1_000_000),
            (Counter::Aperf, _) => (cpu_time(), ratio),
        };
        let tsc_khz = self.tsc_khz.unwrap_or_else(|| self.clock.tsc_khz());
        // kHz times ns are millionths of a cycle. 64 + 27 + 27 bits at most.
        let cycles = u128::from(nanoseconds) * u128::from(tsc_khz) * u128::from(ratio);
        (cycles / 1_000_000_000_000) as u64
    }
}

impl MsrDevice for AperfMperf {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        let indices: &[u32] = match self.vendor {
            CpuVendor::Intel => &[MPERF, APERF],
            CpuVendor::Amd => &[MPERF, APERF, MPERF_READ_ONLY, APERF_READ_ONLY],
        };
        indices.iter().copied().map(MsrRange::single).collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let counter = match access.index {
            MPERF | MPERF_READ_ONLY => Counter::Mperf,
            APERF | APERF_READ_ONLY => Counter::Aperf,
            _ => return Err(GeneralProtection),
        };
        let location = access.cpu.location();
        let ratio = self.ratio();
        let added = self.added.at(location)[counter as usize].load(Ordering::Relaxed);
        Ok(self
            .count(counter, location.thread, *ratio)
            .wrapping_add(added))
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let counter = match access.index {
            MPERF => Counter::Mperf,
            APERF => Counter::Aperf,
            _ => return Err(GeneralProtection),
        };
        let location = access.cpu.location();
        let ratio = self.ratio();
        let added = value.wrapping_sub(self.count(counter, location.thread, *ratio));
        self.added.at(location)[counter as usize].store(added, Ordering::Relaxed);
        Ok(())
    }

    fn save(&self) -> Option<DeviceState> {
        let _held = self.ratio();
        let added = self.added.iter();
        let state = State {
            clock: self.clock.save(),
            added: added
                .map(|thread| thread.each_ref().map(|a| a.load(Ordering::Relaxed)))
                .collect(),
        };
        Some(DeviceState::encode(VERSION, &state))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(VERSION)?;
        self.clock.check(&state.clock)?;
        if state.added.len() != self.added.len() {
            return Err(RestoreError::Mismatch("it is of other vCPUs".into()));
        }
        self.clock.restore(&state.clock);
        for (thread, saved) in self.added.iter().zip(&state.added) {
            for (added, value) in thread.iter().zip(saved) {
                added.store(*value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
