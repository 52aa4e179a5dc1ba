//! What a system call does, told from its number and arguments.

use std::fmt;
use std::fs;

use nix::unistd::Pid;
use syscalls::Sysno;

/// What a file descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// No file descriptor, or one whose kind does not matter.
    Any,
    /// A file that keeps its contents, or one of proc or sysfs.
    File,
    /// A pipe.
    Pipe,
    /// A socket.
    Socket,
    /// An eventfd or a signalfd: what is read and written is one number or record, whole.
    Event,
    /// A device, such as a terminal or /dev/null.
    Device,
}

impl Object {
    /// What `fd` of a thread refers to now.
    fn of(thread: Pid, fd: u64) -> Self {
        let Ok(target) = fs::read_link(format!("/proc/{thread}/fd/{}", fd as i32)) else {
            return Self::Any;
        };
        let target = target.to_string_lossy();
        match &*target {
            target if target.starts_with("pipe:") => Self::Pipe,
            target if target.starts_with("socket:") => Self::Socket,
            target if target.starts_with("anon_inode:") => Self::Event,
            target if target.starts_with("/dev/") => Self::Device,
            _ => Self::File,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::File => " (file)",
            Self::Pipe => " (pipe)",
            Self::Socket => " (socket)",
            Self::Event => " (event)",
            Self::Device => " (device)",
        }
    }
}

/// A kind of system call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Its number.
    pub number: Sysno,
    /// What it is done to.
    pub object: Object,
    /// The ioctl's request, fcntl's command, the futex's operation, or what else tells calls of the same number apart.
    pub operation: u64,
}

impl Call {
    /// Whether it executes a guest.
    pub fn is_kvm_run(&self) -> bool {
        self.number == Sysno::ioctl && self.operation == 0xae80
    }

    /// Whether it makes a VM.
    pub(super) fn is_kvm_create_vm(&self) -> bool {
        self.number == Sysno::ioctl && self.operation == 0xae01
    }

    /// What the thread is about to do.
    pub(super) fn of(thread: Pid, number: Sysno, arguments: &[u64; 6]) -> Self {
        let object = match number {
            Sysno::read
            | Sysno::write
            | Sysno::readv
            | Sysno::writev
            | Sysno::recvfrom
            | Sysno::sendto => Object::of(thread, arguments[0]),
            _ => Object::Any,
        };
        let operation = match number {
            // The kernel takes 32 bits of each.
            Sysno::ioctl | Sysno::fcntl | Sysno::epoll_ctl => arguments[1] & 0xffff_ffff,
            // Without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
            Sysno::futex => arguments[1] & 0x7f,
            Sysno::madvise | Sysno::mprotect => arguments[2],
            // A thread's stack has no protection at first; the one for its signals has.
            Sysno::mmap => match arguments[3] & libc::MAP_STACK as u64 {
                0 => 0,
                stack => stack | arguments[2],
            },
            Sysno::prctl => arguments[0],
            _ => 0,
        };
        Self {
            number,
            object,
            operation,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, operation) = (self.number.name(), self.operation);
        match self.number {
            Sysno::ioctl => match KVM_IOCTLS
                .iter()
                .find(|(r, _)| u64::from(*r) == operation & 0xffff)
            {
                Some((_, request)) => f.write_str(request),
                None => write!(f, "ioctl {operation:#x}"),
            },
            Sysno::fcntl | Sysno::epoll_ctl | Sysno::futex | Sysno::madvise | Sysno::prctl => {
                write!(f, "{name} {operation}")
            }
            _ => write!(f, "{name}{}", self.object.name()),
        }
    }
}

/// KVM's letter and number of an ioctl, which are the lower half of its request, and its name (include/uapi/linux/kvm.h).
const KVM_IOCTLS: &[(u16, &str)] = &[
    (0xae00, "KVM_GET_API_VERSION"),
    (0xae01, "KVM_CREATE_VM"),
    (0xae02, "KVM_GET_MSR_INDEX_LIST"),
    (0xae03, "KVM_CHECK_EXTENSION"),
    (0xae04, "KVM_GET_VCPU_MMAP_SIZE"),
    (0xae05, "KVM_GET_SUPPORTED_CPUID"),
    (0xae0a, "KVM_GET_MSR_FEATURE_INDEX_LIST"),
    (0xae41, "KVM_CREATE_VCPU"),
    (0xae46, "KVM_SET_USER_MEMORY_REGION"),
    (0xae47, "KVM_SET_TSS_ADDR"),
    (0xae48, "KVM_SET_IDENTITY_MAP_ADDR"),
    (0xae60, "KVM_CREATE_IRQCHIP"),
    (0xae61, "KVM_IRQ_LINE"),
    (0xae62, "KVM_GET_IRQCHIP"),
    (0xae63, "KVM_SET_IRQCHIP"),
    (0xae76, "KVM_IRQFD"),
    (0xae77, "KVM_CREATE_PIT2"),
    (0xae79, "KVM_IOEVENTFD"),
    (0xae7b, "KVM_SET_CLOCK"),
    (0xae7c, "KVM_GET_CLOCK"),
    (0xae80, "KVM_RUN"),
    (0xae81, "KVM_GET_REGS"),
    (0xae82, "KVM_SET_REGS"),
    (0xae83, "KVM_GET_SREGS"),
    (0xae84, "KVM_SET_SREGS"),
    (0xae85, "KVM_TRANSLATE"),
    (0xae88, "KVM_GET_MSRS"),
    (0xae89, "KVM_SET_MSRS"),
    (0xae8c, "KVM_GET_FPU"),
    (0xae8d, "KVM_SET_FPU"),
    (0xae8e, "KVM_GET_LAPIC"),
    (0xae8f, "KVM_SET_LAPIC"),
    (0xae90, "KVM_SET_CPUID2"),
    (0xae98, "KVM_GET_MP_STATE"),
    (0xae99, "KVM_SET_MP_STATE"),
    (0xae9f, "KVM_GET_VCPU_EVENTS or KVM_GET_PIT2"),
    (0xaea0, "KVM_SET_VCPU_EVENTS or KVM_SET_PIT2"),
    (0xaea1, "KVM_GET_DEBUGREGS"),
    (0xaea2, "KVM_SET_DEBUGREGS or KVM_SET_TSC_KHZ"),
    (0xaea3, "KVM_ENABLE_CAP or KVM_GET_TSC_KHZ"),
    (0xaea4, "KVM_GET_XSAVE"),
    (0xaea5, "KVM_SET_XSAVE"),
    (0xaea6, "KVM_GET_XCRS"),
    (0xaea7, "KVM_SET_XCRS"),
    (0xaead, "KVM_KVMCLOCK_CTRL"),
    (0xaec6, "KVM_X86_SET_MSR_FILTER"),
    (0xaecc, "KVM_GET_SREGS2"),
    (0xaecd, "KVM_SET_SREGS2"),
    (0xaecf, "KVM_GET_XSAVE2"),
    (0xaee1, "KVM_SET_DEVICE_ATTR"),
    (0xaee2, "KVM_GET_DEVICE_ATTR"),
];
