//! KVM's own value of an MSR, under our eye: every access is seen by the bus's observer, bits can be
//! hidden or forced on reads, and writes can be let through, narrowed, dropped or refused.
//!
//! Values go through `KVM_GET_MSRS` and `KVM_SET_MSRS` on the vCPU, so each register has the scope that
//! KVM gives it. Those are accesses by the host: KVM then skips checks that a guest's own WRMSR would have
//! to pass, and lets the host write registers that a guest may only read (`IA32_ARCH_CAPABILITIES`,
//! `IA32_UCODE_REV`). That is why nothing is written unless the configuration says so.

use msr_filter::MsrRange;
use serde::Deserialize;

use crate::{DeviceContext, GeneralProtection, Model, MsrAccess, MsrDevice, Syscall, U64};

/// The keys of a `[[msr.device]]` with `type = "forward"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The MSRs, each by index, name or range.
    pub msrs: Vec<MsrRange>,
    /// Bits that read as 0 whatever KVM has.
    #[serde(default)]
    pub hide: U64,
    /// Bits that read as 1 whatever KVM has.
    #[serde(default)]
    pub force: U64,
    /// What a write does: "fault" (#GP), "ignore" (the write is dropped) or "forward" (KVM gets it).
    #[serde(default)]
    pub write: Write,
    /// With "forward": the bits that a write changes; the others stay as KVM has them. Unless given, all that are
    /// neither hidden nor forced.
    pub write_mask: Option<U64>,
}

/// What a write does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// The write is #GP.
    #[default]
    Fault,
    /// The write is dropped.
    Ignore,
    /// KVM gets it.
    Forward,
}

/// The device. It keeps no state: what is written is KVM's, and saved with the vCPU.
#[derive(Debug)]
pub struct Forward {
    name: String,
    msrs: Vec<MsrRange>,
    hide: u64,
    force: u64,
    write: Write,
    write_mask: u64,
}

impl Model for Forward {
    const TYPE: &'static str = "forward";
    const SUMMARY: &'static str = "KVM's own values, watched and with bits hidden or forced";
    const SYSCALLS: &'static [Syscall] = &[Syscall::KVM_GET_MSRS, Syscall::KVM_SET_MSRS];
    type Config = Config;

    fn build(name: String, config: Config, _: &DeviceContext) -> Result<Self, String> {
        let (hide, force) = (config.hide.0, config.force.0);
        if config.msrs.is_empty() {
            return Err("msrs: name at least one MSR".into());
        }
        if hide & force != 0 {
            return Err(format!(
                "force: bits {:#x} are in `hide` too; a bit reads as 0 or as 1",
                hide & force
            ));
        }
        if config.write_mask.is_some() && config.write != Write::Forward {
            return Err("write_mask: it narrows writes that KVM gets: write = \"forward\"".into());
        }
        Ok(Self {
            name,
            msrs: config.msrs,
            hide,
            force,
            write: config.write,
            write_mask: config.write_mask.map_or(!(hide | force), |mask| mask.0),
        })
    }
}

impl MsrDevice for Forward {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        self.msrs.clone()
    }

    fn leaves_to_kvm(&self, _index: u32) -> bool {
        true
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let value = access.cpu.kernel_msr(access.index);
        let value = value.map_err(|_| GeneralProtection)?;
        Ok(value & !self.hide | self.force)
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        match self.write {
            Write::Fault => return Err(GeneralProtection),
            Write::Ignore => return Ok(()),
            Write::Forward => {}
        }
        let value = if self.write_mask == u64::MAX {
            // Without a look at the old value: some MSRs are write-only.
            value
        } else {
            let old = access.cpu.kernel_msr(access.index);
            old.map_err(|_| GeneralProtection)? & !self.write_mask | value & self.write_mask
        };
        let set = access.cpu.set_kernel_msr(access.index, value);
        set.map_err(|_| GeneralProtection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExitReason;
    use crate::Topology;
    use crate::devices::fixture::config;
    use crate::testing::{FakeVcpu, context};

    fn build(keys: &str) -> Result<Forward, String> {
        Forward::build("f".into(), config(keys), &context(Topology::flat(1)))
    }

    /// A device for MSRs 0x10 and 0x11 on a vCPU that has 0x10 with this value.
    fn forward(keys: &str, value: u64) -> (FakeVcpu, Forward) {
        let cpu = FakeVcpu::default();
        cpu.kernel_msrs.borrow_mut().insert(0x10, value);
        (
            cpu,
            build(&format!("msrs = ['0x10-0x11']\n{keys}")).unwrap(),
        )
    }

    fn access(cpu: &FakeVcpu, index: u32) -> MsrAccess<'_> {
        MsrAccess {
            index,
            reason: ExitReason::Filter,
            cpu,
        }
    }

    #[test]
    fn a_read_gives_kvms_value_with_bits_hidden_and_forced() {
        let (cpu, device) = forward("hide = 0xf0\nforce = 0x0f", 0x1a5);
        assert_eq!(device.read(&access(&cpu, 0x10)), Ok(0x10f));
        // KVM lacks it.
        assert_eq!(device.read(&access(&cpu, 0x11)), Err(GeneralProtection));
    }

    #[test]
    fn a_write_does_what_the_configuration_says() {
        for (keys, outcome, value) in [
            ("", Err(GeneralProtection), 0x1a5),
            ("write = 'ignore'", Ok(()), 0x1a5),
            ("write = 'forward'", Ok(()), 0x5a),
            (
                "write = 'forward'\nhide = 0xf0\nforce = 0x100",
                Ok(()),
                0x1aa,
            ),
            ("write = 'forward'\nwrite_mask = 0xf", Ok(()), 0x1aa),
            ("write = 'forward'\nwrite_mask = 0", Ok(()), 0x1a5),
        ] {
            let (cpu, device) = forward(keys, 0x1a5);
            assert_eq!(device.write(&access(&cpu, 0x10), 0x5a), outcome, "{keys}");
            assert_eq!(cpu.kernel_msrs.borrow()[&0x10], value, "{keys}");
        }
        for keys in ["write = 'forward'", "write = 'forward'\nwrite_mask = 1"] {
            let (cpu, device) = forward(keys, 0);
            let written = device.write(&access(&cpu, 0x11), 0);
            assert_eq!(written, Err(GeneralProtection));
        }
    }

    #[test]
    fn what_cannot_be_is_a_clear_error() {
        for (keys, message) in [
            ("msrs = []", "msrs: name at least one MSR"),
            (
                "msrs = [1]\nhide = 6\nforce = 3",
                "force: bits 0x2 are in `hide` too; a bit reads as 0 or as 1",
            ),
            (
                "msrs = [1]\nwrite_mask = 1",
                "write_mask: it narrows writes that KVM gets: write = \"forward\"",
            ),
        ] {
            assert_eq!(build(keys).unwrap_err(), message);
        }
    }

    #[test]
    fn it_claims_what_it_is_told_to() {
        let device = build("msrs = ['0x10-0x11', 'IA32_MISC_ENABLE']").unwrap();
        let claims = [MsrRange::new(0x10, 0x11).unwrap(), MsrRange::single(0x1a0)];
        assert_eq!(device.claims(), claims);
    }
}
