//! A VM whose vCPUs run, and what can be done with it from outside.

use std::fmt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use msr_bus::{MsrBus, VcpuId};
use msr_filter::{FilterConfig, InstallError, MsrFilter};
use msr_kvm::{MsrPlan, VmMsrs, VmMsrsError};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::Images;
use crate::control::{VcpuThreads, install_kick_handler};
use crate::devices::power::PowerManagement;
use crate::devices::serial::Console;
use crate::devices::virtio::{MmioDevice, STALL_LIMIT, Stalled};
use crate::filter_in_force::FilterInForce;
use crate::sandbox::Role;
use crate::shutdown::{ShutdownReason, ShutdownReceiver, ShutdownSender};
use crate::snapshot::SaveContext;
use crate::timing::BootEvent;
use crate::vcpu::Vcpu;
use crate::vcpu_report::VcpuReport;
use crate::vm::{Vm, VmError};

/// How long the console's writer may take over what a guest that ended by itself wrote last.
const CONSOLE_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a vCPU may take to report.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// A vCPU that is not there, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0} any more, or there never was: vCPUs are counted from 0")]
pub struct VcpuGone(pub VcpuId);

/// What is behind it is whole after every statement, so a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle to a running VM. Dropping it stops the VM.
pub struct RunningVm {
    fd: Arc<VmFd>,
    msrs: VmMsrs,
    /// The filter that KVM has.
    in_force: Mutex<Arc<FilterInForce>>,
    started: Instant,
    threads: VcpuThreads<Vcpu, JoinHandle<()>>,
    console: Arc<Console>,
    power: Arc<PowerManagement>,
    virtio: Vec<Arc<MmioDevice>>,
    /// Calls of [`pause`](RunningVm::pause) in force.
    pauses: Mutex<usize>,
    shutdown: ShutdownSender,
    shutdown_receiver: ShutdownReceiver,
    save_context: Arc<SaveContext>,
    /// What was loaded, unless the VM comes from a snapshot.
    images: Option<Images>,
}

impl RunningVm {
    pub(crate) fn start(vm: Vm) -> Result<Self, VmError> {
        install_kick_handler()
            .map_err(|error| VmError::host("cannot install a signal handler")(error.into()))?;
        let mut running = Self {
            fd: vm.fd,
            in_force: Mutex::new(Arc::new(FilterInForce::of(
                vm.msrs.plan(),
                &vm.save_context.config.msr.filter,
            ))),
            msrs: vm.msrs,
            started: Instant::now(),
            threads: VcpuThreads::new(vm.control),
            console: vm.machine.console,
            power: vm.machine.power,
            virtio: vm.machine.virtio,
            pauses: Mutex::new(0),
            shutdown: vm.shutdown,
            shutdown_receiver: vm.shutdown_receiver,
            save_context: vm.save_context,
            images: vm.images,
        };
        running.console.confine(&vm.filters);
        running
            .virtio
            .iter()
            .for_each(|device| device.confine(&vm.filters));
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
        if vm.restored {
            running.virtio.iter().for_each(|device| device.resume());
        }
        Ok(running)
    }

    /// Waits until the guest ends, and stops what is left of it.
    pub fn wait(mut self) -> ShutdownReason {
        let reason = self.shutdown_receiver.wait();
        self.threads.halt();
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
    /// A disk stands still between two system calls. What the host does not finish within [`STALL_LIMIT`] holds up no
    /// pause any longer.
    ///
    /// Not for an MSR device to call: its vCPU would wait for itself.
    ///
    /// # Errors
    ///
    /// [`Stalled`], which names the disk; the VM goes on as it was then.
    pub fn pause(&self) -> Result<(), Stalled> {
        let mut pauses = self.pauses();
        if *pauses == 0 {
            self.threads.pause();
            for vcpu in (0..self.vcpus()).map(VcpuId) {
                // So that a guest with kvmclock does not take the pause for a lockup. One without, and a vCPU that has
                // ended, need nothing.
                let _ = self.on_vcpu(vcpu, |vcpu| vcpu.fd.kvmclock_ctrl());
            }
            if let Err(stalled) = self.pause_devices() {
                self.threads.resume();
                return Err(stalled);
            }
        }
        *pauses += 1;
        Ok(())
    }

    /// All of the virtio devices or none.
    fn pause_devices(&self) -> Result<(), Stalled> {
        let deadline = Instant::now() + STALL_LIMIT;
        for (number, device) in self.virtio.iter().enumerate() {
            if let Err(stalled) = device.pause_until(deadline) {
                let before = &self.virtio[..number];
                before.iter().for_each(|device| device.resume());
                return Err(stalled);
            }
        }
        Ok(())
    }

    /// Lets devices and vCPUs go on, where no other pause is in force. Without a pause it does nothing.
    pub fn resume(&self) {
        let mut pauses = self.pauses();
        if *pauses == 1 {
            self.virtio.iter().for_each(|device| device.resume());
            self.threads.resume();
        }
        *pauses = pauses.saturating_sub(1);
    }

    /// Does something while the virtio devices stand still; the vCPUs may go on, and what they ask of the devices waits.
    pub(crate) fn with_devices_still(&self, work: impl FnOnce()) -> Result<(), Stalled> {
        let pauses = self.pauses();
        if *pauses == 0 {
            self.pause_devices()?;
        }
        work();
        if *pauses == 0 {
            self.virtio.iter().for_each(|device| device.resume());
        }
        Ok(())
    }

    /// A panic of a device while it is paused leaves the VM paused.
    fn pauses(&self) -> MutexGuard<'_, usize> {
        lock(&self.pauses)
    }

    /// Whether a pause is in force.
    pub fn is_paused(&self) -> bool {
        *self.pauses() > 0
    }

    /// Time since the vCPUs were started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        // At most `MAX_CPUS`.
        self.threads.len() as u32
    }

    /// The bus that answers MSR accesses, and the filter that the VM was built with.
    pub fn msr_plan(&self) -> &MsrPlan {
        self.msrs.plan()
    }

    /// The filter that KVM has now.
    pub fn filter_in_force(&self) -> Arc<FilterInForce> {
        lock(&self.in_force).clone()
    }

    /// Has a vCPU's thread do something while the vCPU stands still, paused or not, and waits for it.
    ///
    /// Not for an MSR device to call: its vCPU would wait for itself.
    pub(crate) fn on_vcpu<R: Send + 'static>(
        &self,
        vcpu: VcpuId,
        work: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, VcpuGone> {
        let done = self.threads.on_vcpu(vcpu.0 as usize, work);
        done.ok_or(VcpuGone(vcpu))
    }

    /// Replaces the MSR filter. All vCPUs leave KVM_RUN, the new filter goes in, they resume; every access
    /// is answered by the old filter or the new. A paused VM stays paused.
    ///
    /// # Errors
    ///
    /// [`InstallError`]; the old filter then stays.
    pub fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), InstallError> {
        self.put_in_force(FilterInForce::compiled(filter))
    }

    /// Replaces the configuration's own rules of the filter: what devices claim stays denied, and models and the profile narrow
    /// these as they did the first. The vCPUs stop for it as in [`set_msr_filter`](Self::set_msr_filter).
    ///
    /// # Errors
    ///
    /// [`VmMsrsError::Plan`] for rules that contradict a claim, and [`VmMsrsError::Filter`]; the old filter then stays.
    pub fn set_filter_rules(&self, rules: &FilterConfig) -> Result<(), VmMsrsError> {
        let filter = FilterInForce::with_rules(self.msr_plan(), rules)?;
        Ok(self.put_in_force(filter)?)
    }

    fn put_in_force(&self, filter: FilterInForce) -> Result<(), InstallError> {
        // Held all the time, so that of two threads' filters KVM has the one that is known here.
        let mut in_force = lock(&self.in_force);
        self.threads.pause();
        let installed = filter.filter.install(&self.fd);
        if installed.is_ok() {
            *in_force = Arc::new(filter);
        }
        self.threads.resume();
        installed
    }

    /// Looks at every vCPU, paused or not, without holding it up. A vCPU that a device holds up for longer than a second
    /// is missing.
    ///
    /// Not for an MSR device to call: its vCPU would wait for itself.
    pub fn vcpu_reports(&self) -> Vec<VcpuReport> {
        let deadline = Instant::now() + REPORT_LIMIT;
        let (sender, receiver) = channel();
        self.threads.on_each(|| {
            let sender = sender.clone();
            // Who asked may have given up waiting.
            Box::new(move |vcpu: &mut Vcpu| drop(sender.send(vcpu.report())))
        });
        drop(sender);
        let mut reports = Vec::new();
        // It ends early once every task is done, or dropped by a vCPU that has ended.
        let left = || deadline.saturating_duration_since(Instant::now());
        while let Ok(report) = receiver.recv_timeout(left()) {
            reports.push(report);
        }
        reports.sort_by_key(|report: &VcpuReport| report.vcpu.0);
        reports
    }

    /// The console, for its input.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The bus that answers MSR accesses.
    pub fn msr_bus(&self) -> &Arc<MsrBus> {
        self.msrs.bus()
    }

    pub(crate) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    pub(crate) fn save_context(&self) -> &Arc<SaveContext> {
        &self.save_context
    }

    /// As [`Vm::kernel_build_id`]; none for a VM from a snapshot.
    pub(crate) fn kernel_build_id(&self) -> Option<String> {
        self.images.as_ref()?.build_id(&self.save_context.memory)
    }

    pub(crate) fn power(&self) -> &PowerManagement {
        &self.power
    }

    pub(crate) fn virtio(&self) -> &[Arc<MmioDevice>] {
        &self.virtio
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
        self.threads.halt();
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
