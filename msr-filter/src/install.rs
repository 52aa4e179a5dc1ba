//! Setting a filter on a VM, by kvm-ioctls.

use alloc::vec::Vec;

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::{Access, FilterRange, MsrFilter, Verdict};

/// KVM refused a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KVM_X86_SET_MSR_FILTER failed: {0}")]
pub struct InstallError(pub kvm_ioctls::Error);

impl MsrFilter {
    /// Makes this the VM's filter, by `KVM_X86_SET_MSR_FILTER`. An access that races with the call
    /// sees either the old or the new filter, never a mix.
    ///
    /// # Errors
    ///
    /// [`InstallError`] where the kernel has no MSR filter (`KVM_CAP_X86_MSR_FILTER`, Linux 5.10) or
    /// no memory for it.
    pub fn install(&self, vm: &VmFd) -> Result<(), InstallError> {
        let bitmaps: Vec<Vec<u8>> = self
            .ranges()
            .iter()
            .map(FilterRange::bitmap_bytes)
            .collect();
        let ranges: Vec<MsrFilterRange<'_>> = self
            .ranges()
            .iter()
            .zip(&bitmaps)
            .map(|(range, bitmap)| MsrFilterRange {
                flags: flags(range.access()),
                base: range.span().first(),
                msr_count: range.span().len() as u32,
                bitmap,
            })
            .collect();
        let default = match self.default_verdict() {
            Verdict::Allow => MsrFilterDefaultAction::ALLOW,
            Verdict::Deny => MsrFilterDefaultAction::DENY,
        };
        vm.set_msr_filter(default, &ranges).map_err(InstallError)
    }
}

fn flags(access: Access) -> MsrFilterRangeFlags {
    let mut flags = MsrFilterRangeFlags::empty();
    flags.set(MsrFilterRangeFlags::READ, access.contains(Access::READ));
    flags.set(MsrFilterRangeFlags::WRITE, access.contains(Access::WRITE));
    flags
}
