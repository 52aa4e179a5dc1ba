//! MSRs in portions that KVM takes.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// The most MSRs of one call. `KVM_GET_MSRS` and `KVM_SET_MSRS` answer E2BIG to 256 of them already (`msr_io` in
/// arch/x86/kvm/x86.c), unlike the limit that the headers give.
const MOST: usize = KVM_MAX_MSR_ENTRIES - 1;

/// An ioctl on a vCPU's MSRs that failed as a whole.
#[derive(Debug, thiserror::Error)]
#[error("{ioctl} failed: {source}")]
pub struct MsrIoctlError {
    /// Which one.
    pub ioctl: &'static str,
    /// What KVM said.
    pub source: kvm_ioctls::Error,
}

/// The value of each MSR, or `None` where KVM does not give it.
///
/// # Errors
///
/// [`MsrIoctlError`] where the ioctl fails for another reason than an MSR.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Option<u64>>, MsrIoctlError> {
    let mut values = Vec::with_capacity(indices.len());
    while values.len() < indices.len() {
        let rest = &indices[values.len()..];
        let portion = &rest[..rest.len().min(MOST)];
        let mut msrs = entries(portion.iter().map(|index| (*index, 0)));
        let count = vcpu.get_msrs(&mut msrs).map_err(|source| MsrIoctlError {
            ioctl: "KVM_GET_MSRS",
            source,
        })?;
        let read = msrs.as_slice().iter().take(count);
        values.extend(read.map(|entry| Some(entry.data)));
        // KVM stops at the first that it does not give.
        if count < portion.len() {
            values.push(None);
        }
    }
    Ok(values)
}

/// Sets the MSRs in their order, and gives the place of the first that KVM refuses.
///
/// # Errors
///
/// [`MsrIoctlError`] where the ioctl fails for another reason than an MSR.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<Option<usize>, MsrIoctlError> {
    let mut done = 0;
    for portion in values.chunks(MOST) {
        let msrs = entries(portion.iter().copied());
        let count = vcpu.set_msrs(&msrs).map_err(|source| MsrIoctlError {
            ioctl: "KVM_SET_MSRS",
            source,
        })?;
        done += count;
        if count < portion.len() {
            return Ok(Some(done));
        }
    }
    Ok(None)
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<kvm_msr_entry> = values
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("portions are shorter than KVM_MAX_MSR_ENTRIES")
}
