//! What devices see of a vCPU.

use std::cell::RefCell;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use msr_bus::{CpuLocation, GuestMemoryError, KernelMsrError, VcpuContext, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const IA32_TSC: u32 = 0x10;
const PAGE: u64 = 4096;

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

    fn read_guest(&self, address: u64, buf: &mut [u8]) -> Result<(), GuestMemoryError> {
        let mut at = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let error = GuestMemoryError { address: at };
            let in_page = (PAGE - at % PAGE).min(rest.len() as u64);
            let (piece, after) = rest.split_at_mut(in_page as usize);
            let translation = self.fd.translate_gva(at).map_err(|_| error)?;
            if translation.valid == 0 {
                return Err(error);
            }
            let physical = GuestAddress(translation.physical_address);
            self.memory.read_slice(piece, physical).map_err(|_| error)?;
            rest = after;
            // A range that runs past the last linear address does not wrap around to 0.
            if !rest.is_empty() {
                at = at.checked_add(in_page).ok_or(error)?;
            }
        }
        Ok(())
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
}
