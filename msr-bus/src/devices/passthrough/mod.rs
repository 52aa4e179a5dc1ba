//! The host's own MSRs, as its msr module shows them.
//!
//! Read-only, but for the registers that the configuration makes writable one by one. A value comes from
//! the CPU of the host that the configuration names, or else from the one that the vCPU's thread runs on at
//! that moment; the thread may have moved before the guest sees the value, so registers that differ
//! between CPUs want a fixed one, or a pinned vCPU. CPUs of the host that came online after the device
//! was made are not read: #GP. What the host's CPU answers with #GP is #GP for the guest.
//!
//! Each access to a fixed CPU interrupts it. Reads are cached, and writes are spaced: a vCPU that writes too soon waits for its
//! turn, so that no guest takes a CPU of the host away from others.

#[allow(unsafe_code)]
mod host_msrs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msr_filter::MsrRange;
use serde::Deserialize;

pub use self::host_msrs::{DevCpu, HostMsrs};
use super::host;
use crate::{CpuClock, DeviceContext, GeneralProtection, Model, MsrAccess, MsrDevice, Syscall};

/// The keys of a `[[msr.device]]` with `type = "passthrough"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The registers, each a table of its own: `[[msr.device.register]]`.
    pub register: Vec<RegisterConfig>,
}

/// Registers of the host.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegisterConfig {
    /// The MSR's index or name, or a range of them.
    pub msr: MsrRange,
    /// The host's CPU that is read. Unless given, the one that the vCPU's thread runs on.
    pub cpu: Option<u32>,
    /// How old a value may be, in seconds from 0 to 3600, before the host is read again; each vCPU's writes are seen at
    /// once. Unless given, 1 for the energy counters of RAPL, which tell of the host's other work (PLATYPUS,
    /// CVE-2020-8694), 0.001 for others of a fixed `cpu`, because each read interrupts that CPU, and 0 else.
    pub cache_seconds: Option<f64>,
    /// Whether the guest may write it. Only a single MSR can be made writable, so that each is meant.
    #[serde(default)]
    pub write: bool,
}

/// How far apart writes of one register of a fixed CPU are at least.
const WRITE_SPACING: Duration = Duration::from_millis(1);

/// What was read last, by CPU of the host and register.
type Cache = HashMap<(u32, u32), CachedRead>;

/// The answer of a host's CPU.
struct CachedRead {
    at: Duration,
    /// `None` where the host refused.
    value: Option<u64>,
}

/// The device. It keeps no state: the registers are the host's.
pub struct Passthrough {
    name: String,
    /// In ascending order.
    registers: Vec<RegisterConfig>,
    host: Arc<dyn HostMsrs>,
    clock: Arc<dyn CpuClock>,
    /// Of those that are cached at all.
    cache: Mutex<Cache>,
    /// When a register of a fixed CPU may be written next, by CPU and register.
    next_write: Mutex<HashMap<(u32, u32), Duration>>,
}

/// RAPL's energy counters (Intel SDM volume 4; AMD PPR for family 19h).
const ENERGY: [u32; 7] = [0x611, 0x619, 0x639, 0x641, 0x64d, 0xc001_029a, 0xc001_029b];

impl RegisterConfig {
    fn holds_energy(&self) -> bool {
        ENERGY.iter().any(|index| self.msr.contains(*index))
    }

    /// How old a value may be.
    fn period(&self) -> Duration {
        let default = match self.cpu {
            _ if self.holds_energy() => 1.0,
            Some(_) => 0.001,
            None => 0.0,
        };
        Duration::from_secs_f64(self.cache_seconds.unwrap_or(default))
    }

    /// What the guest gets to know or to do by this register that its host may not want.
    fn warning(&self) -> Option<String> {
        let (msr, seconds) = (self.msr, self.period().as_secs_f64());
        if self.holds_energy() {
            Some(format!(
                "register {msr}: the guest is shown the host's energy, read every {seconds} s: that tells it of the host's \
                 other work too, the more the shorter `cache_seconds` is"
            ))
        } else {
            self.cpu.map(|cpu| {
                let writes = if self.write {
                    format!("by writing once in {} s, and by reading ", WRITE_SPACING.as_secs_f64())
                } else {
                    String::new()
                };
                format!(
                    "register {msr}: the guest can interrupt CPU {cpu} of the host, {writes}once in {seconds} s and register"
                )
            })
        }
    }
}

/// The most MSRs that one device passes through; each is tried out when it is made.
const MOST: u64 = 0x1000;

impl Model for Passthrough {
    const TYPE: &'static str = "passthrough";
    const SUMMARY: &'static str = "the host's own MSRs, from /dev/cpu/N/msr";
    const SYSCALLS: &'static [Syscall] = &[
        Syscall::CLOCK_GETTIME,
        Syscall::CLOCK_NANOSLEEP,
        Syscall::FUTEX,
        Syscall::GETCPU,
        Syscall::PREAD64,
        Syscall::PWRITE64,
    ];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let fixed = config.register.iter().map(|register| register.cpu);
        let mut cpus: Vec<u32> = match fixed.collect() {
            Some(fixed) => fixed,
            // One of them is read where the vCPU runs, and that may be anywhere.
            None => host::online_cpus().map_err(|e| format!("register: {e}"))?,
        };
        cpus.extend(config.register.iter().filter_map(|register| register.cpu));
        cpus.sort_unstable();
        cpus.dedup();
        let write = config.register.iter().any(|register| register.write);
        let host = DevCpu::open(&cpus, write).map_err(|e| format!("register: {e}"))?;
        for warning in config.register.iter().filter_map(RegisterConfig::warning) {
            log::warn!("{name}: {warning}");
        }
        Self::with_host(name, config, Arc::new(host), context.clock.clone())
    }
}

/// What is behind it is whole after each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passthrough {
    /// The device on `host`, which may be something else than files: a helper that holds the privilege.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration, or which MSR the host lacks.
    pub fn with_host(
        name: String,
        config: Config,
        host: Arc<dyn HostMsrs>,
        clock: Arc<dyn CpuClock>,
    ) -> Result<Self, String> {
        let mut registers = config.register;
        let total: u64 = registers.iter().map(|register| register.msr.len()).sum();
        if total == 0 || total > MOST {
            return Err(format!(
                "register: {total} registers; a device passes 1 to {MOST} through"
            ));
        }
        registers.sort_by_key(|register| register.msr);
        for pair in registers.windows(2) {
            if let Some(twice) = pair[0].msr.intersection(pair[1].msr) {
                return Err(format!("register: MSR {twice} is described twice"));
            }
        }
        for register in &registers {
            let msr = register.msr;
            if let Some(seconds) = register.cache_seconds
                && !(0.0..=3600.0).contains(&seconds)
            {
                return Err(format!(
                    "register {msr}: cache_seconds: {seconds} s is not between 0 and 3600 s"
                ));
            }
            if register.write && msr.len() != 1 {
                return Err(format!(
                    "register {msr}: `write` is for a single MSR; give each its own table"
                ));
            }
            // A writable register may be write-only.
            if register.write {
                continue;
            }
            let cpu = register.cpu.unwrap_or_else(|| host.running_cpu());
            for index in msr.first()..=msr.last() {
                host.read(cpu, index).map_err(|e| {
                    format!(
                        "register {msr}: CPU {cpu} of the host does not show MSR {index:#x}: {e}"
                    )
                })?;
            }
        }
        Ok(Self {
            name,
            registers,
            host,
            clock,
            cache: Mutex::default(),
            next_write: Mutex::default(),
        })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }

    /// Takes the next turn to write a register, and gives how long it is until then.
    fn turn(&self, key: (u32, u32)) -> Duration {
        let now = self.clock.now();
        let mut next_write = lock(&self.next_write);
        let next = next_write.entry(key).or_default();
        let turn = now.max(*next);
        *next = turn + WRITE_SPACING;
        turn - now
    }

    /// The register, and the CPU to ask now.
    fn find(&self, index: u32) -> Result<(&RegisterConfig, u32), GeneralProtection> {
        let after = self
            .registers
            .partition_point(|register| register.msr.first() <= index);
        let register = self.registers[..after].last();
        let register = register
            .filter(|register| register.msr.contains(index))
            .ok_or(GeneralProtection)?;
        let cpu = register.cpu.unwrap_or_else(|| self.host.running_cpu());
        Ok((register, cpu))
    }
}

impl MsrDevice for Passthrough {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        self.registers.iter().map(|register| register.msr).collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let (register, cpu) = self.find(access.index)?;
        let read = || self.host.read(cpu, access.index).ok();
        let period = register.period();
        if period.is_zero() {
            return read().ok_or(GeneralProtection);
        }
        let now = self.clock.now();
        let mut cache = self.cache();
        let key = (cpu, access.index);
        if let Some(cached) = cache.get(&key)
            && now.saturating_sub(cached.at) < period
        {
            return cached.value.ok_or(GeneralProtection);
        }
        // With the lock held: of several vCPUs that find the value too old, one reads.
        let value = read();
        cache.insert(key, CachedRead { at: now, value });
        value.ok_or(GeneralProtection)
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let (register, cpu) = self.find(access.index)?;
        if !register.write {
            return Err(GeneralProtection);
        }
        if register.cpu.is_some() {
            let wait = self.turn((cpu, access.index));
            if !wait.is_zero() {
                self.host.wait(wait);
            }
        }
        self.cache().remove(&(cpu, access.index));
        let written = self.host.write(cpu, access.index, value);
        written.map_err(|_| GeneralProtection)
    }
}
