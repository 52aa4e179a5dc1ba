//! The host's own MSRs, as its msr module shows them.
//!
//! Read-only, but for the registers that the configuration makes writable one by one. A value comes from
//! the CPU of the host that the configuration names, or else from the one that the vCPU's thread runs on at
//! that moment; the thread may have moved before the guest sees the value, so registers that differ
//! between CPUs want a fixed one, or a pinned vCPU. CPUs of the host that came online after the device
//! was made are not read: #GP. What the host's CPU answers with #GP is #GP for the guest.

mod host_msrs;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use msr_filter::MsrRange;
use serde::Deserialize;

pub use self::host_msrs::{DevCpu, HostMsrs};
use super::host;
use crate::{DeviceContext, GeneralProtection, Model, MsrAccess, MsrDevice, Syscall};

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
    #[cfg_attr(feature = "config", schemars(with = "String"))]
    pub msr: MsrRange,
    /// The host's CPU that is read. Unless given, the one that the vCPU's thread runs on.
    pub cpu: Option<u32>,
    /// Whether the guest may write it. Only a single MSR can be made writable, so that each is meant.
    #[serde(default)]
    pub write: bool,
}

/// The device. It keeps no state: the registers are the host's.
pub struct Passthrough {
    name: String,
    /// In ascending order.
    registers: Vec<RegisterConfig>,
    host: Arc<dyn HostMsrs>,
}

/// The most MSRs that one device passes through; each is tried out when it is made.
const MOST: u64 = 0x1000;

impl Model for Passthrough {
    const TYPE: &'static str = "passthrough";
    const SUMMARY: &'static str = "the host's own MSRs, from /dev/cpu/N/msr";
    const SYSCALLS: &'static [Syscall] = &[Syscall::PREAD64, Syscall::PWRITE64, Syscall::GETCPU];
    type Config = Config;

    fn build(name: String, config: Config, _: &DeviceContext) -> Result<Self, String> {
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
        Self::with_host(name, config, Arc::new(host))
    }
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
        })
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
        let (_, cpu) = self.find(access.index)?;
        let value = self.host.read(cpu, access.index);
        value.map_err(|_| GeneralProtection)
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let (register, cpu) = self.find(access.index)?;
        if !register.write {
            return Err(GeneralProtection);
        }
        let written = self.host.write(cpu, access.index, value);
        written.map_err(|_| GeneralProtection)
    }
}
