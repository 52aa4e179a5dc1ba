//! What is told of a vCPU that runs, for whoever asks why its guest does not get on.

use std::fmt;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
};
use kvm_ioctls::VcpuFd;
use msr_bus::VcpuId;

use crate::fault::VcpuRegisters;
use crate::memory::GuestMemoryMmap;

/// What a vCPU does (Documentation/virt/kvm/api.rst, KVM_GET_MP_STATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// It has executed HLT and waits for an interrupt.
    Halted,
    /// It waits for the INIT and start-up interrupts that another CPU sends.
    NotStarted,
    /// A state of KVM's that this VMM has no name for, or none because KVM does not tell.
    Unknown,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Halted => "halted",
            Self::NotStarted => "not started",
            Self::Unknown => "in a state unknown",
        })
    }
}

/// A look at a vCPU, taken between two instructions of its guest.
#[derive(Clone, Debug)]
pub struct VcpuReport {
    /// Which vCPU.
    pub vcpu: VcpuId,
    /// What it does.
    pub activity: Activity,
    /// How often it has left KVM_RUN because its guest needs the VMM. What KVM serves in the kernel, such as the timer,
    /// is not counted.
    pub exits: u64,
    /// Its registers and the instruction that comes next.
    pub registers: VcpuRegisters,
}

impl VcpuReport {
    /// Looks at the vCPU behind `fd`.
    pub(crate) fn new(vcpu: VcpuId, exits: u64, fd: &VcpuFd, memory: &GuestMemoryMmap) -> Self {
        let activity = match fd.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_RUNNABLE) => Activity::Running,
            Ok(KVM_MP_STATE_HALTED) => Activity::Halted,
            Ok(
                KVM_MP_STATE_UNINITIALIZED
                | KVM_MP_STATE_INIT_RECEIVED
                | KVM_MP_STATE_SIPI_RECEIVED,
            ) => Activity::NotStarted,
            _ => Activity::Unknown,
        };
        Self {
            vcpu,
            activity,
            exits,
            registers: VcpuRegisters::read(fd, memory),
        }
    }

    /// Whether it takes interrupts: RFLAGS.IF. `None` where KVM does not give the registers.
    pub fn interrupts_enabled(&self) -> Option<bool> {
        const INTERRUPT_FLAG: u64 = 1 << 9;
        let registers = self.registers.registers.as_ref()?;
        Some(registers.0.rflags & INTERRUPT_FLAG != 0)
    }
}

impl fmt::Display for VcpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interrupts = match self.interrupts_enabled() {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let (vcpu, activity, exits) = (self.vcpu, self.activity, self.exits);
        writeln!(
            f,
            "{vcpu}: {activity}, interrupts {interrupts}, {exits} exits"
        )?;
        self.registers.fmt(f)
    }
}
