//! MSRs whose accesses leave no trace, and why.

use msr_filter::{Access, FilterSpec, MsrRange, Verdict};
use msr_trace::NotSeen;

/// MSRs that KVM lets a guest use without an exit, on one vendor's processors or both, unless the filter denies
/// them: a first and a last index (arch/x86/kvm/svm/svm.c, `direct_access_msrs` and `set_msr_interception`; arch/x86/kvm/vmx/vmx.c,
/// `vmx_disable_intercept_for_msr` and `vmx_possible_passthrough_msrs`).
pub const UNINTERCEPTED: [(u32, u32, &str); 9] = [
    (0x10, 0x10, "VMX: RDMSR of the TSC is not intercepted"),
    (
        0x48,
        0x49,
        "speculation control is not intercepted once the guest uses it",
    ),
    (0x10b, 0x10b, "IA32_FLUSH_CMD is not intercepted"),
    (0x174, 0x176, "SYSENTER's registers are not intercepted"),
    (
        0x1c4,
        0x1c5,
        "VMX: XFD's registers are not intercepted once the guest uses them",
    ),
    (
        0x3f8,
        0x3fe,
        "VMX: residency counters are not intercepted where the guest controls C-states",
    ),
    (
        0x6a0,
        0x6a8,
        "CET's registers are not intercepted where the guest has CET",
    ),
    (
        0xc000_0081,
        0xc000_0084,
        "SYSCALL's registers are not intercepted",
    ),
    (
        0xc000_0100,
        0xc000_0103,
        "segment bases are not intercepted",
    ),
];

/// What a trace of exits to userspace alone does not hold.
pub fn not_seen_without_help() -> NotSeen {
    NotSeen {
        msrs: None,
        why: "KVM answers it without an exit to userspace; --observe and --trace-kernel show it"
            .to_owned(),
    }
}

/// What KVM's tracepoints do not show under this filter; `None` for a VM that another VMM runs.
pub fn not_seen_by_tracepoints(spec: Option<&FilterSpec>) -> Vec<NotSeen> {
    let allowed = |index| {
        spec.is_none_or(|spec| {
            [Access::READ, Access::WRITE]
                .iter()
                .any(|access| spec.verdict(index, *access) == Verdict::Allow)
        })
    };
    let lines = UNINTERCEPTED.iter().flat_map(|(first, last, why)| {
        (*first..=*last)
            .filter(|index| allowed(*index))
            .map(|index| NotSeen {
                msrs: Some(MsrRange::single(index)),
                why: (*why).to_owned(),
            })
    });
    lines.collect()
}
