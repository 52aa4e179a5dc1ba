//! How vCPUs that spend their time in KVM_RUN are paused, given something to do, and stopped: what the threads of the
//! vCPUs and those of their clients do with what they share.
//!
//! Nothing here is KVM's or a signal's, and locks come from `super::sync`: `interleavings` compiles this file
//! with locks of its own, and a model of KVM and of signals.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::sync::mpsc::sync_channel;
use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Work for the thread of a vCPU, a `V`, done while it stands still.
pub(crate) type Task<V> = Box<dyn FnOnce(&mut V) + Send>;

/// What a vCPU is to do.
pub(super) enum Command<V> {
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
    pub(super) fn begin_pause(&self) {
        self.state().pauses += 1;
    }

    /// Ends a pause.
    pub(super) fn end_pause(&self) {
        let mut state = self.state();
        state.pauses = state.pauses.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Says that the vCPUs are to end, paused or not. They learn of it when they are kicked.
    pub(super) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }

    /// Gives a vCPU's thread something to do, paused or not. It learns of it when it is kicked. A vCPU that has ended, or ends
    /// before it comes to it, drops the task.
    pub(super) fn submit(&self, vcpu: usize, task: Task<V>) {
        let mut state = self.state();
        if let Some(Some(tasks)) = state.tasks.get_mut(vcpu) {
            tasks.push_back(task);
            self.changed.notify_all();
        }
    }

    /// Waits until every vCPU that still lives stands still, or need not.
    pub(super) fn wait_parked(&self) {
        let waiting = |state: &mut State<V>| {
            state.parked < state.alive && state.pauses > 0 && !state.stopping
        };
        drop(self.wait_while(self.state(), waiting));
    }

    /// What a kicked vCPU does: stands still for as long as it should, then returns what to do.
    pub(super) fn checkpoint(&self, vcpu: usize) -> Command<V> {
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

/// What a vCPU's thread executes.
pub(crate) trait Execute: Sized {
    /// Why it cannot go on.
    type Fault;

    /// Executes the guest until a kick, and completes the exit that was under way.
    ///
    /// # Errors
    ///
    /// Why the guest cannot go on.
    fn execute(&mut self) -> Result<(), Self::Fault>;

    /// Forgets the kicks so far, so that [`execute`](Self::execute) does not return at once.
    fn forget_kicks(&mut self);
}

impl<V: Execute> Control<V> {
    /// What a vCPU's thread does from when it can be kicked: what the control says, until that is to stop.
    ///
    /// A kick before that is lost, so the control is looked at before the guest is executed. Later ones are forgotten before the
    /// look: of one that comes after the look, [`Execute::execute`] knows.
    ///
    /// # Errors
    ///
    /// Why the guest cannot go on.
    pub(crate) fn run(&self, place: usize, vcpu: &mut V) -> Result<(), V::Fault> {
        while self.go_on(place, vcpu) {
            vcpu.execute()?;
            vcpu.forget_kicks();
        }
        Ok(())
    }

    /// Does what there is for this vCPU, and says whether to go on.
    fn go_on(&self, place: usize, vcpu: &mut V) -> bool {
        loop {
            match self.checkpoint(place) {
                Command::Run => return true,
                Command::Stop => return false,
                Command::Do(task) => task(vcpu),
            }
        }
    }
}

/// The thread of a vCPU.
pub(crate) trait Thread {
    /// Has the vCPU look at its control soon. One that has ended needs no kick.
    fn kick(&self);

    /// Waits for the end of the thread.
    fn join(self);
}

/// The threads of a VM's vCPUs, as their clients see them.
pub(crate) struct VcpuThreads<V, T: Thread> {
    control: Arc<Control<V>>,
    threads: Vec<T>,
}

impl<V: 'static, T: Thread> VcpuThreads<V, T> {
    pub(crate) fn new(control: Arc<Control<V>>) -> Self {
        Self {
            control,
            threads: Vec::new(),
        }
    }

    /// The next vCPU's thread.
    pub(crate) fn push(&mut self, thread: T) {
        self.threads.push(thread);
    }

    pub(crate) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Has every vCPU stand still, and returns once all do, with pending exits completed. Each pause takes its own
    /// [`resume`](Self::resume).
    pub(crate) fn pause(&self) {
        self.control.begin_pause();
        self.kick();
        self.control.wait_parked();
    }

    /// Ends a pause.
    pub(crate) fn resume(&self) {
        self.control.end_pause();
    }

    /// Has a vCPU's thread do something while the vCPU stands still, paused or not, and waits for it. None where the vCPU
    /// has ended, or there is none.
    pub(crate) fn on_vcpu<R: Send + 'static>(
        &self,
        place: usize,
        work: impl FnOnce(&mut V) -> R + Send + 'static,
    ) -> Option<R> {
        let thread = self.threads.get(place)?;
        let (sender, receiver) = sync_channel(1);
        // The receiver waits below.
        let task = move |vcpu: &mut V| drop(sender.send(work(vcpu)));
        self.control.submit(place, Box::new(task));
        // A thread that has ended has dropped the task.
        thread.kick();
        receiver.recv().ok()
    }

    /// Has every vCPU's thread do its task while the vCPU stands still, paused or not, and does not wait for it.
    pub(crate) fn on_each(&self, mut task: impl FnMut() -> Task<V>) {
        (0..self.len()).for_each(|place| self.control.submit(place, task()));
        self.kick();
    }

    /// Has every vCPU end, paused or not.
    pub(super) fn stop(&self) {
        self.control.stop();
        self.kick();
    }

    /// Stops every vCPU, and waits for the ends of their threads.
    pub(crate) fn halt(&mut self) {
        self.stop();
        self.threads.drain(..).for_each(T::join);
    }

    fn kick(&self) {
        self.threads.iter().for_each(T::kick);
    }
}
