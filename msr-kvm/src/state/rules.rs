//! What is known of single MSRs: which the host's list omits, which come before which, and which may be lost.

/// `IA32_TSC` (Intel SDM, volume 4, table 2-2, as all that follow unless said).
pub(super) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_MTRRCAP`: the number of variable ranges in 7:0.
pub(super) const MTRR_CAP: u32 = 0xfe;
/// `IA32_MCG_CAP`: the number of machine-check banks in 7:0.
pub(super) const MCG_CAP: u32 = 0x179;

const TSC_ADJUST: u32 = 0x3b;
const FEATURE_CONTROL: u32 = 0x3a;
const UCODE_REV: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const ARCH_CAPABILITIES: u32 = 0x10a;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CTL: u32 = 0x1d9;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const PERF_CAPABILITIES: u32 = 0x345;
const FIXED_CTR_CTRL: u32 = 0x38d;
const PERF_GLOBAL_CTRL: u32 = 0x38f;
const XSS: u32 = 0xda0;
const MTRR_FIX_64K: u32 = 0x250;
const MTRR_FIX_16K: [u32; 2] = [0x258, 0x259];
const MTRR_FIX_4K: std::ops::RangeInclusive<u32> = 0x268..=0x26f;
const MTRR_PHYS_BASE_0: u32 = 0x200;
const MC0_CTL: u32 = 0x400;
const MC0_CTL2: u32 = 0x280;
/// The most machine-check banks that the register space has room for (0x400-0x47f).
const MOST_BANKS: u32 = 32;
/// The most variable ranges (0x200-0x213).
const MOST_RANGES: u32 = 10;

/// KVM's own MSRs (Documentation/virt/kvm/x86/msr.rst).
pub(super) const KVM_MSRS: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4dff;
/// `MSR_KVM_ASYNC_PF_EN`.
const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;

/// Hyper-V's synthetic MSRs (Hypervisor Top-Level Functional Specification, appendix F).
pub(super) const HYPERV_MSRS: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;
/// `HV_X64_MSR_GUEST_OS_ID`, without which the hypercall page cannot be switched on.
const HYPERV_GUEST_OS_ID: u32 = 0x4000_0000;
/// Registers that are commands or clocks: `RESET`, `TIME_REF_COUNT`, `EOI`, `ICR`, `EOM`. Writing one back would do something.
const HYPERV_COMMANDS: [u32; 5] = [
    0x4000_0003,
    0x4000_0020,
    0x4000_0070,
    0x4000_0071,
    0x4000_0084,
];

/// What `KVM_GET_MSR_INDEX_LIST` omits although it has state, for a vCPU with as many variable MTRR ranges and
/// machine-check banks.
pub(super) fn omitted(ranges: u32, banks: u32) -> Vec<u32> {
    let mut indices = vec![XSS, MTRR_CAP, MTRR_DEF_TYPE, MTRR_FIX_64K, MCG_CAP];
    indices.extend(MTRR_FIX_16K);
    indices.extend(MTRR_FIX_4K);
    indices.extend((0..2 * ranges.min(MOST_RANGES)).map(|n| MTRR_PHYS_BASE_0 + n));
    indices.extend((0..4 * banks.min(MOST_BANKS)).map(|n| MC0_CTL + n));
    indices.extend((0..banks.min(MOST_BANKS)).map(|n| MC0_CTL2 + n));
    indices.extend(KVM_MSRS);
    indices
}

/// Whether an MSR is never saved: writing back what it reads as would be a command.
pub(super) fn is_command(index: u32) -> bool {
    HYPERV_COMMANDS.contains(&index)
}

/// When an MSR is restored. Within a stage the order is that of the indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// What others are checked against: `MSR_PLATFORM_INFO` has the bit that `MSR_MISC_FEATURES_ENABLES` needs,
    /// `IA32_FEATURE_CONTROL` locks VMX, and so on.
    Gate,
    /// The TSC, which a deadline is compared with and kvmclock is computed from.
    Clock,
    /// The rest.
    Plain,
    /// What switches something on: counters, MTRRs, asynchronous page faults.
    Enable,
    /// `IA32_TSC_DEADLINE`: it starts the timer.
    Deadline,
}

impl Stage {
    pub(super) fn of(index: u32) -> Self {
        match index {
            PLATFORM_INFO | ARCH_CAPABILITIES | FEATURE_CONTROL | UCODE_REV | MISC_ENABLE
            | PERF_CAPABILITIES | MTRR_CAP | MCG_CAP | HYPERV_GUEST_OS_ID => Self::Gate,
            // The capabilities of VMX.
            0x480..=0x491 => Self::Gate,
            TSC | TSC_ADJUST => Self::Clock,
            MTRR_DEF_TYPE | FIXED_CTR_CTRL | PERF_GLOBAL_CTRL | DEBUG_CTL | KVM_ASYNC_PF_EN => {
                Self::Enable
            }
            TSC_DEADLINE => Self::Deadline,
            _ => Self::Plain,
        }
    }
}

/// An MSR whose loss no guest notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerated {
    /// The MSR.
    pub index: u32,
    /// Why it may be lost.
    pub because: &'static str,
}

/// The MSRs that KVM may refuse to restore without an error. An MSR that the vCPU has with the right value needs no
/// place here.
pub const TOLERATED: &[Tolerated] = &[
    Tolerated {
        index: 0x34,
        because: "MSR_SMI_COUNT counts System Management Interrupts, and a guest of KVM without firmware gets none",
    },
    Tolerated {
        index: 0x4b56_4d07,
        because: "MSR_KVM_ASYNC_PF_ACK acknowledges an event when it is written, and keeps nothing",
    },
];

/// The entry of [`TOLERATED`] for an MSR.
pub(super) fn tolerated(index: u32) -> Option<&'static Tolerated> {
    TOLERATED.iter().find(|tolerated| tolerated.index == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_last_and_what_gates_others_first() {
        let mut order = [TSC_DEADLINE, 0xc000_0082, 0x38f, 0x140, TSC, PLATFORM_INFO];
        order.sort_by_key(|index| (Stage::of(*index), *index));
        assert_eq!(
            order,
            [PLATFORM_INFO, TSC, 0x140, 0xc000_0082, 0x38f, TSC_DEADLINE]
        );
    }

    #[test]
    fn ranges_and_banks_are_as_many_as_the_vcpu_has_and_never_more_than_there_is_room_for() {
        let some = omitted(8, 10);
        for (index, there) in [
            (0x20f, true),
            (0x210, false),
            (0x427, true),
            (0x428, false),
            (0x289, true),
            (0x28a, false),
            (0x4b56_4d00, true),
            (0x4b56_4dff, true),
        ] {
            assert_eq!(some.contains(&index), there, "{index:#x}");
        }
        let most = omitted(u32::MAX, u32::MAX);
        assert!(most.contains(&0x47f) && !most.contains(&0x480));
        assert!(most.contains(&0x213) && !most.contains(&0x214));
    }
}
