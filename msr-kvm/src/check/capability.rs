//! The capabilities of KVM that the VMM builds on.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Whether the VMM can do without a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No guest runs without it.
    Required,
    /// Some feature is missing without it.
    Useful,
}

/// A capability, and whether this KVM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name in Documentation/virt/kvm/api.rst; for an exit reason, the name of its bit.
    pub name: &'static str,
    /// What the VMM uses it for.
    pub purpose: &'static str,
    /// Whether the VMM can do without.
    pub need: Need,
    /// Whether this KVM has it.
    pub present: bool,
}

use Need::{Required, Useful};

const CAPABILITIES: &[(Cap, &str, Need, &str)] = &[
    (
        Cap::UserMemory,
        "KVM_CAP_USER_MEMORY",
        Required,
        "guest memory",
    ),
    (
        Cap::SetTssAddr,
        "KVM_CAP_SET_TSS_ADDR",
        Required,
        "real mode on Intel",
    ),
    (
        Cap::SetIdentityMapAddr,
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        Required,
        "real mode on Intel",
    ),
    (
        Cap::ExtCpuid,
        "KVM_CAP_EXT_CPUID",
        Required,
        "the CPUID the guest sees",
    ),
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        Required,
        "interrupt controllers in the kernel",
    ),
    (
        Cap::Pit2,
        "KVM_CAP_PIT2",
        Required,
        "the timer (PIT) in the kernel",
    ),
    (
        Cap::Irqfd,
        "KVM_CAP_IRQFD",
        Required,
        "interrupts from devices",
    ),
    (
        Cap::Ioeventfd,
        "KVM_CAP_IOEVENTFD",
        Required,
        "notifications to virtio devices",
    ),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        Required,
        "stopping vCPUs",
    ),
    (
        Cap::EnableCapVm,
        "KVM_CAP_ENABLE_CAP_VM",
        Required,
        "enabling MSR exits",
    ),
    (
        Cap::X86UserSpaceMsr,
        "KVM_CAP_X86_USER_SPACE_MSR",
        Required,
        "MSR exits (Linux 5.10)",
    ),
    (
        Cap::X86MsrFilter,
        "KVM_CAP_X86_MSR_FILTER",
        Required,
        "the MSR filter (Linux 5.10)",
    ),
    (
        Cap::SyncRegs,
        "KVM_CAP_SYNC_REGS",
        Useful,
        "the guest's RIP in traces at no cost",
    ),
    (
        Cap::InternalErrorData,
        "KVM_CAP_INTERNAL_ERROR_DATA",
        Useful,
        "details of KVM's internal errors",
    ),
    (
        Cap::GetTscKhz,
        "KVM_CAP_GET_TSC_KHZ",
        Useful,
        "telling the guest its TSC frequency",
    ),
    (
        Cap::TscControl,
        "KVM_CAP_TSC_CONTROL",
        Useful,
        "choosing the guest's TSC frequency",
    ),
    (
        Cap::TscDeadlineTimer,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        Useful,
        "the APIC timer's TSC-deadline mode",
    ),
    (
        Cap::X2ApicApi,
        "KVM_CAP_X2APIC_API",
        Useful,
        "APIC ids above 254",
    ),
];

const REASONS: [(u32, &str, &str); 3] = [
    (
        KVM_MSR_EXIT_REASON_FILTER,
        "KVM_MSR_EXIT_REASON_FILTER",
        "exits for MSRs the filter denies",
    ),
    (
        KVM_MSR_EXIT_REASON_UNKNOWN,
        "KVM_MSR_EXIT_REASON_UNKNOWN",
        "exits for MSRs KVM does not know",
    ),
    (
        KVM_MSR_EXIT_REASON_INVAL,
        "KVM_MSR_EXIT_REASON_INVAL",
        "exits for accesses KVM rejects",
    ),
];

/// Asks for every capability.
pub(super) fn capabilities(kvm: &Kvm) -> Vec<Capability> {
    CAPABILITIES
        .iter()
        .map(|&(cap, name, need, purpose)| Capability {
            name,
            purpose,
            need,
            present: kvm.check_extension(cap),
        })
        .collect()
}

/// Tries the exit reasons of `KVM_CAP_X86_USER_SPACE_MSR`, one by one on a VM that is not used otherwise:
/// KVM does not tell its mask, but refuses bits that are not in it.
pub(super) fn exit_reasons(vm: &VmFd) -> Vec<Capability> {
    REASONS
        .iter()
        .map(|&(reason, name, purpose)| Capability {
            name,
            purpose,
            need: Required,
            present: enable_msr_exits(vm, reason).is_ok(),
        })
        .collect()
}

/// Enables MSR exits for a mask of `KVM_MSR_EXIT_REASON_*`.
pub(super) fn enable_msr_exits(vm: &VmFd, reasons: u32) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    cap.args[0] = u64::from(reasons);
    vm.enable_cap(&cap)
}
