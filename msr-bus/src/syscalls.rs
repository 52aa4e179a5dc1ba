//! Which system calls devices make on vCPU threads, as data, for the seccomp filters of VMMs.

/// A system call that a device makes on the thread of the vCPU that executes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Syscall {
    /// Its name, such as `ioctl`.
    pub name: &'static str,
    /// Its number on x86-64.
    pub number: i64,
    /// For `ioctl`, the request: the second argument.
    pub request: Option<u32>,
}

impl Syscall {
    /// `KVM_TRANSLATE` on the vCPU: what [`translate`](crate::VcpuContext::translate) takes, and with it each
    /// [`read_guest`](crate::VcpuContext::read_guest).
    pub const KVM_TRANSLATE: Self = Self::ioctl(0xc018_ae85);
    /// `KVM_GET_MSRS` on the vCPU: what [`kernel_msr`](crate::VcpuContext::kernel_msr) and
    /// [`tsc`](crate::VcpuContext::tsc) take.
    pub const KVM_GET_MSRS: Self = Self::ioctl(0xc008_ae88);
    /// `KVM_SET_MSRS` on the vCPU: what [`set_kernel_msr`](crate::VcpuContext::set_kernel_msr) takes.
    pub const KVM_SET_MSRS: Self = Self::ioctl(0x4008_ae89);
    /// What a clock of CPU time takes ([`CpuClock`](crate::CpuClock)); the time of day too, on hosts without its vDSO.
    pub const CLOCK_GETTIME: Self = Self::new("clock_gettime", libc::SYS_clock_gettime);
    /// What a device takes that has a vCPU wait.
    pub const CLOCK_NANOSLEEP: Self = Self::new("clock_nanosleep", libc::SYS_clock_nanosleep);
    /// What a mutex takes that another vCPU holds.
    pub const FUTEX: Self = Self::new("futex", libc::SYS_futex);
    /// Reads a file at an offset.
    pub const PREAD64: Self = Self::new("pread64", libc::SYS_pread64);
    /// Writes a file at an offset.
    pub const PWRITE64: Self = Self::new("pwrite64", libc::SYS_pwrite64);
    /// Tells the host CPU that runs the thread, on hosts without its vDSO.
    pub const GETCPU: Self = Self::new("getcpu", libc::SYS_getcpu);

    /// A system call of this name and number.
    pub const fn new(name: &'static str, number: i64) -> Self {
        Self {
            name,
            number,
            request: None,
        }
    }

    /// An `ioctl` with this request.
    pub const fn ioctl(request: u32) -> Self {
        Self {
            request: Some(request),
            ..Self::new("ioctl", libc::SYS_ioctl)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceModel;

    /// The kernel's encoding of a request: direction, size, type and number (include/uapi/asm-generic/ioctl.h).
    fn request(direction: u32, size: u32, number: u32) -> Option<u32> {
        const KVMIO: u32 = 0xae;
        Some(direction << 30 | size << 16 | KVMIO << 8 | number)
    }

    #[test]
    fn requests_are_the_kernels() {
        // struct kvm_translation has 24 bytes, struct kvm_msrs without its entries 8; _IOW is 1, _IOWR 3.
        assert_eq!(Syscall::KVM_TRANSLATE.request, request(3, 24, 0x85));
        assert_eq!(Syscall::KVM_GET_MSRS.request, request(3, 8, 0x88));
        assert_eq!(Syscall::KVM_SET_MSRS.request, request(1, 8, 0x89));
    }

    #[test]
    fn models_name_what_they_need_beyond_memory() {
        let of = |name: &str| {
            let model = DeviceModel::all().iter().find(|m| m.name() == name);
            model.unwrap().syscalls()
        };
        assert_eq!(of("scratch"), []);
        assert!(of("microcode").contains(&Syscall::KVM_TRANSLATE));
        assert!(of("forward").contains(&Syscall::KVM_SET_MSRS));
    }
}
