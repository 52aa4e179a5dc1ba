//! What devices see of a vCPU.

use std::cell::RefCell;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use msr_bus::{CpuLocation, KernelMsrError, VcpuContext, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const IA32_TSC: u32 = 0x10;

/// A KVM vCPU that stands at an MSR exit, as devices see it.
pub struct VcpuView<'a> {
    fd: &'a VcpuFd,
    location: CpuLocation,
    memory: &'a GuestMemoryMmap,
    /// Room for one MSR, kept so that asking for one allocates nothing.
    one_msr: &'a RefCell<Msrs>,
}

impl<'a> VcpuView<'a> {
    /// The vCPU behind `fd`. `one_msr` holds a single entry of any content.
    pub fn new(
        fd: &'a VcpuFd,
        location: CpuLocation,
        memory: &'a GuestMemoryMmap,
        one_msr: &'a RefCell<Msrs>,
    ) -> Self {
        Self {
            fd,
            location,
            memory,
            one_msr,
        }
    }

    /// Room for one MSR, as [`new`](Self::new) wants it.
    pub fn room() -> RefCell<Msrs> {
        let entries = Msrs::from_entries(&[kvm_msr_entry::default()]);
        RefCell::new(entries.expect("one entry is below KVM_MAX_MSR_ENTRIES"))
    }
}

impl VcpuContext for VcpuView<'_> {
    fn id(&self) -> VcpuId {
        VcpuId(self.location.thread)
    }

    fn location(&self) -> CpuLocation {
        self.location
    }

    fn translate(&self, address: u64) -> Option<u64> {
        let translation = self.fd.translate_gva(address).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    fn read_physical(&self, address: u64, buf: &mut [u8]) -> bool {
        self.memory.read_slice(buf, GuestAddress(address)).is_ok()
    }

    fn kernel_msr(&self, index: u32) -> Result<u64, KernelMsrError> {
        let error = KernelMsrError { index };
        let mut msrs = self.one_msr.borrow_mut();
        msrs.as_mut_slice()[0] = kvm_msr_entry {
            index,
            ..Default::default()
        };
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            _ => Err(error),
        }
    }

    fn set_kernel_msr(&self, index: u32, value: u64) -> Result<(), KernelMsrError> {
        let mut msrs = self.one_msr.borrow_mut();
        msrs.as_mut_slice()[0] = kvm_msr_entry {
            index,
            data: value,
            ..Default::default()
        };
        match self.fd.set_msrs(&msrs) {
            Ok(1) => Ok(()),
            _ => Err(KernelMsrError { index }),
        }
    }

    fn tsc(&self) -> u64 {
        // KVM has this MSR on every host, so the error cannot be.
        self.kernel_msr(IA32_TSC).unwrap_or(0)
    }

    fn instruction_pointer(&self) -> Option<u64> {
        // KVM fills them in at every exit where the VMM asked for it (KVM_CAP_SYNC_REGS), and never else.
        let rip = self.fd.sync_regs().regs.rip;
        (rip != 0).then_some(rip)
    }
}
