//! One exit for an MSR access, from `kvm_run` to the bus and back.

use kvm_bindings::{
    KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_run,
};
use msr_bus::{Access, ExitReason, GeneralProtection, MsrAccess, MsrBus, VcpuContext};

/// What an MSR exit says, copied out of `kvm_run` so that the vCPU is free for what a device asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// An MSR exit with the answer that userspace gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What KVM asked.
    pub exit: MsrExit,
    /// The value read (0 for a write), or #GP.
    pub answer: Result<u64, GeneralProtection>,
}

impl MsrExit {
    /// The exit that `run` holds, or `None` where the last exit was not for an MSR access
    /// (Documentation/virt/kvm/api.rst, "KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR").
    #[inline]
    pub fn from_run(run: &kvm_run) -> Option<Self> {
        let kind = match run.exit_reason {
            KVM_EXIT_X86_RDMSR => Access::READ,
            KVM_EXIT_X86_WRMSR => Access::WRITE,
            _ => return None,
        };
        // SAFETY: `msr` is plain integers, for which every bit pattern is valid, and lies within `kvm_run`; for
        // these two exit reasons it is what KVM filled in.
        let msr = unsafe { run.__bindgen_anon_1.msr };
        Some(Self {
            kind,
            index: msr.index,
            reason: reason(msr.reason),
            value: if kind == Access::WRITE { msr.data } else { 0 },
        })
    }

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

/// KVM gives exactly one of the three reasons; it would not have exited for one it was not asked to.
fn reason(reason: u32) -> ExitReason {
    if reason & KVM_MSR_EXIT_REASON_FILTER != 0 {
        ExitReason::Filter
    } else if reason & KVM_MSR_EXIT_REASON_UNKNOWN != 0 {
        ExitReason::Unknown
    } else {
        ExitReason::Invalid
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

#[cfg(test)]
mod tests {
    use kvm_bindings::{
        KVM_EXIT_HLT, KVM_MSR_EXIT_REASON_INVAL, kvm_run__bindgen_ty_1__bindgen_ty_23 as Msr,
    };

    use super::*;

    fn run(exit_reason: u32, reason: u32) -> kvm_run {
        let mut run = kvm_run {
            exit_reason,
            ..Default::default()
        };
        run.__bindgen_anon_1.msr = Msr {
            index: 0x611,
            data: 7,
            reason,
            ..Default::default()
        };
        run
    }

    #[test]
    fn an_exit_is_read_as_kvm_wrote_it() {
        let exit = |exit_reason, reason| MsrExit::from_run(&run(exit_reason, reason));
        let expected = |kind, reason, value| {
            Some(MsrExit {
                kind,
                index: 0x611,
                reason,
                value,
            })
        };
        assert_eq!(
            exit(KVM_EXIT_X86_RDMSR, KVM_MSR_EXIT_REASON_FILTER),
            expected(Access::READ, ExitReason::Filter, 0)
        );
        assert_eq!(
            exit(KVM_EXIT_X86_WRMSR, KVM_MSR_EXIT_REASON_UNKNOWN),
            expected(Access::WRITE, ExitReason::Unknown, 7)
        );
        assert_eq!(
            exit(KVM_EXIT_X86_WRMSR, KVM_MSR_EXIT_REASON_INVAL),
            expected(Access::WRITE, ExitReason::Invalid, 7)
        );
        assert_eq!(exit(KVM_EXIT_HLT, KVM_MSR_EXIT_REASON_FILTER), None);
    }

    #[test]
    fn an_answer_is_left_where_kvm_reads_it() {
        let mut run = run(KVM_EXIT_X86_RDMSR, KVM_MSR_EXIT_REASON_FILTER);
        complete(&mut run, Err(GeneralProtection));
        // SAFETY: plain integers, written above.
        let msr = unsafe { run.__bindgen_anon_1.msr };
        assert_eq!((msr.error, msr.data), (1, 7));
        complete(&mut run, Ok(9));
        // SAFETY: as above.
        let msr = unsafe { run.__bindgen_anon_1.msr };
        assert_eq!((msr.error, msr.data), (0, 9));
    }
}
