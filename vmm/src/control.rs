//! Pausing and stopping vCPUs that spend their time in KVM_RUN.

use std::cell::Cell;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use msr_bus::VcpuId;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::vcpu_report::VcpuReport;

/// What a vCPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Execute the guest.
    Run,
    /// End its thread.
    Stop,
}

/// What all vCPUs of a VM are to do, and how many of them stand still.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by who collects reports.
    collecting: Mutex<()>,
}

struct State {
    stopping: bool,
    /// Pauses in force: the vCPUs stand still until each of them is over.
    pauses: usize,
    /// vCPUs that stand still because of a pause.
    parked: usize,
    /// vCPUs whose threads have not ended.
    alive: usize,
    /// By vCPU: whether it owes a report.
    asked: Vec<bool>,
    /// The reports that the last call of [`Control::reports`] asked for, as far as they are there.
    reports: Vec<VcpuReport>,
}

impl Control {
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State {
            stopping: false,
            pauses: 0,
            parked: 0,
            alive: vcpus,
            asked: vec![false; vcpus],
            reports: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            collecting: Mutex::new(()),
        }
    }

    /// Asks every vCPU for a report of itself, by `kick`, and returns those that come within `limit`: one that a device
    /// holds up sends none.
    pub(crate) fn reports(&self, kick: impl FnOnce(), limit: Duration) -> Vec<VcpuReport> {
        // There is nothing in it to be inconsistent.
        let _collecting = self
            .collecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        state.reports.clear();
        state.asked.fill(true);
        drop(state);
        self.changed.notify_all();
        kick();
        let incomplete = |state: &mut State| state.reports.len() < state.alive && !state.stopping;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(self.state(), limit, incomplete)
            .unwrap_or_else(PoisonError::into_inner);
        let mut reports = std::mem::take(&mut state.reports);
        reports.sort_by_key(|report| report.vcpu.0);
        reports
    }

    /// Begins a pause. The vCPUs learn of it when they are kicked.
    pub(crate) fn begin_pause(&self) {
        self.state().pauses += 1;
    }

    /// Ends a pause.
    pub(crate) fn end_pause(&self) {
        let mut state = self.state();
        state.pauses = state.pauses.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Says that the vCPUs are to end, paused or not. They learn of it when they are kicked.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }

    /// Waits until every vCPU that still lives stands still, or need not.
    pub(crate) fn wait_parked(&self) {
        let waiting =
            |state: &mut State| state.parked < state.alive && state.pauses > 0 && !state.stopping;
        drop(self.wait_while(self.state(), waiting));
    }

    /// What a kicked vCPU does: reports where it is asked to, stands still for as long as it should, then returns whether
    /// to go on.
    ///
    /// `pausing` is called before it stands still because of a pause.
    pub(crate) fn checkpoint(
        &self,
        vcpu: VcpuId,
        report: impl Fn() -> VcpuReport,
        pausing: impl FnOnce(),
    ) -> Command {
        let vcpu = vcpu.0 as usize;
        let paused = |state: &State| state.pauses > 0 && !state.stopping;
        let mut state = self.state();
        if paused(&state) {
            pausing();
        }
        loop {
            if std::mem::take(&mut state.asked[vcpu]) {
                state.reports.push(report());
                self.changed.notify_all();
            }
            if !paused(&state) {
                break;
            }
            state.parked += 1;
            self.changed.notify_all();
            state = self.wait_while(state, |state| paused(state) && !state.asked[vcpu]);
            state.parked -= 1;
        }
        if state.stopping {
            Command::Stop
        } else {
            Command::Run
        }
    }

    /// What a vCPU's thread does last.
    pub(crate) fn leave(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed
            .wait_while(state, condition)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain integers that are consistent after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The real-time signal that takes a vCPU out of KVM_RUN.
pub(crate) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`], once for the process.
pub(crate) fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(kick_signal(), kicked)
}

/// Lets [`kick_signal`] reach the calling thread, which inherited the signal mask of whoever started it: a
/// program that takes its signals from a signalfd blocks them all.
pub(crate) fn accept_kicks() {
    // It fails for a number that is no signal, and every Linux has SIGRTMIN.
    if let Err(error) = unblock_signal(kick_signal()) {
        log::error!("cannot unblock signal {}: {error:?}", kick_signal());
    }
}

/// The signal alone is lost when it arrives between a look at the control and the entry into KVM_RUN.
/// With `immediate_exit` set, that KVM_RUN returns at once (Documentation/virt/kvm/api.rst, section 5).
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Kickable` keeps the pointer in this thread's variable only while the vCPU's `kvm_run`
        // is mapped, and the handler runs on the same thread, so nothing is written at the same time.
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, kicks of this thread reach `fd`.
pub(crate) struct Kickable;

impl Kickable {
    /// # Safety
    ///
    /// `fd` must live at least as long as the value returned, and both stay on this thread.
    pub(crate) unsafe fn new(fd: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        accept_kicks();
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use crate::fault::VcpuRegisters;
    use crate::vcpu_report::Activity;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn report(vcpu: u32) -> VcpuReport {
        VcpuReport {
            vcpu: VcpuId(vcpu),
            activity: Activity::Running,
            exits: 7,
            registers: VcpuRegisters {
                registers: None,
                instruction: Vec::new(),
            },
        }
    }

    /// A thread that counts, as a vCPU executes, and looks at the control all the time.
    fn counting(
        control: &Arc<Control>,
        vcpu: u32,
        count: &Arc<AtomicUsize>,
    ) -> thread::JoinHandle<()> {
        let (control, count) = (control.clone(), count.clone());
        thread::spawn(move || {
            while control.checkpoint(VcpuId(vcpu), || report(vcpu), || {}) == Command::Run {
                count.fetch_add(1, Ordering::Relaxed);
            }
            control.leave();
        })
    }

    #[test]
    fn nobody_runs_until_every_pause_is_over() {
        let control = Arc::new(Control::new(2));
        let count = Arc::new(AtomicUsize::new(0));
        control.begin_pause();
        let threads = [0, 1].map(|vcpu| counting(&control, vcpu, &count));
        control.wait_parked();
        for _ in 0..1000 {
            // A second pause within the first, as the filter's replacement in a paused VM is.
            control.begin_pause();
            control.wait_parked();
            control.end_pause();
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
        control.end_pause();
        while count.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        control.begin_pause();
        control.wait_parked();
        let paused_at = count.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(count.load(Ordering::Relaxed), paused_at);
        control.stop();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn every_vcpu_that_lives_reports_whether_it_runs_or_is_paused() {
        const LONG: Duration = Duration::from_secs(60);
        let control = Arc::new(Control::new(3));
        let count = Arc::new(AtomicUsize::new(0));
        // The third has ended.
        control.leave();
        let threads = [0, 1].map(|vcpu| counting(&control, vcpu, &count));
        let vcpus = || -> Vec<u32> {
            let reports = control.reports(|| {}, LONG);
            reports.iter().map(|report| report.vcpu.0).collect()
        };
        assert_eq!(vcpus(), [0, 1]);
        control.begin_pause();
        control.wait_parked();
        let paused_at = count.load(Ordering::Relaxed);
        assert_eq!(vcpus(), [0, 1]);
        control.wait_parked();
        assert_eq!(count.load(Ordering::Relaxed), paused_at);
        control.stop();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn reports_that_do_not_come_are_not_waited_for() {
        let control = Control::new(1);
        assert!(control.reports(|| {}, Duration::from_millis(1)).is_empty());
    }

    #[test]
    fn a_pause_waits_for_no_vcpu_that_has_ended_nor_for_one_that_ends() {
        let control = Arc::new(Control::new(1));
        control.leave();
        control.begin_pause();
        control.wait_parked();
        let control = Arc::new(Control::new(1));
        control.begin_pause();
        let waiting = {
            let control = control.clone();
            thread::spawn(move || control.wait_parked())
        };
        control.stop();
        waiting.join().unwrap();
        let told = control.checkpoint(VcpuId(0), || report(0), || {});
        assert_eq!(told, Command::Stop);
    }
}
