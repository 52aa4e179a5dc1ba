//! The in-kernel MSRs that a vCPU has at boot other than KVM's reset leaves them: what firmware would have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE` (Intel SDM, volume 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// There are no branch trace store and no precise event based sampling, as KVM has it at reset.
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;

/// `IA32_MTRR_DEF_TYPE` (Intel SDM, volume 3, "IA32_MTRR_DEF_TYPE MSR"). Without it a guest takes all of its memory to be
/// uncacheable.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// `IA32_PAT` (Intel SDM, volume 3, "IA32_PAT MSR") with its value at power-up: WB, WT, UC-, UC, twice.
const PAT: u32 = 0x277;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// What is set, in the order in which KVM is given it.
const BOOT_MSRS: [(u32, u64); 3] = [
    (
        MISC_ENABLE,
        MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE,
    ),
    (MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    (PAT, PAT_RESET),
];

/// Why a vCPU's MSRs are not set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootMsrsError {
    /// KVM refuses one.
    #[error("KVM does not take MSR {index:#x} = {value:#x}")]
    Refused {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
    },
    /// The ioctl fails.
    #[error("KVM_SET_MSRS failed: {0}")]
    Ioctl(kvm_ioctls::Error),
}

/// Sets the boot MSRs of `vcpu`, after its CPUID, which KVM consults for some of them.
///
/// # Errors
///
/// [`BootMsrsError`], with the first MSR that KVM refuses.
pub fn set(vcpu: &VcpuFd) -> Result<(), BootMsrsError> {
    let entries = BOOT_MSRS.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    // It fails for more entries than KVM's limit only, and these are far fewer.
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| BootMsrsError::Ioctl(kvm_ioctls::Error::new(libc::E2BIG)))?;
    let count = vcpu.set_msrs(&msrs).map_err(BootMsrsError::Ioctl)?;
    // KVM stops at the first that it does not take, and gives how many it took.
    match BOOT_MSRS.get(count) {
        None => Ok(()),
        Some(&(index, value)) => Err(BootMsrsError::Refused { index, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_each_msr_is_set_once() {
        let mut indices = BOOT_MSRS.map(|(index, _)| index);
        indices.sort_unstable();
        assert_eq!(indices, [0x1a0, 0x277, 0x2ff]);
        assert!(BOOT_MSRS.contains(&(0x2ff, 0x806)));
    }
}
