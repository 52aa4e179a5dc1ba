//! Flushes that nobody has to wait for who must not.
//!
//! fdatasync(2) takes as long as the host needs to write what the guest has written, which is the guest's to choose,
//! and no signal ends it. So a thread of the disk's own calls it, and whoever wants the flush can stop waiting.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::devices::virtio::worker::block_signals;
use crate::sandbox::{Role, ThreadFilters};

/// How often a waiter looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(5);

/// Brings what has been written to stable storage.
pub(super) type SyncFn = Box<dyn Fn() -> io::Result<()> + Send>;

/// A thread that flushes when it is asked to. Dropping it lets a flush that is under way end by itself.
#[derive(Debug)]
pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    step: Step,
    /// What a flush met whose waiter had left: the next waiter is told, as the kernel tells of it once only.
    missed: Option<io::Error>,
    /// What the thread is to enter.
    filters: Option<ThreadFilters>,
    closed: bool,
}

#[derive(Debug, Default)]
enum Step {
    /// Nothing is to be done.
    #[default]
    Idle,
    /// Somebody waits for a flush that has not begun.
    Asked,
    /// A flush is under way.
    Busy,
    /// It is done.
    Done(io::Result<()>),
}

/// Why a flush did not come to its end.
#[derive(Debug)]
pub(super) enum FlushError {
    /// The waiter was told to stop.
    Stopped,
    /// The host could not flush.
    Io(io::Error),
}

impl Flusher {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Where the host has no more threads.
    pub(super) fn start(sync: SyncFn) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        let thread = thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || {
                block_signals();
                serving.serve(&sync);
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Has the thread enter its filter, before it flushes anything.
    pub(super) fn confine(&self, filters: &ThreadFilters) {
        self.shared.state().filters = Some(filters.clone());
        self.shared.changed.notify_all();
    }

    /// Has everything flushed that was written before, and waits for it until `stop` is set.
    ///
    /// # Errors
    ///
    /// [`FlushError`]; a flush that was begun goes on then.
    pub(super) fn flush(&self, stop: &AtomicBool) -> Result<(), FlushError> {
        // One that is under way may have begun before the last write.
        let mut state = self
            .shared
            .wait_while(stop, |state| matches!(state.step, Step::Busy))?;
        if let Step::Done(Err(error)) = std::mem::take(&mut state.step) {
            state.missed = Some(error);
        }
        if let Some(error) = state.missed.take() {
            return Err(FlushError::Io(error));
        }
        state.step = Step::Asked;
        self.shared.changed.notify_all();
        drop(state);
        let mut state = self
            .shared
            .wait_while(stop, |state| !matches!(state.step, Step::Done(_)))?;
        match std::mem::take(&mut state.step) {
            Step::Done(result) => result.map_err(FlushError::Io),
            _ => unreachable!("it was waited for"),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        let busy = matches!(state.step, Step::Busy);
        drop(state);
        self.shared.changed.notify_all();
        // A flush that is under way ends by itself, and with it the thread, which keeps the disk open until then.
        if let Some(thread) = self.thread.take()
            && !busy
        {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, sync: &SyncFn) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            if let Some(filters) = state.filters.take() {
                drop(state);
                filters.enter(Role::Flush);
                state = self.state();
                continue;
            }
            if !matches!(state.step, Step::Asked) {
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.step = Step::Busy;
            drop(state);
            let result = sync();
            state = self.state();
            state.step = Step::Done(result);
            self.changed.notify_all();
        }
    }

    fn wait_while(
        &self,
        stop: &AtomicBool,
        condition: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'_, State>, FlushError> {
        let mut state = self.state();
        while condition(&state) {
            if stop.load(Ordering::Acquire) {
                return Err(FlushError::Stopped);
            }
            let woken = self.changed.wait_timeout(state, LOOK);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Consistent after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);
    static STOP: AtomicBool = AtomicBool::new(true);

    /// A flusher whose flushes begin by saying so and end as they are told.
    fn gated() -> (Flusher, Receiver<()>, Sender<io::Result<()>>) {
        let (begin, begun) = channel();
        let (end, ended) = channel();
        let sync = move || {
            begin.send(()).unwrap();
            ended.recv().unwrap()
        };
        (Flusher::start(Box::new(sync)).unwrap(), begun, end)
    }

    #[test]
    fn a_flush_is_waited_for() {
        let (flusher, begun, end) = gated();
        end.send(Ok(())).unwrap();
        flusher.flush(&GO_ON).unwrap();
        end.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(matches!(flusher.flush(&GO_ON), Err(FlushError::Io(_))));
        end.send(Ok(())).unwrap();
        flusher.flush(&GO_ON).unwrap();
        assert_eq!(begun.try_iter().count(), 3);
    }

    #[test]
    fn who_is_to_stop_does_not_wait_and_what_the_flush_met_is_told_later() {
        let (flusher, begun, end) = gated();
        assert!(matches!(flusher.flush(&STOP), Err(FlushError::Stopped)));
        begun.recv().unwrap();
        assert!(matches!(flusher.flush(&STOP), Err(FlushError::Stopped)));
        end.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        let told = flusher.flush(&GO_ON);
        assert!(
            matches!(told, Err(FlushError::Io(error)) if error.kind() == io::ErrorKind::StorageFull)
        );
        end.send(Ok(())).unwrap();
        flusher.flush(&GO_ON).unwrap();
    }

    #[test]
    fn dropping_it_waits_for_no_flush() {
        let (flusher, begun, end) = gated();
        assert!(matches!(flusher.flush(&STOP), Err(FlushError::Stopped)));
        begun.recv().unwrap();
        drop(flusher);
        end.send(Ok(())).unwrap();
    }
}
