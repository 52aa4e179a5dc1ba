//! The Protected Processor Inventory Number: a serial number of the package that software must enable.
//!
//! | MSR | Vendor | Access | Scope |
//! |---|---|---|---|
//! | `MSR_PPIN_CTL` 0x4e | Intel | read, write until locked | package |
//! | `MSR_PPIN` 0x4f | Intel | read while enabled | package |
//! | `PPIN_CTL` 0xc00102f0 | AMD | read, write until locked | package |
//! | `PPIN` 0xc00102f1 | AMD | read while enabled | package |
//!
//! Sources: Intel SDM vol. 4, the tables of the Xeon families from Ivy Bridge on (`MSR_PPIN_CTL`,
//! `MSR_PPIN`); AMD's PPR for family 19h model 01h, MSRC001_02F0 and MSRC001_02F1.
//!
//! Bit 0 of the control register, `LockOut`, makes it read-only until reset; bit 1, `Enable_PPIN`, makes the
//! number readable. Intel refuses to lock while the number is enabled, so that a locked number is an unreadable one.
//!
//! Linux looks at these registers where CPUID says so: bit 23 of `Fn8000_0008_EBX` on AMD, bit 0 of leaf
//! 7.1's EBX or the model's number on Intel.

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use serde::Deserialize;

use crate::{
    CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice,
    PerScope, RestoreError, Scope, U64,
};

const LOCK_OUT: u64 = 1;
const ENABLE: u64 = 1 << 1;

/// The keys of a `[[msr.device]]` with `type = "ppin"`.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose registers: "intel" or "amd". The vendor of the guest's CPU unless given.
    pub vendor: Option<CpuVendor>,
    /// The numbers, one for each package.
    pub ppin: Vec<U64>,
    /// Whether the number is readable after reset.
    #[serde(default)]
    pub enabled: bool,
    /// Whether the control register is locked after reset. Intel has no state that is both enabled and
    /// locked.
    #[serde(default)]
    pub locked: bool,
}

/// The device.
#[derive(Debug)]
pub struct Ppin {
    name: String,
    vendor: CpuVendor,
    number: PerScope<u64>,
    /// The control register after reset.
    reset: u64,
    control: PerScope<AtomicU64>,
}

impl Model for Ppin {
    const TYPE: &'static str = "ppin";
    const SUMMARY: &'static str = "the package's serial number, with its enable and lock bits";
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let vendor = config.vendor.unwrap_or(context.cpu.vendor);
        let (found, packages) = (config.ppin.len(), context.topology.packages);
        if found != packages as usize {
            return Err(format!(
                "ppin: there are {found} numbers and {packages} packages"
            ));
        }
        if vendor == CpuVendor::Intel && config.enabled && config.locked {
            return Err("locked: on Intel a PPIN that is enabled cannot be locked".into());
        }
        let bit = |set, bit| if set { bit } else { 0 };
        let control = bit(config.enabled, ENABLE) | bit(config.locked, LOCK_OUT);
        Ok(Self {
            name,
            vendor,
            number: PerScope::new(Scope::Package, &context.topology, |package| {
                config.ppin[package as usize].0
            }),
            reset: control,
            control: PerScope::new(Scope::Package, &context.topology, |_| {
                AtomicU64::new(control)
            }),
        })
    }
}

impl Ppin {
    const fn control_index(&self) -> u32 {
        match self.vendor {
            CpuVendor::Intel => 0x4e,
            CpuVendor::Amd => 0xc001_02f0,
        }
    }

    /// Whether the control register can go from `from` to `to`.
    fn allows(&self, from: u64, to: u64) -> bool {
        let reserved = to & !(LOCK_OUT | ENABLE) != 0;
        let locks_enabled = to & LOCK_OUT != 0 && (from | to) & ENABLE != 0;
        let refused = from & LOCK_OUT != 0 || self.vendor == CpuVendor::Intel && locks_enabled;
        !reserved && !refused
    }
}

impl MsrDevice for Ppin {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        let control = self.control_index();
        vec![MsrRange::single(control), MsrRange::single(control + 1)]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let location = access.cpu.location();
        let control = self.control.at(location).load(Ordering::Relaxed);
        if access.index == self.control_index() {
            Ok(control)
        } else if control & ENABLE != 0 {
            Ok(*self.number.at(location))
        } else {
            Err(GeneralProtection)
        }
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        if access.index != self.control_index() {
            return Err(GeneralProtection);
        }
        // In one step, lest another CPU's lock be lost.
        let step = |from| self.allows(from, value).then_some(value);
        let control = self.control.at(access.cpu.location());
        control
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .map(drop)
            .map_err(|_| GeneralProtection)
    }

    fn save(&self) -> Option<DeviceState> {
        let control: Vec<u64> = self
            .control
            .iter()
            .map(|control| control.load(Ordering::Relaxed))
            .collect();
        Some(DeviceState::encode(1, &control))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let control: Vec<u64> = state.decode(1)?;
        if control.len() != self.control.len() {
            let (found, expected) = (control.len(), self.control.len());
            return Err(RestoreError::Mismatch(format!(
                "{found} packages where there are {expected}"
            )));
        }
        // By way of 0 a guest can go wherever it can go at all.
        let reaches =
            |bits: u64| bits == self.reset || self.reset & LOCK_OUT == 0 && self.allows(0, bits);
        if let Some(bad) = control.iter().find(|bits| !reaches(**bits)) {
            return Err(RestoreError::Mismatch(format!(
                "a control register of {bad:#x}, which no guest can bring about"
            )));
        }
        for (register, value) in self.control.iter().zip(control) {
            register.store(value, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
