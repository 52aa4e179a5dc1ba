//! A scratch register: 64 bits that each CPU can write and read back.
//!
//! It models no hardware. It is the example to copy when writing a device: everything a device can have
//! is here once, and nothing twice.

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use serde::Deserialize;

use super::copies::Copies;
use crate::{
    DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice, PerScope,
    RestoreError, Scope, U64,
};

/// The keys of a `[[msr.device]]` with `type = "scratch"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The register's MSR index or name.
    pub msr: MsrRange,
    /// The value after reset.
    #[serde(default)]
    pub reset: U64,
    /// What the register holds now, in place of `reset`: a value for all copies, or a list with one for each.
    #[serde(default)]
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub now: Option<Copies>,
    /// Which CPUs share the register: "thread", "core" or "package".
    #[serde(default)]
    pub scope: Scope,
}

/// The device: what its configuration says, and the registers as atomics, because every vCPU thread may be
/// here at once.
#[derive(Debug)]
pub struct Scratch {
    name: String,
    msr: MsrRange,
    value: PerScope<AtomicU64>,
}

impl Model for Scratch {
    const TYPE: &'static str = "scratch";
    const SUMMARY: &'static str =
        "a read/write register per CPU that does nothing: the example device";
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        if config.msr.len() != 1 {
            return Err(format!(
                "msr: {} is a range, and a scratch register is one MSR",
                config.msr
            ));
        }
        let reset = config.reset.0;
        let value = PerScope::new(config.scope, &context.topology, |_| AtomicU64::new(reset));
        let device = Self {
            name,
            msr: config.msr,
            value,
        };
        device.set(config.now.as_ref())?;
        Ok(device)
    }

    fn apply(&self, config: Config, _: &[&str], _: &DeviceContext) -> Result<(), String> {
        self.set(config.now.as_ref())
    }
}

impl Scratch {
    fn set(&self, now: Option<&Copies>) -> Result<(), String> {
        let Some(now) = now else {
            return Ok(());
        };
        let values = now.values(self.value.len());
        let values = values.map_err(|error| format!("now: {error}"))?;
        for (register, value) in self.value.iter().zip(values) {
            register.store(value, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl MsrDevice for Scratch {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![self.msr]
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        Ok(self.value.at(access.cpu.location()).load(Ordering::Relaxed))
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        self.value
            .at(access.cpu.location())
            .store(value, Ordering::Relaxed);
        Ok(())
    }

    fn save(&self) -> Option<DeviceState> {
        let values: Vec<u64> = self
            .value
            .iter()
            .map(|v| v.load(Ordering::Relaxed))
            .collect();
        Some(DeviceState::encode(1, &values))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let values: Vec<u64> = state.decode(1)?;
        if values.len() != self.value.len() {
            let (found, expected) = (values.len(), self.value.len());
            return Err(RestoreError::Mismatch(format!(
                "{found} registers where there are {expected}"
            )));
        }
        for (register, value) in self.value.iter().zip(values) {
            register.store(value, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeVcpu, context};
    use crate::{DeviceConfig, DeviceModel, ExitReason, Topology, VcpuId};

    const MSR: u32 = 0x400;

    fn scratch(scope: Scope, topology: Topology) -> Scratch {
        let config = Config {
            msr: MsrRange::single(MSR),
            reset: U64(7),
            now: None,
            scope,
        };
        Scratch::build("scratch".into(), config, &context(topology)).unwrap()
    }

    fn access(cpu: &FakeVcpu) -> MsrAccess<'_> {
        MsrAccess {
            index: MSR,
            reason: ExitReason::Filter,
            cpu,
        }
    }

    #[test]
    fn a_write_is_seen_by_the_cpus_that_share_the_register() {
        let topology = Topology {
            packages: 2,
            cores: 2,
            threads: 2,
        };
        for (scope, sharers) in [(Scope::Thread, 1), (Scope::Core, 2), (Scope::Package, 4)] {
            let device = scratch(scope, topology);
            device
                .write(&access(&FakeVcpu::new(VcpuId(0), topology)), 42)
                .unwrap();
            for cpu in 0..8 {
                let read = device
                    .read(&access(&FakeVcpu::new(VcpuId(cpu), topology)))
                    .unwrap();
                assert_eq!(
                    read,
                    if cpu < sharers { 42 } else { 7 },
                    "CPU {cpu}, {scope:?}"
                );
            }
        }
    }

    #[test]
    fn a_range_of_msrs_is_refused() {
        let config = Config {
            msr: MsrRange::new(1, 2).unwrap(),
            reset: U64(0),
            now: None,
            scope: Scope::Thread,
        };
        let error = Scratch::build("s".into(), config, &context(Topology::flat(1))).unwrap_err();
        assert_eq!(
            error,
            "msr: 0x1-0x2 is a range, and a scratch register is one MSR"
        );
    }

    #[test]
    fn a_value_that_is_set_from_outside_is_every_copys_or_its_own() {
        let topology = Topology::flat(2);
        let context = context(topology);
        let device = DeviceConfig {
            model: "scratch".into(),
            name: None,
            keys: toml::from_str("msr = 0x400\nreset = 7").unwrap(),
        };
        let (device, live) = device.build_live(DeviceModel::all(), &context).unwrap();
        let read = |cpu| device.read(&access(&FakeVcpu::new(VcpuId(cpu), topology)));
        let set = |keys: &str| live.set(&toml::from_str(keys).unwrap());
        assert_eq!([read(0), read(1)], [Ok(7), Ok(7)]);
        set("now = 9").unwrap();
        assert_eq!([read(0), read(1)], [Ok(9), Ok(9)]);
        set("now = [1, '0xffff_ffff_ffff_ffff']").unwrap();
        assert_eq!([read(0), read(1)], [Ok(1), Ok(u64::MAX)]);
        for (keys, words) in [
            (
                "now = [1]",
                "now: there are 1 values, and 2 copies of the register",
            ),
            ("now = -1", "now: expected a 64-bit value"),
            ("now = 1.5", "`now` is 1.5; it takes"),
            (
                "reset = 1",
                "`reset` cannot change while the guest runs; these can: now",
            ),
        ] {
            let error = set(keys).unwrap_err().to_string();
            assert!(error.contains(words), "{keys}: {error}");
        }
        assert_eq!([read(0), read(1)], [Ok(1), Ok(u64::MAX)]);
        // A device to try changes on begins with what is set, and leaves this one alone.
        let rehearsal = live.rehearsal().unwrap();
        assert_eq!(rehearsal.current(), live.current());
        rehearsal.set(&toml::from_str("now = 3").unwrap()).unwrap();
        assert_eq!(read(0), Ok(1));
    }

    #[test]
    fn a_restored_register_answers_as_the_saved_one() {
        let topology = Topology::flat(2);
        let saved = scratch(Scope::Thread, topology);
        saved
            .write(&access(&FakeVcpu::new(VcpuId(1), topology)), 42)
            .unwrap();
        let restored = scratch(Scope::Thread, topology);
        restored.restore(&saved.save().unwrap()).unwrap();
        for (cpu, value) in [(0, 7), (1, 42)] {
            let read = restored.read(&access(&FakeVcpu::new(VcpuId(cpu), topology)));
            assert_eq!(read, Ok(value));
        }
    }

    #[test]
    fn a_state_of_another_topology_or_version_is_refused() {
        let device = scratch(Scope::Thread, Topology::flat(2));
        let other = scratch(Scope::Thread, Topology::flat(1)).save().unwrap();
        assert!(matches!(
            device.restore(&other),
            Err(RestoreError::Mismatch(_))
        ));
        let newer = DeviceState::encode(2, &[0u64, 0]);
        assert!(matches!(
            device.restore(&newer),
            Err(RestoreError::Version {
                found: 2,
                expected: 1
            })
        ));
    }
}
