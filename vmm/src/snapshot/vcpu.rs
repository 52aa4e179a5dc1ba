//! A vCPU's state, but for its CPUID.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use msr_kvm::state::{MsrState, MsrStatePlan};
use serde::{Deserialize, Serialize};

use super::error::{RestoreError, SnapshotError};

/// What KVM keeps of a vCPU.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    // Without the extensions that a process has to ask the kernel for (AMX), which this one does not, 4 KiB hold
    // everything that XSAVE saves (KVM_GET_XSAVE).
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    pub(super) msrs: MsrState,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Saves a vCPU that stands still, its last exit completed. The order is that of the fields: the multiprocessing state
    /// first, because asking for it may take in an INIT or SIPI that is pending; MSRs before the local APIC, as
    /// [`msr_kvm::state`] wants it.
    pub(super) fn save(fd: &VcpuFd, plan: &MsrStatePlan) -> Result<Self, SnapshotError> {
        let kvm = SnapshotError::kvm;
        Ok(Self {
            mp_state: fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            debug_regs: fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            msrs: plan.save(fd)?,
            lapic: fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            events: fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Gives a new vCPU, which has its CPUID, this state.
    pub(super) fn restore(
        &self,
        number: usize,
        fd: &VcpuFd,
        plan: &MsrStatePlan,
    ) -> Result<(), RestoreError> {
        let kvm = RestoreError::kvm;
        // The APIC's base and mode are in the sregs.
        fd.set_sregs(&self.sregs).map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        let restored = plan
            .restore(fd, &self.msrs)
            .map_err(|source| RestoreError::Msrs {
                vcpu: number,
                source,
            })?;
        for msr in restored.tolerated {
            log::warn!(
                "vCPU {number}: MSR {:#x} is not restored: {}",
                msr.index,
                msr.because
            );
        }
        fd.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        fd.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        // SAFETY: KVM reads more than the struct only where the process has asked for extensions that need more.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_mp_state(self.mp_state)
            .map_err(kvm("KVM_SET_MP_STATE"))?;
        fd.set_vcpu_events(&self.events)
            .map_err(kvm("KVM_SET_VCPU_EVENTS"))?;
        // So that the guest does not take the time that it stood still for a lockup. A guest without kvmclock has nothing
        // to tell it by.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }
}
