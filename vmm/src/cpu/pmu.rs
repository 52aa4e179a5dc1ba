//! Whether KVM has performance counters for its guests.
//!
//! KVM has none where the host has none or `kvm.enable_pmu=0`. An Intel guest then finds no counters in CPUID. AMD's four legacy
//! counters have no CPUID bit, and such a KVM answers their MSRs with 0 and drops writes (arch/x86/kvm/x86.c,
//! `kvm_get_msr_common`): a guest that asked for counters would count nothing and not know.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use msr_bus::CpuVendor;

/// The first counter's register, which counts nothing while its event select is 0 (AMD APM, volume 2, 13.2.1, `PerfCtr0`).
const AMD_COUNTER: u32 = 0xc001_0004;
/// Any value of at most 48 bits.
const TRIED: u64 = 0x1234_5678;
/// Where Intel's CPUID counts counters; EAX's low byte is the version, 0 for none.
const INTEL_LEAF: u32 = 0xa;

/// `cpu.pmu = true`, and this host's KVM has no performance counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host's KVM has no performance counters for guests: the host has none, or kvm.enable_pmu is off; without the key a \
     guest runs with what the CPU model has"
)]
pub struct NoPmu;

/// Finds out whether KVM has counters for this vCPU, which has its CPUID and has not run.
///
/// # Errors
///
/// [`NoPmu`] where it has none.
pub(crate) fn require(vendor: CpuVendor, supported: &CpuId, vcpu: &VcpuFd) -> Result<(), NoPmu> {
    let has = match vendor {
        CpuVendor::Intel => intel_version(supported) != 0,
        CpuVendor::Amd => set(vcpu, TRIED) && get(vcpu) == Some(TRIED) && set(vcpu, 0),
    };
    if has { Ok(()) } else { Err(NoPmu) }
}

fn intel_version(supported: &CpuId) -> u32 {
    let mut leaves = supported.as_slice().iter();
    leaves
        .find(|leaf| leaf.function == INTEL_LEAF)
        .map_or(0, |leaf| leaf.eax & 0xff)
}

fn entry(data: u64) -> Option<Msrs> {
    let entry = kvm_msr_entry {
        index: AMD_COUNTER,
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry]).ok()
}

fn set(vcpu: &VcpuFd, value: u64) -> bool {
    entry(value).is_some_and(|msrs| vcpu.set_msrs(&msrs) == Ok(1))
}

fn get(vcpu: &VcpuFd) -> Option<u64> {
    let mut msrs = entry(0)?;
    let count = vcpu.get_msrs(&mut msrs).ok()?;
    (count == 1).then(|| msrs.as_slice()[0].data)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn a_version_of_0_or_no_leaf_is_no_pmu() {
        let version = |function, eax| {
            let leaf = kvm_cpuid_entry2 {
                function,
                eax,
                ..kvm_cpuid_entry2::default()
            };
            intel_version(&CpuId::from_entries(&[leaf]).unwrap())
        };
        assert_eq!(version(0xa, 0x0730_0402), 2);
        assert_eq!(version(0xa, 0x0730_0400), 0);
        assert_eq!(version(9, 2), 0);
    }
}
