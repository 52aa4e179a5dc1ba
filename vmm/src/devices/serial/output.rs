//! What the guest writes, on its way to a writer that may be slower than the guest, or stuck.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::control::{accept_kicks, install_kick_handler, send_kick};
use crate::sandbox::{Role, ThreadFilters};

/// The most that waits to be written, in bytes.
const CAPACITY: usize = 64 << 10;
/// When so much waits, the guest is told to wait too. The rest is for drivers that write a FIFO's worth, or
/// a line, before they look again.
const FULL: usize = CAPACITY - (4 << 10);
/// How long a writer that would block rests before another try.
const REST: Duration = Duration::from_millis(10);
/// How often it is told that output is lost.
const MAX_TOLD: u32 = 10;

/// A bounded queue, and the thread that takes from it: a vCPU never waits for the writer.
pub(super) struct Output {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The end of the queue that the UART writes to.
pub(super) struct Feed(Arc<Queue>);

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// The guest was told to wait, and is to hear when there is room.
    full: bool,
    /// What the thread is to enter.
    filters: Option<ThreadFilters>,
    /// Nothing more will come.
    closed: bool,
    /// What is left need not be written.
    abandoned: bool,
    /// The thread writes no more.
    finished: bool,
}

/// A queue and the end to write to, as yet without a thread.
pub(super) fn queue() -> (Output, Feed) {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let output = Output {
        queue: queue.clone(),
        thread: Mutex::new(None),
    };
    (output, Feed(queue))
}

impl Output {
    /// Starts the thread that writes to `writer`, and calls `room` when a guest that was told to wait need
    /// wait no longer.
    pub(super) fn start(
        &self,
        writer: Box<dyn Write + Send>,
        room: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        // `close` interrupts a writer that is stuck in a system call.
        install_kick_handler()?;
        let queue = self.queue.clone();
        let thread = thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                accept_kicks();
                queue.write_to(writer, room);
            })?;
        *self.thread() = Some(thread);
        Ok(())
    }

    /// Has the thread enter its filter, before it writes anything.
    pub(super) fn confine(&self, filters: &ThreadFilters) {
        self.queue.state().filters = Some(filters.clone());
        self.queue.changed.notify_all();
    }

    /// Another end of the queue to write to.
    pub(super) fn feed(&self) -> Feed {
        Feed(self.queue.clone())
    }

    /// Whether the guest should wait before it writes more. If so, it will hear when it may go on.
    pub(super) fn is_full(&self) -> bool {
        let mut state = self.queue.state();
        if state.waiting.len() >= FULL {
            state.full = true;
        }
        state.full
    }

    /// Has the rest written and ends the thread; what a writer has not taken by the end of `patience` is lost.
    pub(super) fn close(&self, patience: Duration) {
        let Some(thread) = self.thread().take() else {
            return;
        };
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
        if !self.queue.wait_finished(patience) {
            self.queue.state().abandoned = true;
            self.queue.changed.notify_all();
            let deadline = Instant::now() + Duration::from_millis(200);
            // Once may be too early: the signal does nothing between two system calls.
            while !self.queue.wait_finished(REST) && Instant::now() < deadline {
                send_kick(&thread);
            }
        }
        if self.queue.state().finished {
            // A writer's panic was reported when it happened.
            let _ = thread.join();
        } else {
            log::warn!("the console's writer is stuck and is left behind");
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        let room = CAPACITY - state.waiting.len();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = bytes.len().min(room);
        state.waiting.extend(&bytes[..length]);
        self.0.changed.notify_all();
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn write_to(&self, mut writer: Box<dyn Write + Send>, room: impl Fn()) {
        let finished = Finished(self);
        let mut piece = Vec::with_capacity(256);
        let mut losing = false;
        // An output that fails now and then, as on a disk that is full now and then, is told of so often.
        let mut told = 0;
        while let Some(was_full) = self.take(&mut piece) {
            if was_full {
                room();
            }
            let written = self.write(&mut *writer, &piece);
            if let Err(error) = &written
                && !losing
                && told < MAX_TOLD
            {
                told += 1;
                log::warn!("console output is lost: {error}");
            }
            losing = written.is_err();
        }
        drop(finished);
    }

    /// Waits for bytes and moves them to `piece`, after entering the filter where one is given. Returns whether the guest was told to wait, and `None` at
    /// the end.
    fn take(&self, piece: &mut Vec<u8>) -> Option<bool> {
        let mut state = self.state();
        loop {
            if let Some(filters) = state.filters.take() {
                drop(state);
                filters.enter(Role::Console);
                state = self.state();
                continue;
            }
            if !state.waiting.is_empty() || state.closed {
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.waiting.is_empty() || state.abandoned {
            return None;
        }
        piece.clear();
        piece.extend(state.waiting.drain(..));
        Some(std::mem::take(&mut state.full))
    }

    fn write(&self, writer: &mut dyn Write, mut piece: &[u8]) -> io::Result<()> {
        while !piece.is_empty() && !self.state().abandoned {
            match writer.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => piece = &piece[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(REST),
                Err(error) => return Err(error),
            }
        }
        writer.flush()
    }

    fn wait_finished(&self, patience: Duration) -> bool {
        self.changed
            .wait_timeout_while(self.state(), patience, |state| !state.finished)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .finished
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Consistent after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says so when the thread ends, also by a writer's panic.
struct Finished<'a>(&'a Queue);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.state().finished = true;
        self.0.changed.notify_all();
    }
}
