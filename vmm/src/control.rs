//! Pausing and stopping vCPUs that spend their time in KVM_RUN.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// Work for the thread of a vCPU, a `V`, done while it stands still.
pub(crate) type Task<V> = Box<dyn FnOnce(&mut V) + Send>;

/// What a vCPU is to do.
pub(crate) enum Command<V> {
    /// Execute the guest.
    Run,
    /// End its thread.
    Stop,
    /// Do this, and ask again.
    Do(Task<V>),
}

/// What all vCPUs of a VM are to do, and how many of them stand still.
pub(crate) struct Control<V> {
    state: Mutex<State<V>>,
    changed: Condvar,
}

struct State<V> {
    stopping: bool,
    /// Pauses in force: the vCPUs stand still until each of them is over.
    pauses: usize,
    /// vCPUs that stand still because of a pause.
    parked: usize,
    /// vCPUs whose threads have not ended.
    alive: usize,
    /// What each vCPU's thread has to do besides; `None` once it has ended.
    tasks: Box<[Option<VecDeque<Task<V>>>]>,
}

impl<V> Control<V> {
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State {
            stopping: false,
            pauses: 0,
            parked: 0,
            alive: vcpus,
            tasks: (0..vcpus).map(|_| Some(VecDeque::new())).collect(),
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
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

    /// Gives a vCPU's thread something to do, paused or not. It learns of it when it is kicked. A vCPU that has ended, or ends
    /// before it comes to it, drops the task.
    pub(crate) fn submit(&self, vcpu: usize, task: Task<V>) {
        let mut state = self.state();
        if let Some(Some(tasks)) = state.tasks.get_mut(vcpu) {
            tasks.push_back(task);
            self.changed.notify_all();
        }
    }

    /// Waits until every vCPU that still lives stands still, or need not.
    pub(crate) fn wait_parked(&self) {
        let waiting = |state: &mut State<V>| {
            state.parked < state.alive && state.pauses > 0 && !state.stopping
        };
        drop(self.wait_while(self.state(), waiting));
    }

    /// What a kicked vCPU does: stands still for as long as it should, then returns what to do.
    pub(crate) fn checkpoint(&self, vcpu: usize) -> Command<V> {
        let mut state = self.state();
        loop {
            if state.stopping {
                return Command::Stop;
            }
            if let Some(task) = state.tasks[vcpu].as_mut().and_then(VecDeque::pop_front) {
                return Command::Do(task);
            }
            if state.pauses == 0 {
                return Command::Run;
            }
            state.parked += 1;
            self.changed.notify_all();
            let waiting = |state: &mut State<V>| {
                let idle = state.tasks[vcpu].as_ref().is_none_or(VecDeque::is_empty);
                state.pauses > 0 && !state.stopping && idle
            };
            state = self.wait_while(state, waiting);
            state.parked -= 1;
        }
    }

    /// What a vCPU's thread does last.
    pub(crate) fn leave(&self, vcpu: usize) {
        let mut state = self.state();
        state.alive -= 1;
        let tasks = state.tasks[vcpu].take();
        self.changed.notify_all();
        drop(state);
        // Whoever waits for one of them learns now that it will not be done.
        drop(tasks);
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State<V>>,
        condition: impl FnMut(&mut State<V>) -> bool,
    ) -> MutexGuard<'a, State<V>> {
        self.changed
            .wait_while(state, condition)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State<V>> {
        // Consistent after every statement, and no task runs while it is held.
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

/// Takes the vCPU of `thread`, which has not been joined, out of KVM_RUN. One that has ended needs no kick.
///
/// A real-time signal needs a place in its user's queue (RLIMIT_SIGPENDING), which other processes may have filled: without
/// one a pause would wait for ever for a vCPU that knows nothing of it.
pub(crate) fn kick(thread: &JoinHandle<()>) {
    // SAFETY: a thread that has not been joined keeps its ID.
    while unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) } == libc::EAGAIN {
        thread::sleep(Duration::from_millis(1));
    }
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    /// Threads that count, as vCPUs execute, and look at the control all the time.
    fn counting(
        control: &Arc<Control<usize>>,
        vcpu: usize,
        count: &Arc<AtomicUsize>,
    ) -> thread::JoinHandle<()> {
        let (control, count) = (control.clone(), count.clone());
        thread::spawn(move || {
            loop {
                match control.checkpoint(vcpu) {
                    Command::Run => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Command::Do(task) => task(&mut vcpu.clone()),
                    Command::Stop => break,
                }
            }
            control.leave(vcpu);
        })
    }

    #[test]
    fn a_task_is_done_by_its_vcpu_paused_or_not_and_dropped_by_one_that_has_ended() {
        let control = Arc::new(Control::new(2));
        let count = Arc::new(AtomicUsize::new(0));
        let threads = [0, 1].map(|vcpu| counting(&control, vcpu, &count));
        let ask = |vcpu: usize| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let task = move |vcpu: &mut usize| sender.send(*vcpu).unwrap();
            control.submit(vcpu, Box::new(task));
            receiver.recv().ok()
        };
        assert_eq!([ask(0), ask(1), ask(2)], [Some(0), Some(1), None]);
        control.begin_pause();
        control.wait_parked();
        let paused_at = count.load(Ordering::Relaxed);
        assert_eq!([ask(1), ask(0)], [Some(1), Some(0)]);
        assert_eq!(count.load(Ordering::Relaxed), paused_at);
        control.wait_parked();
        control.stop();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!([ask(0), ask(1)], [None, None]);
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
    fn a_pause_waits_for_no_vcpu_that_has_ended_nor_for_one_that_ends() {
        let control = Arc::new(Control::<()>::new(1));
        control.leave(0);
        control.begin_pause();
        control.wait_parked();
        let control = Arc::new(Control::<()>::new(1));
        control.begin_pause();
        let waiting = {
            let control = control.clone();
            thread::spawn(move || control.wait_parked())
        };
        control.stop();
        waiting.join().unwrap();
        assert!(matches!(control.checkpoint(0), Command::Stop));
    }

    #[test]
    fn a_kick_waits_for_a_place_in_a_full_queue_of_signals() {
        fn limit(places: libc::rlim_t) -> libc::rlim_t {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: both read and write this struct alone.
            unsafe { libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit) };
            let before = limit.rlim_cur;
            limit.rlim_cur = places;
            // SAFETY: as above.
            unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit) };
            before
        }
        const FULL: Duration = Duration::from_millis(50);
        install_kick_handler().unwrap();
        let waiting = thread::spawn(|| {
            accept_kicks();
            thread::park_timeout(Duration::from_secs(60));
        });
        // Other tests' kicks wait as well.
        let before = limit(0);
        let emptied = thread::spawn(move || {
            thread::sleep(FULL);
            limit(before);
        });
        let begin = Instant::now();
        kick(&waiting);
        let took = begin.elapsed();
        emptied.join().unwrap();
        assert!(took >= FULL / 2, "{took:?}");
        waiting.thread().unpark();
        waiting.join().unwrap();
    }
}
