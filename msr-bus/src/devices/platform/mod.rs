//! What a processor is: frequencies, cores and threads, and the switches around them.
//!
//! Intel (SDM volume 4):
//!
//! | MSR | Register | Scope |
//! |---|---|---|
//! | 0x35 | `MSR_CORE_THREAD_COUNT`, read-only, from the guest's topology | package |
//! | 0xce | `MSR_PLATFORM_INFO`, read-only | package |
//! | 0x140 | `MSR_MISC_FEATURES_ENABLES`: CPUID faulting, carried out by KVM | thread |
//! | 0x198 | `IA32_PERF_STATUS`, read-only | core |
//! | 0x199 | `IA32_PERF_CTL` | thread |
//! | 0x1a0 | `IA32_MISC_ENABLE` | thread |
//! | 0x1ad, 0x1ae | `MSR_TURBO_RATIO_LIMIT`, `MSR_TURBO_RATIO_LIMIT_CORES`, read-only | package |
//! | 0x648 to 0x64c | `MSR_CONFIG_TDP_*`, `MSR_TURBO_ACTIVATION_RATIO` | package |
//!
//! AMD (PPR for family 19h): 0xc0010061 to 0xc001006b, the P-states. `HWCR` (0xc0010015) stays KVM's.
//!
//! Nothing here changes how fast the guest runs: a request for a frequency reads back, and the status
//! says it was granted within the limits, of which one can change while the guest runs.

mod amd;
mod config;
mod intel;
#[cfg(test)]
mod tests;

use msr_filter::MsrRange;

use self::amd::Amd;
pub use self::config::{Config, Turbo};
use self::intel::Intel;
use crate::{
    CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice,
    RestoreError, Syscall,
};

/// The device.
#[derive(Debug)]
pub struct Platform {
    name: String,
    vendor: Vendor,
}

#[derive(Debug)]
enum Vendor {
    Intel(Intel),
    Amd(Amd),
}

impl Model for Platform {
    const TYPE: &'static str = "platform";
    const SUMMARY: &'static str =
        "base and turbo frequencies, P-states, core and thread count, IA32_MISC_ENABLE";
    const SYSCALLS: &'static [Syscall] = &[Syscall::KVM_GET_MSRS, Syscall::KVM_SET_MSRS];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        config.check_min()?;
        let vendor = match context.cpu.vendor {
            CpuVendor::Intel => Vendor::Intel(Intel::new(&config, &context.topology)?),
            CpuVendor::Amd => Vendor::Amd(Amd::new(&config, &context.topology)?),
        };
        Ok(Self { name, vendor })
    }

    fn apply(&self, config: Config, _: &[&str], _: &DeviceContext) -> Result<(), String> {
        match &self.vendor {
            Vendor::Intel(intel) => intel.set_limit(&config),
            Vendor::Amd(amd) => amd.set_limit(&config),
        }
    }
}

impl MsrDevice for Platform {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        match &self.vendor {
            Vendor::Intel(intel) => intel.claims(),
            Vendor::Amd(amd) => amd.claims(),
        }
    }

    fn leaves_to_kvm(&self, index: u32) -> bool {
        match &self.vendor {
            Vendor::Intel(intel) => intel.leaves_to_kvm(index),
            Vendor::Amd(_) => false,
        }
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        match &self.vendor {
            Vendor::Intel(intel) => intel.read(access),
            Vendor::Amd(amd) => amd.read(access),
        }
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        match &self.vendor {
            Vendor::Intel(intel) => intel.write(access, value),
            Vendor::Amd(amd) => amd.write(access, value),
        }
    }

    fn save(&self) -> Option<DeviceState> {
        Some(match &self.vendor {
            Vendor::Intel(intel) => intel.save(),
            Vendor::Amd(amd) => amd.save(),
        })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        match &self.vendor {
            Vendor::Intel(intel) => intel.restore(state),
            Vendor::Amd(amd) => amd.restore(state),
        }
    }
}
