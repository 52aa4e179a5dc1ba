//! A vCPU: one thread, one loop.

use std::sync::Arc;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use msr_bus::VcpuId;
use vm_device::bus::MmioAddress;
use vm_device::device_manager::{IoManager, MmioManager};

use crate::builder::AtStop;
use crate::control::{Control, Execute, Kickable};
use crate::fault::{Fault, FaultReason};
use crate::memory::GuestMemoryMmap;
use crate::port_io;
use crate::shutdown::{ShutdownReason, ShutdownSender};
use crate::vcpu_report::VcpuReport;
use msr_kvm::InternalError;
use msr_kvm::VcpuMsrs;

/// What reads of ports and addresses that no device answers give.
pub(crate) const OPEN_BUS: u8 = 0xff;

/// A vCPU and everything its exits need.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) msrs: VcpuMsrs,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) io: Arc<IoManager>,
    pub(crate) control: Arc<Control<Vcpu>>,
    pub(crate) shutdown: ShutdownSender,
    /// See [`VcpuReport::exits`].
    pub(crate) exits: u64,
    pub(crate) at_stop: Option<AtStop>,
}

impl Vcpu {
    /// Executes the guest until it is told to stop or cannot go on.
    pub(crate) fn run(mut self) {
        // SAFETY: `self` is owned by this call, so `fd` outlives the guard, on this thread.
        let _kickable = unsafe { Kickable::new(&mut self.fd) };
        let control = self.control.clone();
        if let Err(reason) = control.run(self.place(), &mut self) {
            let vcpu = self.id();
            let fault = Fault::new(vcpu, reason, &self.fd, &self.memory);
            self.shutdown.send(ShutdownReason::Fault(Box::new(fault)));
        }
    }

    /// The vCPU's number.
    pub(crate) fn id(&self) -> VcpuId {
        VcpuId(self.msrs.location().thread)
    }

    /// Its place among those of the control.
    fn place(&self) -> usize {
        self.id().0 as usize
    }

    /// How many bytes each access of a KVM_EXIT_IO takes, whose data may be those of several.
    fn port_access_size(&mut self) -> usize {
        // SAFETY: of the union, KVM has filled `io` for this exit, and any bits are a valid value of it.
        usize::from(unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io }.size)
    }

    /// What is told of the vCPU as it is now.
    pub(crate) fn report(&self) -> VcpuReport {
        VcpuReport::new(self.id(), self.exits, &self.fd, &self.memory)
    }
}

impl Execute for Vcpu {
    type Fault = FaultReason;

    /// Returns once KVM_RUN does because of a signal. It finished any pending exit before it looked for signals, so the
    /// vCPU's state is whole and may be paused, saved or thrown away.
    fn execute(&mut self) -> Result<(), FaultReason> {
        loop {
            self.exits += 1;
            match self.fd.run() {
                // The hot path: asks the bus and leaves the answer for the next KVM_RUN.
                Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => {
                    self.msrs.answer(&mut self.fd);
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    let data = &raw mut *data;
                    let size = self.port_access_size();
                    // SAFETY: `data` is the part of the vCPU's mapping of `kvm_run` that KVM says the exit's data
                    // are in, beyond the struct itself; it is mapped as long as `fd` lives, and nothing else
                    // refers to it until the next KVM_RUN.
                    port_io::read(&self.io, port, size, unsafe { &mut *data });
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    let data = &raw const *data;
                    let size = self.port_access_size();
                    // SAFETY: as above.
                    port_io::write(&self.io, port, size, unsafe { &*data });
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    if self.io.mmio_read(MmioAddress(address), data).is_err() {
                        data.fill(OPEN_BUS);
                    }
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    drop(self.io.mmio_write(MmioAddress(address), data));
                }
                Ok(VcpuExit::Intr) => break,
                Err(error) if error.errno() == libc::EINTR => break,
                // KVM asks for another try, which is not an exit of the guest.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                    self.shutdown.send(ShutdownReason::PowerOff);
                }
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                    self.shutdown.send(ShutdownReason::Reset);
                }
                Ok(VcpuExit::SystemEvent(kind, _)) => return Err(FaultReason::SystemEvent(kind)),
                Ok(VcpuExit::Shutdown) => return Err(FaultReason::Shutdown),
                Ok(VcpuExit::FailEntry(hardware_reason, cpu)) => {
                    return Err(FaultReason::FailEntry {
                        hardware_reason,
                        cpu,
                    });
                }
                Ok(VcpuExit::InternalError) => {
                    let error = InternalError::from_run(self.fd.get_kvm_run());
                    return Err(FaultReason::InternalError(error));
                }
                Ok(exit) => return Err(FaultReason::UnexpectedExit(format!("{exit:?}"))),
                Err(error) => return Err(FaultReason::RunFailed(error)),
            }
        }
        // The interruption is no exit of the guest.
        self.exits -= 1;
        Ok(())
    }

    fn forget_kicks(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }
}

impl Drop for Vcpu {
    /// Also on a panic: the others must not wait for this one.
    fn drop(&mut self) {
        if let Some(at_stop) = &self.at_stop {
            self.msrs.with_context(&self.fd, |context| at_stop(context));
        }
        self.control.leave(self.place());
        if std::thread::panicking() {
            let vcpu = self.id();
            let fault = Fault::new(vcpu, FaultReason::Panicked, &self.fd, &self.memory);
            self.shutdown.send(ShutdownReason::Fault(Box::new(fault)));
        }
    }
}
