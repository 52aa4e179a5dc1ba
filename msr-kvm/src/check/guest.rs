//! Runs the tiny guests, one vCPU each, in one VM.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_pit_config, kvm_regs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use msr_filter::{Access, FilterSpec, MsrRange, Rule, Verdict};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::capability;
use super::error::{self, Exit, TrialError};
use super::programs::{self, Mode, Program};
use super::tiny_guest;

/// The guests' memory, all of it mapped one to one.
const MEMORY: usize = 0x1_0000;
const CODE: u64 = tiny_guest::TABLES_END;
const STACK_TOP: u64 = 0x8000;
const SCRATCH: u64 = 0x9000;

/// CPUID.1:ECX.XSAVE.
const CPUID_XSAVE: u32 = 1 << 26;

/// A VM with the tiny guests' code in its memory and their MSRs denied by its filter.
pub(super) struct TinyVm {
    vm: VmFd,
    cpuid: CpuId,
    // Behind `vm`, so that it is unmapped after the VM is gone.
    memory: GuestMemoryMmap,
}

/// Names the request of a failed ioctl.
pub(super) fn ioctl(request: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> TrialError {
    move |error| TrialError::Ioctl { request, error }
}

/// Creates a VM with what real mode on Intel needs.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, TrialError> {
    let vm = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
    vm.set_identity_map_address(tiny_guest::KVM_IDENTITY_MAP)
        .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(tiny_guest::KVM_TSS)
        .map_err(ioctl("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

/// Creates the interrupt controllers and the timer in the kernel, and a vCPU next to them.
pub(super) fn create_machine(kvm: &Kvm) -> Result<(), TrialError> {
    let vm = create_vm(kvm)?;
    vm.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
    vm.create_pit2(kvm_pit_config::default())
        .map_err(ioctl("KVM_CREATE_PIT2"))?;
    vm.create_vcpu(0).map_err(ioctl("KVM_CREATE_VCPU"))?;
    Ok(())
}

impl TinyVm {
    pub(super) fn new(kvm: &Kvm) -> Result<Self, TrialError> {
        let denied = MsrRange::new(programs::MSR, programs::FAULTING_MSR)
            .map_err(|error| TrialError::Setup(error.to_string()))?;
        let denied = Rule::new(denied, Access::all(), Verdict::Deny);
        Self::denying(kvm, FilterSpec::new(Verdict::Allow).rule(denied))
    }

    /// As [`new`](Self::new), with another filter.
    pub(super) fn denying(kvm: &Kvm, filter: FilterSpec) -> Result<Self, TrialError> {
        let vm = create_vm(kvm)?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|error| TrialError::Setup(format!("no guest memory: {error}")))?;
        write_image(&memory)
            .map_err(|error| TrialError::Setup(format!("guest memory: {error}")))?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| TrialError::Setup(format!("guest memory: {error}")))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: `memory` is mapped for as long as the VM lives, in the same struct, and nothing in this
        // process holds references into it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;

        capability::enable_msr_exits(&vm, programs::MSR_REASON | programs::OTHER_REASON)
            .map_err(ioctl("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
        filter
            .compile()
            .map_err(|error| TrialError::Setup(error.to_string()))?
            .install(&vm)
            .map_err(|error| ioctl("KVM_X86_SET_MSR_FILTER")(error.0))?;
        Ok(Self { vm, cpuid, memory })
    }

    /// Runs one program on a vCPU of its own, numbered `id`, until it ends or `expired` says so after a
    /// signal. `Ok` is the end it should come to.
    pub(super) fn run(
        &self,
        id: u64,
        program: &Program,
        expired: &dyn Fn() -> bool,
    ) -> Result<(), TrialError> {
        self.memory
            .write_slice(&[0; 0x1000], GuestAddress(SCRATCH))
            .map_err(|error| TrialError::Setup(format!("guest memory: {error}")))?;
        let mut vcpu = self.vm.create_vcpu(id).map_err(ioctl("KVM_CREATE_VCPU"))?;
        self.set_up(&vcpu, program.mode, program.offset())?;
        run_to_halt(&mut vcpu, expired)?;
        let found = vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?.rax;
        let expected = program.expected;
        if found == expected {
            Ok(())
        } else {
            Err(TrialError::WrongResult { expected, found })
        }
    }

    /// Gives its vCPUs local APICs in the kernel.
    pub(super) fn with_irq_chip(self) -> Result<Self, TrialError> {
        self.vm
            .create_irq_chip()
            .map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
        Ok(self)
    }

    /// A vCPU, numbered `id`, that starts in long mode at this offset in the code, with an MSR's index in RCX.
    pub(super) fn vcpu(&self, id: u64, offset: u64, msr: u32) -> Result<VcpuFd, TrialError> {
        let vcpu = self.vm.create_vcpu(id).map_err(ioctl("KVM_CREATE_VCPU"))?;
        self.set_up(&vcpu, Mode::Long, offset)?;
        let mut regs = vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?;
        regs.rcx = msr.into();
        vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))?;
        // With a local APIC all but the first wait for another's start-up interrupt.
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set_mp_state(runnable)
            .map_err(ioctl("KVM_SET_MP_STATE"))?;
        Ok(vcpu)
    }

    fn set_up(&self, vcpu: &VcpuFd, mode: Mode, offset: u64) -> Result<(), TrialError> {
        vcpu.set_cpuid2(&self.cpuid)
            .map_err(ioctl("KVM_SET_CPUID2"))?;
        let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
        match mode {
            Mode::Real => {
                tiny_guest::enter_real_mode(&mut sregs);
            }
            Mode::Long => {
                let xsave = self
                    .cpuid
                    .as_slice()
                    .iter()
                    .any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_XSAVE != 0);
                // OSFXSR, OSXMMEXCPT, and OSXSAVE.
                tiny_guest::enter_long_mode(&mut sregs, 0x600 | u64::from(xsave) << 18);
            }
        }
        vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rip: CODE + offset,
            rsp: STACK_TOP,
            rdi: SCRATCH,
            rflags: 2, // bit 1 is always set
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))
    }
}

fn run_to_halt(vcpu: &mut VcpuFd, expired: &dyn Fn() -> bool) -> Result<(), TrialError> {
    loop {
        let exit = match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            Ok(VcpuExit::X86Rdmsr(exit)) if exit.reason.bits() == programs::MSR_REASON => {
                match exit.index {
                    programs::MSR => *exit.data = programs::MSR_VALUE,
                    _ => *exit.error = 1,
                }
                continue;
            }
            Ok(VcpuExit::X86Wrmsr(exit)) if exit.reason.bits() == programs::MSR_REASON => {
                let wanted = exit.index == programs::MSR && exit.data == programs::MSR_VALUE;
                *exit.error = u8::from(!wanted);
                continue;
            }
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

/// Page tables, descriptor tables and code.
fn write_image(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let handlers = programs::handlers().map(|(vector, offset)| (vector, CODE + offset));
    for (address, value) in tiny_guest::long_mode_tables(&handlers) {
        memory.write_obj(value, GuestAddress(address))?;
    }
    memory.write_slice(programs::code(), GuestAddress(CODE))
}
