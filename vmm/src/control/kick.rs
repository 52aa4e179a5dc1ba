//! The signal that takes a vCPU out of KVM_RUN.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::protocol::Thread;

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

impl Thread for JoinHandle<()> {
    /// Takes the vCPU out of KVM_RUN.
    ///
    /// A real-time signal needs a place in its user's queue (RLIMIT_SIGPENDING), which other processes may have filled:
    /// without one a pause would wait for ever for a vCPU that knows nothing of it.
    fn kick(&self) {
        while send_kick(self) == libc::EAGAIN {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn join(self) {
        // A panic was reported as the reason of the shutdown by the vCPU itself.
        let _ = self.join();
    }
}

/// Sends [`kick_signal`] to a thread, and returns what pthread_kill(3) does.
pub(crate) fn send_kick(thread: &JoinHandle<()>) -> libc::c_int {
    // SAFETY: a thread that has not been joined keeps its ID, and joining takes the handle.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) }
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
