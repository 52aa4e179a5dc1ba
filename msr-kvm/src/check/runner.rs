//! A wall-clock guard: a KVM that hangs is reported, not waited for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

use super::error::TrialError;
use super::guest::{TinyVm, create_machine};
use super::programs::PROGRAMS;
use super::unfiltered::{Unfiltered, unfiltered};

/// How long one step may take. Each takes well under a millisecond on hardware and some in an emulated
/// CPU's nested guest.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long KVM_RUN may take to return once it gets signals.
const GRACE: Duration = Duration::from_secs(1);
/// The time between two signals: one alone may arrive just before KVM_RUN and change nothing.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(10);

/// The signal that takes the guests out of KVM_RUN. Not the one that kicks the vCPUs of a running VM, whose
/// handler this would replace.
fn stop_signal() -> c_int {
    SIGRTMIN() + 1
}

/// The steps: the guests, the machine around a Linux guest, and accesses that a filter denies.
const STEPS: usize = PROGRAMS.len() + 2;

/// What came of the tiny guests, in the order of [`PROGRAMS`], of creating the in-kernel devices, and of accesses that a filter
/// denies.
pub(super) struct Outcomes {
    pub(super) guests: [Result<(), TrialError>; PROGRAMS.len()],
    pub(super) machine: Result<(), TrialError>,
    pub(super) unfiltered: Result<Vec<Unfiltered>, TrialError>,
}

/// Runs everything. It returns even if KVM does not; the thread that is stuck in it is left behind then.
pub(super) fn run_all(kvm: Kvm) -> Outcomes {
    let found = Arc::new(Mutex::new(Vec::new()));
    let into = found.clone();
    let mut steps = run_guarded(TIMEOUT, GRACE, move |report, expired| {
        match TinyVm::new(&kvm) {
            Ok(vm) => {
                for (number, program) in PROGRAMS.iter().enumerate() {
                    let id = number as u64;
                    report(vm.run(id, program, &|| expired(number)));
                }
            }
            Err(error) => PROGRAMS.iter().for_each(|_| report(Err(error.clone()))),
        }
        report(create_machine(&kvm));
        let unfiltered = unfiltered(&kvm, &|| expired(PROGRAMS.len() + 1));
        report(unfiltered.map(|accesses| {
            *into.lock().unwrap_or_else(PoisonError::into_inner) = accesses;
        }));
    })
    .into_iter();
    let mut next = || steps.next().unwrap_or(Err(TrialError::NotTried));
    Outcomes {
        guests: std::array::from_fn(|_| next()),
        machine: next(),
        unfiltered: next()
            .map(|()| std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner))),
    }
}

/// Runs `work` on a thread, and collects what it reports: up to [`STEPS`] outcomes. A step that takes longer
/// than `patience` gets signals, and `expired` with its number becomes true; where that does not end it
/// within `grace`, the rest is given up.
fn run_guarded(
    patience: Duration,
    grace: Duration,
    work: impl FnOnce(&dyn Fn(Result<(), TrialError>), &dyn Fn(usize) -> bool) + Send + 'static,
) -> Vec<Result<(), TrialError>> {
    extern "C" fn ignore(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    let mut outcomes = Vec::with_capacity(STEPS);
    // The handler's only use is to exist: a signal without one would end the process instead of KVM_RUN.
    if let Err(error) = register_signal_handler(stop_signal(), ignore) {
        outcomes.push(Err(TrialError::Ioctl {
            request: "sigaction",
            error,
        }));
        return outcomes;
    }
    let (sender, receiver) = mpsc::channel();
    // One more than the number of the step that has run out of time.
    let expired = Arc::new(AtomicUsize::new(0));
    let thread = thread::spawn({
        let expired = Arc::clone(&expired);
        move || {
            let report = |outcome| {
                // The receiver is gone only after it gave up on this thread.
                let _ = sender.send(outcome);
            };
            // The mask is inherited, and a program may have all signals blocked. It fails for what is no signal.
            let _ = unblock_signal(stop_signal());
            work(&report, &|step| expired.load(Ordering::Acquire) == step + 1);
        }
    });
    while outcomes.len() < STEPS {
        let mut received = receiver.recv_timeout(patience);
        if received == Err(RecvTimeoutError::Timeout) {
            expired.store(outcomes.len() + 1, Ordering::Release);
            let end = Instant::now() + grace;
            while received == Err(RecvTimeoutError::Timeout) && Instant::now() < end {
                // It fails only for a thread that has ended, and then the channel says so.
                let _ = thread.kill(stop_signal());
                received = receiver.recv_timeout(SIGNAL_INTERVAL);
            }
        }
        match received {
            Ok(outcome) => outcomes.push(outcome),
            Err(RecvTimeoutError::Timeout) => {
                outcomes.push(Err(TrialError::Stuck));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);

    #[test]
    fn a_step_that_runs_out_of_time_is_stopped_and_the_next_one_runs() {
        let outcomes = run_guarded(SHORT, Duration::from_secs(10), |report, expired| {
            while !expired(0) {
                // Interrupted by the signal, as KVM_RUN is.
                // SAFETY: no memory is involved.
                unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
            }
            report(Err(TrialError::TimedOut));
            report(Ok(()));
        });
        assert_eq!(outcomes, [Err(TrialError::TimedOut), Ok(())]);
    }

    #[test]
    fn a_step_that_signals_do_not_stop_is_given_up() {
        let outcomes = run_guarded(SHORT, SHORT, |report, _| {
            report(Ok(()));
            thread::sleep(Duration::from_secs(3600));
        });
        assert_eq!(outcomes, [Ok(()), Err(TrialError::Stuck)]);
    }
}
