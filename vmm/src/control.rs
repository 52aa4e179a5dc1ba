//! Pausing and stopping vCPUs that spend their time in KVM_RUN.

use std::cell::Cell;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Execute the guest.
    Run,
    /// Stand still.
    Pause,
    /// End their threads.
    Stop,
}

/// What all vCPUs of a VM are to do, and how many of them stand still.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    command: Command,
    /// vCPUs that stand still because of a pause.
    parked: usize,
    /// vCPUs whose threads have not ended.
    alive: usize,
}

impl Control {
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State {
            command: Command::Run,
            parked: 0,
            alive: vcpus,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Says what is to be done from now on. The vCPUs learn of it when they are kicked.
    pub(crate) fn command(&self, command: Command) {
        let mut state = self.state();
        // A VM that is being stopped stays so.
        if state.command != Command::Stop {
            state.command = command;
            self.changed.notify_all();
        }
    }

    /// Waits until every vCPU that still lives stands still.
    pub(crate) fn wait_parked(&self) {
        let mut state = self.state();
        while state.parked < state.alive && state.command == Command::Pause {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a kicked vCPU does: stands still for as long as it should, then returns whether to go on.
    pub(crate) fn checkpoint(&self) -> Command {
        let mut state = self.state();
        if state.command == Command::Pause {
            state.parked += 1;
            self.changed.notify_all();
            while state.command == Command::Pause {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.parked -= 1;
        }
        state.command
    }

    /// What a vCPU's thread does last.
    pub(crate) fn leave(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
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
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
