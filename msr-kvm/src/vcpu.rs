//! A vCPU's MSR exits: what devices see of it, and the way of one access.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{SyncReg, VcpuFd};
use msr_bus::{CpuLocation, KernelMsrError, MsrBus, VcpuContext, VcpuId};

use crate::{Answered, MsrExit, PhysicalMemory, complete};

const IA32_TSC: u32 = 0x10;

/// Answers the MSR exits of one vCPU. It may move between threads with its vCPU.
pub struct VcpuMsrs {
    bus: Arc<MsrBus>,
    location: CpuLocation,
    memory: Arc<dyn PhysicalMemory>,
    /// Room for one MSR, so that asking KVM for one allocates nothing.
    one_msr: Msrs,
    synchronized: bool,
}

impl VcpuMsrs {
    /// For the vCPU at `location`, whose devices are on `bus`. [`VmMsrs::vcpu`](crate::VmMsrs::vcpu) makes the one
    /// for a VM that it has installed.
    pub fn new(bus: Arc<MsrBus>, location: CpuLocation, memory: Arc<dyn PhysicalMemory>) -> Self {
        let one_msr = Msrs::from_entries(&[kvm_msr_entry::default()]);
        Self {
            bus,
            location,
            memory,
            one_msr: one_msr.expect("one entry is below KVM_MAX_MSR_ENTRIES"),
            synchronized: false,
        }
    }

    /// Lets observers have the RIP of each access: KVM then leaves the general registers in `kvm_run` at each exit, which
    /// costs some copying and no system call. Needs `KVM_CAP_SYNC_REGS` with `KVM_SYNC_X86_REGS`.
    pub fn synchronize_registers(&mut self, fd: &mut VcpuFd) {
        fd.set_sync_valid_reg(SyncReg::Register);
        self.synchronized = true;
    }

    /// Ends what [`synchronize_registers`](Self::synchronize_registers) began: observers have no RIP any more.
    pub fn desynchronize_registers(&mut self, fd: &mut VcpuFd) {
        fd.clear_sync_valid_reg(SyncReg::Register);
        self.synchronized = false;
    }

    /// Whether observers have the RIP of each access.
    pub fn synchronizes_registers(&self) -> bool {
        self.synchronized
    }

    /// Answers the MSR exit that KVM_RUN has just returned with: asks the bus, and leaves the answer for the next
    /// KVM_RUN. After any other exit it does nothing and gives `None`.
    ///
    /// `fd` is the vCPU that this was made for.
    #[inline]
    pub fn answer(&mut self, fd: &mut VcpuFd) -> Option<Answered> {
        let exit = MsrExit::from_run(fd.get_kvm_run())?;
        let view = VcpuView {
            fd,
            location: self.location,
            memory: &*self.memory,
            one_msr: RefCell::new(&mut self.one_msr),
            synchronized: self.synchronized,
        };
        let answer = exit.answer(&self.bus, &view);
        complete(fd.get_kvm_run(), answer);
        Some(Answered { exit, answer })
    }

    /// Gives `look` the vCPU as devices see it, outside of an MSR exit. The vCPU must not be in KVM_RUN. The RIP is that of
    /// the last exit.
    pub fn with_context<R>(&mut self, fd: &VcpuFd, look: impl FnOnce(&dyn VcpuContext) -> R) -> R {
        look(&VcpuView {
            fd,
            location: self.location,
            memory: &*self.memory,
            one_msr: RefCell::new(&mut self.one_msr),
            synchronized: self.synchronized,
        })
    }

    /// Where the vCPU sits in the guest's topology.
    pub fn location(&self) -> CpuLocation {
        self.location
    }
}

impl fmt::Debug for VcpuMsrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuMsrs")
            .field("location", &self.location)
            .field("bus", &self.bus)
            .field("synchronized", &self.synchronized)
            .finish_non_exhaustive()
    }
}

/// A KVM vCPU that stands at an MSR exit, as devices see it.
struct VcpuView<'a> {
    fd: &'a VcpuFd,
    location: CpuLocation,
    memory: &'a dyn PhysicalMemory,
    one_msr: RefCell<&'a mut Msrs>,
    synchronized: bool,
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
        self.memory.read(address, buf)
    }

    fn kernel_msr(&self, index: u32) -> Result<u64, KernelMsrError> {
        let mut msrs = self.one_msr.borrow_mut();
        msrs.as_mut_slice()[0] = kvm_msr_entry {
            index,
            ..Default::default()
        };
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            _ => Err(KernelMsrError { index }),
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
        self.synchronized.then(|| self.fd.sync_regs().regs.rip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vmm_keeps_may_move_between_threads_and_be_shared() {
        fn shared<T: Send + Sync>() {}
        shared::<VcpuMsrs>();
        shared::<crate::VmMsrs>();
    }
}
