//! A VM whose vCPUs run, and what can be done with it from outside.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VmFd;
use msr_bus::{MsrBus, VcpuId};
use msr_filter::{InstallError, MsrFilter};
use msr_kvm::VmMsrs;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

use crate::control::{Control, install_kick_handler, kick_signal};
use crate::devices::power::PowerManagement;
use crate::devices::serial::Console;
use crate::devices::virtio::MmioDevice;
use crate::sandbox::Role;
use crate::shutdown::{ShutdownReason, ShutdownReceiver, ShutdownSender};
use crate::timing::BootEvent;
use crate::vcpu_report::VcpuReport;
use crate::vm::{Vm, VmError};

/// How long the console's writer may take over what a guest that ended by itself wrote last.
const CONSOLE_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a vCPU may take to report.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// A handle to a running VM. Dropping it stops the VM.
pub struct RunningVm {
    fd: Arc<VmFd>,
    msrs: VmMsrs,
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
    console: Arc<Console>,
    power: Arc<PowerManagement>,
    virtio: Vec<Arc<MmioDevice>>,
    /// Calls of [`pause`](RunningVm::pause) in force.
    pauses: Mutex<usize>,
    shutdown: ShutdownSender,
    shutdown_receiver: ShutdownReceiver,
}

impl RunningVm {
    pub(crate) fn start(vm: Vm) -> Result<Self, VmError> {
        install_kick_handler()
            .map_err(|error| VmError::host("cannot install a signal handler")(error.into()))?;
        let mut running = Self {
            fd: vm.fd,
            msrs: vm.msrs,
            control: vm.control,
            threads: Vec::with_capacity(vm.vcpus.len()),
            console: vm.machine.console,
            power: vm.machine.power,
            virtio: vm.machine.virtio,
            pauses: Mutex::new(0),
            shutdown: vm.shutdown,
            shutdown_receiver: vm.shutdown_receiver,
        };
        for vcpu in vm.vcpus {
            let clock = running.msrs.clock().clone();
            let id = vcpu.id().0;
            let filters = vm.filters.clone();
            // The others wait for the boot vCPU's first interrupt.
            let timing = vm.timing.clone().filter(|_| id == 0);
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || {
                    clock.register(VcpuId(id));
                    filters.enter(Role::Vcpu);
                    if let Some(timing) = timing {
                        timing.mark(BootEvent::FirstRun);
                    }
                    vcpu.run();
                });
            // On an error, dropping `running` stops those that run.
            running
                .threads
                .push(thread.map_err(VmError::host("cannot start a vCPU thread"))?);
        }
        Ok(running)
    }

    /// Waits until the guest ends, and stops what is left of it.
    pub fn wait(mut self) -> ShutdownReason {
        let reason = self.shutdown_receiver.wait();
        self.halt();
        if !matches!(reason, ShutdownReason::Stopped) {
            self.console.close(CONSOLE_FLUSH_TIMEOUT);
        }
        reason
    }

    /// Readable once the guest has ended, so that an event loop knows when [`wait`](Self::wait) returns at
    /// once.
    pub fn shutdown_event(&self) -> &EventFd {
        &self.shutdown_receiver.event
    }

    /// Ends the guest at once, as if its power were cut; [`wait`](Self::wait) then gives
    /// [`ShutdownReason::Stopped`] unless the guest ended before.
    pub fn stop(&self) {
        self.shutdown.send(ShutdownReason::Stopped);
    }

    /// Presses the ACPI power button. What follows is the guest's decision.
    pub fn press_power_button(&self) {
        self.power.press_power_button();
    }

    /// Whether a driver in the guest waits for the power button.
    pub fn handles_power_button(&self) -> bool {
        self.power.handles_power_button()
    }

    /// Takes every vCPU out of KVM_RUN, with pending exits completed, then stops the disks and other
    /// virtio devices, and returns once all stand still. Each pause takes its own [`resume`](Self::resume).
    ///
    /// Not for an MSR device to call: its vCPU would wait for itself.
    pub fn pause(&self) {
        let mut pauses = self.pauses();
        *pauses += 1;
        if *pauses == 1 {
            self.pause_vcpus();
            self.virtio.iter().for_each(|device| device.pause());
        }
    }

    /// Lets devices and vCPUs go on, where no other pause is in force. Without a pause it does nothing.
    pub fn resume(&self) {
        let mut pauses = self.pauses();
        if *pauses == 1 {
            self.virtio.iter().for_each(|device| device.resume());
            self.control.end_pause();
        }
        *pauses = pauses.saturating_sub(1);
    }

    fn pauses(&self) -> MutexGuard<'_, usize> {
        // An integer; a panic of a device while it is paused leaves the VM paused.
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause_vcpus(&self) {
        self.control.begin_pause();
        self.kick();
        self.control.wait_parked();
    }

    /// Replaces the MSR filter. All vCPUs leave KVM_RUN, the new filter goes in, they resume; every access
    /// is answered by the old filter or the new. A paused VM stays paused.
    ///
    /// # Errors
    ///
    /// [`InstallError`]; the old filter then stays.
    pub fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), InstallError> {
        self.pause_vcpus();
        let installed = filter.install(&self.fd);
        self.control.end_pause();
        installed
    }

    /// Looks at every vCPU, paused or not, without holding it up. A vCPU that a device holds up for longer than a second
    /// is missing.
    ///
    /// Not for an MSR device to call: its vCPU would wait for itself.
    pub fn vcpu_reports(&self) -> Vec<VcpuReport> {
        self.control.reports(|| self.kick(), REPORT_LIMIT)
    }

    /// The console, for its input.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The bus that answers MSR accesses.
    pub fn msr_bus(&self) -> &Arc<MsrBus> {
        self.msrs.bus()
    }

    fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(kick_signal());
        }
    }

    fn halt(&mut self) {
        self.control.stop();
        self.kick();
        for thread in self.threads.drain(..) {
            // A panic was reported as the reason of the shutdown by the vCPU itself.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for RunningVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningVm")
            .field("msrs", &self.msrs)
            .field("vcpus", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.halt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event loop, an API's thread and a signal handler's share it.
    #[test]
    fn a_running_vm_is_shared_by_threads() {
        fn shared<T: Send + Sync + fmt::Debug>() {}
        shared::<RunningVm>();
    }
}
