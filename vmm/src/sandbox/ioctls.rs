//! The ioctls that filters let through, by request number (include/uapi/linux/kvm.h, include/uapi/asm-generic/ioctls.h).

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_dirty_log, kvm_fpu,
    kvm_irq_level, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_filter,
    kvm_msr_list, kvm_msrs, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_sregs2, kvm_translation,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// An ioctl: what the kernel's headers call it, and its number.
pub(super) type Ioctl = (&'static str, u64);

const WRITE: u64 = 1 << 30;
const READ: u64 = 2 << 30;
const KVMIO: u64 = 0xae << 8;

/// `_IO`, `_IOW`, `_IOR` and `_IOWR` of KVM's ioctls: direction, size of the argument, KVM's letter, number.
const fn request(direction: u64, size: usize, number: u64) -> u64 {
    direction | (size as u64) << 16 | KVMIO | number
}

const fn read<T>(number: u64) -> u64 {
    request(READ, size_of::<T>(), number)
}

const fn write<T>(number: u64) -> u64 {
    request(WRITE, size_of::<T>(), number)
}

const fn both<T>(number: u64) -> u64 {
    request(READ | WRITE, size_of::<T>(), number)
}

pub(super) const KVM_RUN: Ioctl = ("KVM_RUN", request(0, 0, 0x80));
pub(super) const KVM_IRQ_LINE: Ioctl = ("KVM_IRQ_LINE", write::<kvm_irq_level>(0x61));
pub(super) const KVM_TRANSLATE: Ioctl = ("KVM_TRANSLATE", both::<kvm_translation>(0x85));
pub(super) const KVM_GET_MSRS: Ioctl = ("KVM_GET_MSRS", both::<kvm_msrs>(0x88));
pub(super) const KVM_SET_MSRS: Ioctl = ("KVM_SET_MSRS", write::<kvm_msrs>(0x89));
pub(super) const KVM_NMI: Ioctl = ("KVM_NMI", request(0, 0, 0x9a));
pub(super) const KVM_SIGNAL_MSI: Ioctl = ("KVM_SIGNAL_MSI", write::<kvm_msi>(0xa5));
pub(super) const KVM_X86_SET_MSR_FILTER: Ioctl =
    ("KVM_X86_SET_MSR_FILTER", write::<kvm_msr_filter>(0xc6));
pub(super) const KVM_SET_USER_MEMORY_REGION: Ioctl = (
    "KVM_SET_USER_MEMORY_REGION",
    write::<kvm_userspace_memory_region>(0x46),
);

/// What a fault's report says of a vCPU.
pub(super) const VCPU_FAULT: [Ioctl; 2] = [
    ("KVM_GET_REGS", read::<kvm_regs>(0x81)),
    ("KVM_GET_SREGS", read::<kvm_sregs>(0x83)),
];

/// The rest of a vCPU's state, read for a snapshot.
pub(super) const VCPU_STATE: [Ioctl; 11] = [
    ("KVM_GET_SREGS2", read::<kvm_sregs2>(0xcc)),
    ("KVM_GET_FPU", read::<kvm_fpu>(0x8c)),
    ("KVM_GET_LAPIC", read::<kvm_lapic_state>(0x8e)),
    ("KVM_GET_MP_STATE", read::<kvm_mp_state>(0x98)),
    ("KVM_GET_VCPU_EVENTS", read::<kvm_vcpu_events>(0x9f)),
    ("KVM_GET_DEBUGREGS", read::<kvm_debugregs>(0xa1)),
    ("KVM_GET_TSC_KHZ", request(0, 0, 0xa3)),
    ("KVM_GET_XSAVE", read::<kvm_xsave>(0xa4)),
    ("KVM_GET_XCRS", read::<kvm_xcrs>(0xa6)),
    ("KVM_KVMCLOCK_CTRL", request(0, 0, 0xad)),
    ("KVM_GET_XSAVE2", read::<kvm_xsave>(0xcf)),
];

/// What else a vCPU's thread does for a snapshot: which MSRs there are, how far its TSC is ahead, and what KVM's clock is at that moment.
pub(super) const VCPU_SAVE: [Ioctl; 6] = [
    ("KVM_CHECK_EXTENSION", request(0, 0, 0x03)),
    ("KVM_GET_MSR_INDEX_LIST", both::<kvm_msr_list>(0x02)),
    VM_STATE[2],
    ("KVM_GET_CPUID2", both::<kvm_cpuid2>(0x91)),
    ("KVM_GET_DEVICE_ATTR", write::<kvm_device_attr>(0xe2)),
    ("KVM_HAS_DEVICE_ATTR", write::<kvm_device_attr>(0xe3)),
];

/// A VM's state, read for a snapshot.
pub(super) const VM_STATE: [Ioctl; 4] = [
    ("KVM_GET_DIRTY_LOG", write::<kvm_dirty_log>(0x42)),
    ("KVM_GET_IRQCHIP", both::<kvm_irqchip>(0x62)),
    ("KVM_GET_CLOCK", read::<kvm_clock_data>(0x7c)),
    ("KVM_GET_PIT2", read::<kvm_pit_state2>(0x9f)),
];

/// A terminal's settings, read and restored, and its size.
pub(super) const TERMINAL: [Ioctl; 7] = [
    ("TCGETS", libc::TCGETS),
    ("TCSETS", libc::TCSETS),
    ("TCSETSW", libc::TCSETSW),
    ("TCSETSF", libc::TCSETSF),
    ("TIOCGWINSZ", libc::TIOCGWINSZ),
    ("TCGETS2", libc::TCGETS2),
    ("TCSETS2", libc::TCSETS2),
];
/// What restores a terminal when a violation ends the process.
pub(super) const TCSETS: Ioctl = TERMINAL[1];
/// What the standard library makes a socket or a pipe non-blocking with.
pub(super) const FIONBIO: Ioctl = ("FIONBIO", libc::FIONBIO);

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Linux's uapi/linux/kvm.h on x86-64, as strace and Firecracker's filters show them.
    #[test]
    fn request_numbers_are_the_kernels() {
        for ((name, number), expected) in [
            (KVM_RUN, 0xae80),
            (KVM_IRQ_LINE, 0x4008_ae61),
            (KVM_TRANSLATE, 0xc018_ae85),
            (KVM_GET_MSRS, 0xc008_ae88),
            (KVM_SET_MSRS, 0x4008_ae89),
            (KVM_NMI, 0xae9a),
            (KVM_SIGNAL_MSI, 0x4020_aea5),
            (KVM_X86_SET_MSR_FILTER, 0x4188_aec6),
            (KVM_SET_USER_MEMORY_REGION, 0x4020_ae46),
            (VCPU_FAULT[0], 0x8090_ae81),
            (VCPU_FAULT[1], 0x8138_ae83),
        ] {
            assert_eq!(number, expected, "{name} {number:#x}");
        }
    }
}
