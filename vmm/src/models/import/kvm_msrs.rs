//! The MSRs that KVM keeps a value of for a guest, which `KVM_SET_MSRS` takes on one host or another.
//!
//! Collected from Linux 5.10 to 6.18, arch/x86/kvm: `msrs_to_save_base`, `msrs_to_save_pmu` and `emulated_msrs_all` in x86.c, and the
//! cases of `kvm_set_msr_common`, `svm_set_msr` and `vmx_set_msr`. Which of them a given host takes depends on its CPU and on the
//! guest's CPUID; the VMM finds out when it sets them.

/// The first and last index of each group, ascending.
const RANGES: &[(u32, u32)] = &[
    // Time-stamp counter; kvmclock's first indices; local APIC.
    (0x10, 0x12),
    (0x1b, 0x1b),
    // SMI count, feature control, TSC adjustment.
    (0x34, 0x34),
    (0x3a, 0x3b),
    (0x48, 0x49),
    (0x79, 0x79),
    // Microcode revision, SGX's key hash, SMBASE.
    (0x8b, 0x8f),
    (0x9e, 0x9e),
    // Performance counters, platform information, UMWAIT.
    (0xc1, 0xc8),
    (0xce, 0xce),
    (0xe1, 0xe1),
    (0xe7, 0xe8),
    (0xfe, 0xfe),
    // Capabilities, cache flush, TSX control, misc features.
    (0x10a, 0x10b),
    (0x122, 0x122),
    (0x140, 0x140),
    (0x174, 0x176),
    // Machine checks; event selects.
    (0x179, 0x17b),
    (0x186, 0x18d),
    (0x198, 0x199),
    (0x1a0, 0x1a0),
    (0x1a6, 0x1a7),
    // Guest FRED and XFD; debug control and last branches.
    (0x1c4, 0x1c5),
    (0x1cc, 0x1d4),
    (0x1d9, 0x1d9),
    (0x1db, 0x1de),
    (0x1fc, 0x1fc),
    // Memory types; corrected machine checks.
    (0x200, 0x20f),
    (0x250, 0x250),
    (0x258, 0x259),
    (0x268, 0x26f),
    (0x277, 0x277),
    (0x280, 0x29f),
    (0x2ff, 0x2ff),
    // Fixed counters, performance capabilities and global control; PEBS.
    (0x309, 0x30c),
    (0x345, 0x345),
    (0x38d, 0x391),
    (0x3f1, 0x3f2),
    // Machine-check banks; VMX; full-width counters; processor trace; debug store.
    (0x400, 0x47f),
    (0x480, 0x493),
    (0x4c1, 0x4c8),
    (0x560, 0x561),
    (0x570, 0x572),
    (0x580, 0x587),
    (0x600, 0x600),
    // Shadow stacks; TSC deadline; bounds; extended supervisor state.
    (0x6a0, 0x6a8),
    (0x6e0, 0x6e0),
    (0xd90, 0xd90),
    (0xda0, 0xda0),
    // Hyper-V's and KVM's own.
    (0x4000_0000, 0x4000_00ff),
    (0x4000_0100, 0x4000_0118),
    (0x4b56_4d00, 0x4b56_4d08),
    // Long mode; segment bases; TSC_AUX and AMD's TSC ratio; AMD's global counter control.
    (0xc000_0080, 0xc000_0084),
    (0xc000_0100, 0xc000_0104),
    (0xc000_0300, 0xc000_0303),
    // AMD: counters, system configuration, hardware configuration, northbridge, patch loader.
    (0xc001_0000, 0xc001_0007),
    (0xc001_0010, 0xc001_0010),
    (0xc001_0015, 0xc001_0015),
    (0xc001_001f, 0xc001_0020),
    (0xc001_0055, 0xc001_0055),
    (0xc001_0058, 0xc001_0058),
    // AMD: SMM, nested virtualization, SSBD, OS-visible workarounds, counters, time-stamp counter.
    (0xc001_0111, 0xc001_0114),
    (0xc001_0117, 0xc001_0117),
    (0xc001_011f, 0xc001_011f),
    (0xc001_0140, 0xc001_0141),
    (0xc001_0200, 0xc001_020b),
    (0xc001_1022, 0xc001_1022),
    (0xc001_1029, 0xc001_102a),
];

/// Whether KVM has the MSR, on some host.
pub(super) fn has(index: u32) -> bool {
    RANGES
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_ascend_and_do_not_touch() {
        for pair in RANGES.windows(2) {
            let [(first, last), (next, _)] = pair else {
                unreachable!("windows of two");
            };
            assert!(
                first <= last && last < next,
                "{first:#x}-{last:#x}, {next:#x}"
            );
        }
    }

    #[test]
    fn what_only_a_processor_has_is_not_among_them() {
        for index in [0x10a, 0xc000_0081, 0xc000_0082, 0x174, 0x8b] {
            assert!(has(index), "{index:#x}");
        }
        for index in [0x17, 0x1ad, 0x611, 0xc001_0299] {
            assert!(!has(index), "{index:#x}");
        }
    }
}
