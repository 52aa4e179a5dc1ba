//! What is told of a guest that cannot go on.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use msr_bus::VcpuId;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemoryMmap;

use msr_kvm::InternalError;

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultReason {
    /// `KVM_EXIT_INTERNAL_ERROR`: KVM itself cannot go on.
    InternalError(InternalError),
    /// `KVM_EXIT_FAIL_ENTRY`: the CPU refused the guest's state.
    FailEntry {
        /// The hardware's reason: VMX's VM-instruction error or basic exit reason, SVM's exit code.
        hardware_reason: u64,
        /// The physical CPU that refused.
        cpu: u32,
    },
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    Shutdown,
    /// `KVM_EXIT_SYSTEM_EVENT` of a kind that ends the guest.
    SystemEvent(u32),
    /// `KVM_RUN` failed.
    RunFailed(kvm_ioctls::Error),
    /// An exit this VMM never asked for.
    UnexpectedExit(String),
    /// The vCPU's thread panicked, which is a bug.
    Panicked,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InternalError(error) => error.fmt(f),
            Self::FailEntry {
                hardware_reason,
                cpu,
            } => write!(
                f,
                "KVM_EXIT_FAIL_ENTRY: physical CPU {cpu} refused the guest's state, hardware reason {hardware_reason:#x}"
            ),
            Self::Shutdown => f.write_str("KVM_EXIT_SHUTDOWN: triple fault"),
            Self::SystemEvent(kind) => {
                let words = match *kind {
                    kvm_bindings::KVM_SYSTEM_EVENT_CRASH => "the guest reported a crash",
                    _ => "unknown kind",
                };
                write!(f, "KVM_EXIT_SYSTEM_EVENT, kind {kind}: {words}")
            }
            Self::RunFailed(error) => write!(f, "KVM_RUN failed: {error}"),
            Self::UnexpectedExit(exit) => write!(f, "unexpected exit: {exit}"),
            Self::Panicked => f.write_str("the vCPU's thread panicked: this is a bug in the VMM"),
        }
    }
}

/// A vCPU's registers and the instruction that they point to.
#[derive(Clone, Debug)]
pub struct VcpuRegisters {
    /// The registers, where KVM gives them.
    pub registers: Option<Box<(kvm_regs, kvm_sregs)>>,
    /// The bytes at RIP, up to 15, where they can be read.
    pub instruction: Vec<u8>,
}

impl VcpuRegisters {
    /// Reads those of the vCPU behind `fd`.
    pub(crate) fn read(fd: &VcpuFd, memory: &GuestMemoryMmap) -> Self {
        let registers = fd.get_regs().ok().zip(fd.get_sregs().ok()).map(Box::new);
        let instruction = registers.as_ref().map_or(Vec::new(), |registers| {
            let (regs, sregs) = &**registers;
            instruction_bytes(fd, memory, sregs.cs.base.wrapping_add(regs.rip))
        });
        Self {
            registers,
            instruction,
        }
    }
}

/// What a kernel developer wants to know of a vCPU that cannot go on.
#[derive(Debug)]
pub struct Fault {
    /// Which vCPU.
    pub vcpu: VcpuId,
    /// Why.
    pub reason: FaultReason,
    /// Where it was.
    pub registers: VcpuRegisters,
}

/// The longest instruction there is (SDM vol. 2, section 2.3.11).
const LONGEST_INSTRUCTION: usize = 15;

impl Fault {
    /// Collects what there is to say of the vCPU behind `fd`.
    pub fn new(vcpu: VcpuId, reason: FaultReason, fd: &VcpuFd, memory: &GuestMemoryMmap) -> Self {
        Self {
            vcpu,
            reason,
            registers: VcpuRegisters::read(fd, memory),
        }
    }
}

impl Fault {
    /// Whether the registers are those after INIT. KVM on AMD resets a vCPU that shuts down, because the
    /// processor does not keep its state then (AMD64 APM vol. 2, section 15.14.3).
    fn was_reset(&self) -> bool {
        const RESET_VECTOR: u64 = 0xfff0;
        const RESET_BASE: u64 = 0xffff_0000;
        self.registers.registers.as_ref().is_some_and(|registers| {
            let (regs, sregs) = &**registers;
            self.reason == FaultReason::Shutdown
                && (regs.rip, sregs.cs.base) == (RESET_VECTOR, RESET_BASE)
        })
    }
}

fn instruction_bytes(fd: &VcpuFd, memory: &GuestMemoryMmap, rip: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < LONGEST_INSTRUCTION {
        let at = rip.wrapping_add(bytes.len() as u64);
        let Some(translation) = fd.translate_gva(at).ok().filter(|t| t.valid != 0) else {
            break;
        };
        let Ok(byte) = memory.read_obj(GuestAddress(translation.physical_address)) else {
            break;
        };
        bytes.push(byte);
    }
    bytes
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} stopped: {}", self.vcpu, self.reason)?;
        if self.was_reset() {
            writeln!(f, "  KVM has reset this vCPU; what it did before is lost")?;
        }
        self.registers.fmt(f)
    }
}

impl fmt::Display for VcpuRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((r, s)) = self.registers.as_deref() else {
            return write!(f, "  its registers cannot be read");
        };
        writeln!(
            f,
            "  rip {:016x}  rflags {:016x}  rsp {:016x}  rbp {:016x}",
            r.rip, r.rflags, r.rsp, r.rbp
        )?;
        writeln!(
            f,
            "  rax {:016x}  rbx    {:016x}  rcx {:016x}  rdx {:016x}",
            r.rax, r.rbx, r.rcx, r.rdx
        )?;
        writeln!(
            f,
            "  rsi {:016x}  rdi    {:016x}  r8  {:016x}  r9  {:016x}",
            r.rsi, r.rdi, r.r8, r.r9
        )?;
        writeln!(
            f,
            "  r10 {:016x}  r11    {:016x}  r12 {:016x}  r13 {:016x}",
            r.r10, r.r11, r.r12, r.r13
        )?;
        writeln!(f, "  r14 {:016x}  r15    {:016x}", r.r14, r.r15)?;
        writeln!(
            f,
            "  cr0 {:016x}  cr2    {:016x}  cr3 {:016x}  cr4 {:016x}",
            s.cr0, s.cr2, s.cr3, s.cr4
        )?;
        writeln!(
            f,
            "  efer {:x}  cs {:04x} base {:x} ({} bit)  ss {:04x}  gdt {:x}+{:x}  idt {:x}+{:x}",
            s.efer,
            s.cs.selector,
            s.cs.base,
            if s.cs.l != 0 {
                64
            } else if s.cs.db != 0 {
                32
            } else {
                16
            },
            s.ss.selector,
            s.gdt.base,
            s.gdt.limit,
            s.idt.base,
            s.idt.limit
        )?;
        write!(f, "  bytes at rip:")?;
        if self.instruction.is_empty() {
            write!(f, " not mapped")?;
        }
        self.instruction
            .iter()
            .try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
