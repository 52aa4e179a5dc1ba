//! Registers described by a configuration instead of code: constants, and registers that store what is
//! written.
//!
//! A register has a value, or several for the threads, cores or packages that have one each, perhaps put
//! together from named fields; and it says what reads and writes do: give the value, fault, drop the
//! write, or store it except for reserved and ignored bits until a lock bit is set.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msr_filter::MsrRange;

use crate::{
    DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice, PerScope,
    RestoreError,
};

mod config;

use super::copies::Copies;
pub use config::{Bits, Config, FieldConfig, ReadPolicy, RegisterConfig, WritePolicy};

#[derive(Debug)]
struct Register {
    msr: u32,
    read: ReadPolicy,
    write: WritePolicy,
    reserved: u64,
    ignored: u64,
    /// The bit that makes writes fault, or 0.
    lock: u64,
    /// What the copies hold after reset; the registers of a range share it.
    reset: Arc<[u64]>,
    value: PerScope<AtomicU64>,
}

/// A table of registers, in ascending order of their indices.
#[derive(Debug)]
pub struct Table {
    name: String,
    registers: Vec<Register>,
    /// What the copies of an MSR hold after somebody outside the guest has set them: what the guest's writes go on from, as
    /// they do from the values after reset.
    set: Mutex<BTreeMap<u32, Arc<[u64]>>>,
}

/// The most registers that a table holds, and that all tables of a configuration hold together. Each has its value in memory; the
/// real windows of both vendors together are smaller.
pub const MAX_REGISTERS: u64 = 0x1_0000;

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
            let name = |what| format!("register {}: {what}", entry.msr);
            entry.check_writes().map_err(name)?;
            let copies = entry.scope.copies(&context.topology);
            let values: Arc<[u64]> = entry.reset_values(copies).map_err(name)?.into();
            registers.extend((entry.msr.first()..=entry.msr.last()).map(|msr| Register {
                msr,
                read: entry.read,
                write: entry.write,
                reserved: entry.reserved.0,
                ignored: entry.ignored.0,
                lock: entry.lock.map_or(0, |bit| 1 << bit),
                reset: values.clone(),
                value: PerScope::new(entry.scope, &context.topology, |copy| {
                    AtomicU64::new(values[copy as usize])
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
        let table = Self {
            name,
            registers,
            set: Mutex::default(),
        };
        table.set_now(&config.now, |_| true)?;
        Ok(table)
    }

    fn apply(&self, config: Config, changed: &[&str], _: &DeviceContext) -> Result<(), String> {
        self.set_now(&config.now, |key| {
            let mut changed = changed.iter();
            changed.any(|path| path.strip_prefix("now.") == Some(key))
        })
    }
}

impl Register {
    /// The copy that the accessing CPU sees.
    fn at(&self, access: &MsrAccess<'_>) -> &AtomicU64 {
        self.value.at(access.cpu.location())
    }

    /// Whether a guest can bring a copy from one value to another.
    fn reaches(&self, from: u64, value: u64) -> bool {
        let written = || value & self.reserved == 0 && (value ^ from) & self.ignored == 0;
        let writable = self.write == WritePolicy::Store && from & self.lock == 0;
        value == from || writable && written()
    }

    fn store(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        if value & self.reserved != 0 {
            return Err(GeneralProtection);
        }
        // In one step, lest a lock that another CPU sets meanwhile be lost.
        let step = |old| {
            let stored = old & self.ignored | value & !self.ignored;
            (old & self.lock == 0).then_some(stored)
        };
        let register = self.at(access);
        register
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .map(drop)
            .map_err(|_| GeneralProtection)
    }
}

impl Table {
    /// Has registers hold what `now` says, those of the keys that are to `change`.
    fn set_now(
        &self,
        now: &BTreeMap<String, Copies>,
        change: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let mut named: Vec<(MsrRange, &str)> = Vec::new();
        let mut changes = Vec::new();
        for (key, copies) in now {
            let wrong = |error: String| format!("now.{key}: {error}");
            let range: MsrRange = key.parse().map_err(|error| wrong(format!("{error}")))?;
            if let Some((_, other)) = named.iter().find(|(r, _)| r.intersection(range).is_some()) {
                return Err(wrong(format!(
                    "it is the MSR that `{other}` names, which is set already: use that"
                )));
            }
            named.push((range, key));
            let registers = self.registers.iter().filter(|r| range.contains(r.msr));
            let registers: Vec<&Register> = registers.collect();
            if registers.len() as u64 != range.len() {
                return Err(wrong("the table has no such register".into()));
            }
            for register in registers {
                let values = copies.values(register.value.len()).map_err(wrong)?;
                if change(key) {
                    changes.push((register, Arc::from(values)));
                }
            }
        }
        let mut set = self.set();
        for (register, values) in changes {
            let values: Arc<[u64]> = values;
            for (copy, value) in register.value.iter().zip(values.iter()) {
                copy.store(*value, Ordering::Relaxed);
            }
            set.insert(register.msr, values);
        }
        Ok(())
    }

    fn set(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<[u64]>>> {
        // It is whole after each register.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        match register.read {
            ReadPolicy::Value => Ok(register.at(access).load(Ordering::Relaxed)),
            ReadPolicy::Fault => Err(GeneralProtection),
        }
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let register = self.register(access.index)?;
        match register.write {
            WritePolicy::Fault => Err(GeneralProtection),
            WritePolicy::Ignore => Ok(()),
            WritePolicy::Store => register.store(access, value),
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
        let set = self.set();
        for ((msr, copies), register) in values.iter().zip(&self.registers) {
            let from = set.get(msr).unwrap_or(&register.reset);
            let mut copies = copies.iter().zip(from.iter());
            if let Some((bad, _)) = copies.find(|(value, from)| !register.reaches(**from, **value))
            {
                return Err(RestoreError::Mismatch(format!(
                    "MSR {msr:#x} holds {bad:#x}, which no guest can write to it"
                )));
            }
        }
        for ((_, copies), register) in values.iter().zip(&self.registers) {
            for (stored, value) in register.value.iter().zip(copies) {
                stored.store(*value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
