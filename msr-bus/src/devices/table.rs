//! Registers described by a configuration instead of code: constants, and registers that store what is written.

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice, PerScope,
    RestoreError, Scope, U64,
};

/// The keys of a `[[msr.device]]` with `type = "table"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The registers, each a table of its own: `[[msr.device.register]]`.
    pub register: Vec<RegisterConfig>,
}

/// One register of a table.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterConfig {
    /// The register's MSR index or name; a range makes as many alike.
    #[schemars(with = "String")]
    pub msr: MsrRange,
    /// The value after reset.
    #[serde(default)]
    pub value: U64,
    /// What a write does: "fault" (#GP: the register is read-only), "ignore" (the write is dropped) or "store".
    #[serde(default)]
    pub write: WritePolicy,
    /// With "store": bits that must be written as zero. A write that sets one is #GP.
    #[serde(default)]
    pub reserved: U64,
    /// With "store": bits that keep their value whatever is written.
    #[serde(default)]
    pub ignored: U64,
    /// Which CPUs share the register: "thread", "core" or "package".
    #[serde(default)]
    pub scope: Scope,
}

/// What a write to a register does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WritePolicy {
    /// The write is #GP.
    #[default]
    Fault,
    /// The write is dropped.
    Ignore,
    /// The register takes the value.
    Store,
}

#[derive(Debug)]
struct Register {
    msr: u32,
    write: WritePolicy,
    reserved: u64,
    ignored: u64,
    value: PerScope<AtomicU64>,
}

/// A table of registers, in ascending order of their indices.
#[derive(Debug)]
pub struct Table {
    name: String,
    registers: Vec<Register>,
}

/// The most registers a table holds. Each has its value in memory; the real windows of both vendors
/// together are smaller.
const MAX_REGISTERS: u64 = 0x1_0000;

impl Model for Table {
    const TYPE: &'static str = "table";
    const SUMMARY: &'static str =
        "constants and read/write registers, described in the configuration";
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let total: u64 = config.register.iter().map(|r| r.msr.len()).sum();
        if total == 0 {
            return Err("register: a table needs at least one register".into());
        }
        if total > MAX_REGISTERS {
            return Err(format!(
                "register: {total} registers are too many, a table holds {MAX_REGISTERS}"
            ));
        }
        let mut registers = Vec::new();
        for entry in &config.register {
            if entry.write != WritePolicy::Store && (entry.reserved.0 | entry.ignored.0) != 0 {
                let msr = entry.msr;
                return Err(format!(
                    "register {msr}: `reserved` and `ignored` speak of stored writes, so they need write = \"store\""
                ));
            }
            registers.extend((entry.msr.first()..=entry.msr.last()).map(|msr| Register {
                msr,
                write: entry.write,
                reserved: entry.reserved.0,
                ignored: entry.ignored.0,
                value: PerScope::new(entry.scope, &context.topology, |_| {
                    AtomicU64::new(entry.value.0)
                }),
            }));
        }
        registers.sort_by_key(|register| register.msr);
        if let Some(twice) = registers.windows(2).find(|pair| pair[0].msr == pair[1].msr) {
            return Err(format!(
                "register: MSR {:#x} is described twice",
                twice[0].msr
            ));
        }
        Ok(Self { name, registers })
    }
}

impl Table {
    fn register(&self, index: u32) -> Result<&Register, GeneralProtection> {
        let place = self
            .registers
            .binary_search_by_key(&index, |register| register.msr);
        place
            .map(|place| &self.registers[place])
            .map_err(|_| GeneralProtection)
    }
}

impl MsrDevice for Table {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        self.registers
            .iter()
            .map(|register| MsrRange::single(register.msr))
            .collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let register = self.register(access.index)?;
        Ok(register
            .value
            .at(access.cpu.location())
            .load(Ordering::Relaxed))
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let register = self.register(access.index)?;
        match register.write {
            WritePolicy::Fault => Err(GeneralProtection),
            WritePolicy::Ignore => Ok(()),
            WritePolicy::Store if value & register.reserved != 0 => Err(GeneralProtection),
            WritePolicy::Store => {
                let stored = register.value.at(access.cpu.location());
                let kept = stored.load(Ordering::Relaxed) & register.ignored;
                stored.store(kept | value & !register.ignored, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn save(&self) -> Option<DeviceState> {
        let values: Vec<(u32, Vec<u64>)> = self
            .registers
            .iter()
            .map(|r| {
                (
                    r.msr,
                    r.value.iter().map(|v| v.load(Ordering::Relaxed)).collect(),
                )
            })
            .collect();
        Some(DeviceState::encode(1, &values))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let values: Vec<(u32, Vec<u64>)> = state.decode(1)?;
        let fits = values.len() == self.registers.len()
            && values
                .iter()
                .zip(&self.registers)
                .all(|((msr, copies), register)| {
                    *msr == register.msr && copies.len() == register.value.len()
                });
        if !fits {
            return Err(RestoreError::Mismatch(
                "it describes other registers or another topology".into(),
            ));
        }
        for ((_, copies), register) in values.iter().zip(&self.registers) {
            for (stored, value) in register.value.iter().zip(copies) {
                stored.store(*value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
