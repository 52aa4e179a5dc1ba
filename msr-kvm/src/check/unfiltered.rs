//! Which accesses this KVM answers itself although its filter denies them.
//!
//! By KVM's documentation the x2APIC's registers are the only ones that no filter reaches (Documentation/virt/kvm/api.rst,
//! `KVM_X86_SET_MSR_FILTER`). Two kinds of KVM do otherwise. Linux has a fast path for some WRMSRs right after the VM exit, which
//! in some versions asks no filter (arch/x86/kvm/x86.c, `handle_fastpath_set_msr_irqoff`). And a hypervisor between the
//! guest and KVM may answer MSRs before KVM sees them, as those for protected guests do. So a guest tries: it accesses MSRs that every KVM
//! knows and the filter denies, and each access must come to userspace.

use std::fmt;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use msr_filter::{Access, FilterSpec, MsrRange, Rule, TSC_DEADLINE, Verdict, names::name};

use super::error::{self, Exit, TrialError};
use super::guest::{TinyVm, ioctl};
use super::programs;

/// An access that no filter rule and no device has any effect on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfiltered {
    /// The MSR.
    pub index: u32,
    /// The kind, one of the two.
    pub access: Access,
}

/// What is tried: MSRs that every x86 CPU in long mode has and every KVM knows, whoever made the CPU: the time-stamp counter, the APIC
/// base, `IA32_SYSENTER_CS`, `IA32_PAT`, `IA32_EFER`, `IA32_STAR`. Of them only those are written that take a 0.
const TRIED: [(u32, Access); 10] = [
    (0x10, Access::READ),
    (0x1b, Access::READ),
    (0x174, Access::READ),
    (0x277, Access::READ),
    (0xc000_0080, Access::READ),
    (0xc000_0081, Access::READ),
    (0x10, Access::WRITE),
    (0x174, Access::WRITE),
    (TSC_DEADLINE, Access::WRITE),
    (0xc000_0081, Access::WRITE),
];

impl fmt::Display for Unfiltered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.access == Access::READ {
            "RDMSR of "
        } else {
            "WRMSR of "
        })?;
        match name(self.index) {
            Some(name) => write!(f, "{name} ({:#x})", self.index),
            None => write!(f, "{:#x}", self.index),
        }
    }
}

/// Tries every access, each on a vCPU of its own. `expired` says after a signal that it took too long.
pub(super) fn unfiltered(
    kvm: &Kvm,
    expired: &dyn Fn() -> bool,
) -> Result<Vec<Unfiltered>, TrialError> {
    let deny = |&(index, access): &(u32, Access)| {
        Rule::new(MsrRange::single(index), access, Verdict::Deny)
    };
    let filter = FilterSpec {
        default: Verdict::Allow,
        rules: TRIED.iter().map(deny).collect(),
    };
    // The fast path is there for local APICs in the kernel.
    let vm = TinyVm::denying(kvm, filter)?.with_irq_chip()?;
    let mut unfiltered = Vec::new();
    for (id, (index, access)) in (0..).zip(TRIED) {
        let mut vcpu = vm.vcpu(id, programs::accessing(access), index)?;
        if !asks(&mut vcpu, expired)? {
            unfiltered.push(Unfiltered { index, access });
        }
    }
    Ok(unfiltered)
}

/// Whether userspace is asked before the guest says that it is done.
fn asks(vcpu: &mut VcpuFd, expired: &dyn Fn() -> bool) -> Result<bool, TrialError> {
    loop {
        let exit = match vcpu.run() {
            Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => return Ok(true),
            Ok(VcpuExit::IoOut(programs::DONE_PORT, _)) => return Ok(false),
            Ok(exit) => Exit::from(exit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if expired() {
                    return Err(TrialError::TimedOut);
                }
                continue;
            }
            Err(error) => return Err(ioctl("KVM_RUN")(error)),
        };
        return Err(error::of_exit(exit, vcpu));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_told_in_the_words_of_the_manual() {
        let write = Unfiltered {
            index: TSC_DEADLINE,
            access: Access::WRITE,
        };
        assert_eq!(write.to_string(), "WRMSR of IA32_TSC_DEADLINE (0x6e0)");
        let read = Unfiltered {
            index: 0x277,
            access: Access::READ,
        };
        assert_eq!(read.to_string(), "RDMSR of IA32_PAT (0x277)");
    }
}
