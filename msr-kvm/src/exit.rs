//! One exit for an MSR access, from `kvm_run` to the bus and back.

use kvm_bindings::kvm_run;
use kvm_ioctls::{MsrExitReason, ReadMsrExit, WriteMsrExit};
use msr_bus::{Access, ExitReason, GeneralProtection, MsrAccess, MsrBus, VcpuContext};

/// What an MSR exit says, copied out of `kvm_run` so that the vCPU is free for what a device asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrExit {
    /// READ for RDMSR, WRITE for WRMSR.
    pub kind: Access,
    /// The MSR.
    pub index: u32,
    /// Why KVM asks.
    pub reason: ExitReason,
    /// The value of a WRMSR; 0 for an RDMSR.
    pub value: u64,
}

impl From<ReadMsrExit<'_>> for MsrExit {
    fn from(exit: ReadMsrExit<'_>) -> Self {
        Self {
            kind: Access::READ,
            index: exit.index,
            reason: reason(exit.reason),
            value: 0,
        }
    }
}

impl From<WriteMsrExit<'_>> for MsrExit {
    fn from(exit: WriteMsrExit<'_>) -> Self {
        Self {
            kind: Access::WRITE,
            index: exit.index,
            reason: reason(exit.reason),
            value: exit.data,
        }
    }
}

/// KVM gives exactly one of the three reasons; it would not have exited for one it was not asked to.
fn reason(reason: MsrExitReason) -> ExitReason {
    if reason.contains(MsrExitReason::Filter) {
        ExitReason::Filter
    } else if reason.contains(MsrExitReason::Unknown) {
        ExitReason::Unknown
    } else {
        ExitReason::Invalid
    }
}

impl MsrExit {
    /// Asks the bus. The value is what a read gives, and 0 for a write.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] where the guest is to get #GP.
    #[inline]
    pub fn answer(self, bus: &MsrBus, cpu: &dyn VcpuContext) -> Result<u64, GeneralProtection> {
        let access = MsrAccess {
            index: self.index,
            reason: self.reason,
            cpu,
        };
        if self.kind == Access::READ {
            bus.read(&access)
        } else {
            bus.write(&access, self.value).map(|()| 0)
        }
    }
}

/// Leaves the answer where the next KVM_RUN finds it (Documentation/virt/kvm/api.rst, "KVM_EXIT_X86_RDMSR,
/// KVM_EXIT_X86_WRMSR"): the data of a read, or an error that becomes #GP.
///
/// Only right while the last exit was an MSR exit; after any other the next KVM_RUN would misread it.
#[inline]
pub fn complete(run: &mut kvm_run, answer: Result<u64, GeneralProtection>) {
    // SAFETY: `msr` is plain integers, for which every bit pattern is valid, and lies within `kvm_run`.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    match answer {
        Ok(data) => {
            msr.data = data;
            msr.error = 0;
        }
        Err(GeneralProtection) => msr.error = 1,
    }
}
