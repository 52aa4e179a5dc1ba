//! A VM for micro guests.

use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, MsrExitReason, VmFd};
use msr_bus::{MsrBus, Topology, VcpuId};
use msr_filter::MsrFilter;
use msr_kvm::VcpuMsrs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::code::AccessLoop;
use super::code::Mode;
use super::error::{MicroError, kvm};
use super::memory;
use super::record::Op;
use super::registers;
use super::vcpu::{MicroVcpu, Run};

/// Says what a VM is to be like.
pub struct Builder {
    mode: Mode,
    filter: Option<MsrFilter>,
    exits: Option<MsrExitReason>,
    bus: Option<Arc<MsrBus>>,
    x2apic: bool,
    vcpus: u32,
}

/// A VM with the code and the table of a micro guest in its memory.
pub struct MicroVm {
    /// The vCPUs, in the order of their numbers.
    pub vcpus: Vec<MicroVcpu>,
    vm: VmFd,
    code: AccessLoop,
}

impl Builder {
    /// Installs a filter. Without one, KVM filters nothing.
    #[must_use]
    pub fn filter(mut self, filter: MsrFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Enables `KVM_CAP_X86_USER_SPACE_MSR` for these reasons. Without this it is not enabled at all.
    #[must_use]
    pub fn exits(mut self, reasons: MsrExitReason) -> Self {
        self.exits = Some(reasons);
        self
    }

    /// Sets who answers the exits. Without one, all of them become #GP.
    #[must_use]
    pub fn bus(mut self, bus: impl Into<Arc<MsrBus>>) -> Self {
        self.bus = Some(bus.into());
        self
    }

    /// Creates the interrupt controllers in the kernel, and starts the vCPUs in x2APIC mode.
    #[must_use]
    pub fn x2apic(mut self) -> Self {
        self.x2apic = true;
        self
    }

    /// Sets the number of vCPUs, 1 to 4; 1 unless said otherwise.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        assert!((1..=memory::MAX_VCPUS).contains(&vcpus), "{vcpus} vCPUs");
        self.vcpus = vcpus;
        self
    }

    /// Creates the VM.
    ///
    /// # Errors
    ///
    /// [`MicroError`] for what KVM refuses.
    pub fn build(self) -> Result<MicroVm, MicroError> {
        let host = Kvm::new().map_err(kvm("opening /dev/kvm"))?;
        let vm = host.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(msr_vmm::layout::KVM_TSS as usize)
            .map_err(kvm("KVM_SET_TSS_ADDR"))?;
        let code = AccessLoop::assemble(self.mode, memory::CODE)?;
        let guest_memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory::SIZE as usize)])?;
        memory::fill(&guest_memory, self.mode, &code)?;
        let region = kvm_userspace_memory_region {
            memory_size: memory::SIZE,
            userspace_addr: guest_memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the memory lives in the same struct as the VM, and nobody has references into it.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
        if let Some(reasons) = self.exits {
            let mut cap = kvm_enable_cap {
                cap: Cap::X86UserSpaceMsr as u32,
                ..Default::default()
            };
            cap.args[0] = u64::from(reasons.bits());
            vm.enable_cap(&cap).map_err(kvm("KVM_ENABLE_CAP"))?;
        }
        if let Some(filter) = &self.filter {
            filter.install(&vm)?;
        }
        if self.x2apic {
            vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        }
        let cpuid = host
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let bus = match self.bus {
            Some(bus) => bus,
            None => Arc::new(MsrBus::builder().build()?),
        };
        let topology = Topology::flat(self.vcpus);
        let mut vcpus = Vec::new();
        for id in 0..self.vcpus {
            let fd = vm.create_vcpu(id.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
            fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
            let mut sregs = fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
            match self.mode {
                Mode::Real => registers::real(&mut sregs),
                Mode::Long => registers::long(&mut sregs),
            }
            if self.x2apic {
                sregs.apic_base |= APIC_BASE_X2APIC_ENABLE;
            }
            fd.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
            let reader = guest_memory.clone();
            vcpus.push(MicroVcpu {
                fd,
                id,
                mode: self.mode,
                memory: guest_memory.clone(),
                msrs: VcpuMsrs::new(
                    Arc::clone(&bus),
                    topology.locate(VcpuId(id)),
                    Arc::new(move |address, buf: &mut [u8]| {
                        reader.read_slice(buf, GuestAddress(address)).is_ok()
                    }),
                ),
            });
        }
        Ok(MicroVm { vcpus, vm, code })
    }
}

/// IA32_APIC_BASE: EN and EXTD (Intel SDM vol. 3, section 12.12.1).
const APIC_BASE_X2APIC_ENABLE: u64 = 0xc00;

impl MicroVm {
    /// A guest in long mode, with no filter, no MSR exits and an empty bus.
    pub fn long_mode() -> Builder {
        Self::builder(Mode::Long)
    }

    /// A guest in real mode, likewise.
    pub fn real_mode() -> Builder {
        Self::builder(Mode::Real)
    }

    /// A guest in `mode`, likewise.
    pub fn builder(mode: Mode) -> Builder {
        Builder {
            mode,
            filter: None,
            exits: None,
            bus: None,
            x2apic: false,
            vcpus: 1,
        }
    }

    /// The VM, for what the kit does not do itself.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Where the guest's instructions are.
    pub fn code(&self) -> &AccessLoop {
        &self.code
    }

    /// Has the first vCPU execute `ops` one after the other.
    ///
    /// # Errors
    ///
    /// As [`MicroVcpu::run`].
    pub fn run(&mut self, ops: &[Op]) -> Result<Run, MicroError> {
        self.vcpus[0].run(ops)
    }
}
