//! The thread that serves a device's queues.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{DriverLog, QueueHandler, Served};
use super::notifier::Notifier;
use super::stalled::STALL_LIMIT;
use crate::memory::GuestMemoryMmap;
use crate::sandbox::{Role, ThreadFilters};

/// A device's thread, which lives as long as the device does: a vCPU thread, whose registers start and stop the work,
/// need not be allowed to create threads.
pub(super) struct Worker {
    stop: Arc<Stop>,
    /// Dropped to end the thread.
    work: Option<Sender<Work>>,
    done: Receiver<Service>,
    working: bool,
    /// It has been told to stop and has not answered.
    stopping: bool,
    /// How long its end is waited for where it is dropped.
    limit: Duration,
    thread: Option<JoinHandle<()>>,
}

/// What a worker's thread is told.
enum Work {
    /// To enter its filter.
    Confine(ThreadFilters, Role),
    /// To serve a device's queues.
    Serve(Service),
}

/// The thread has not stopped in the time that it was given: a system call of its request does not return.
#[derive(Debug)]
pub(super) struct NotStopped;

/// How a worker is told to stop: the flag for requests that take long, the event for the wait.
///
/// Who said stop may take it back, and the thread may heed it at the same moment. One of the two finds it said; the other then
/// knows what has become of it.
#[derive(Debug)]
struct Stop {
    said: Mutex<bool>,
    flag: AtomicBool,
    event: EventFd,
}

impl Stop {
    fn say(&self) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        *said = true;
        self.flag.store(true, Ordering::Release);
        // It fails only if the count overflows, which takes more than one write.
        let _ = self.event.write(1);
    }

    /// Makes it unsaid, by heeding it or by taking it back. Not where it is already.
    fn take(&self) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *said);
        if taken {
            self.flag.store(false, Ordering::Release);
            let _ = self.event.read();
        }
        taken
    }
}

impl Worker {
    /// Starts a thread called `name` for a device of so many queues. It has nothing to do yet.
    pub(super) fn new(name: &str, queues: usize) -> io::Result<Self> {
        let stop = Arc::new(Stop {
            said: Mutex::new(false),
            flag: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        // One event for each queue and one to stop.
        let mut events = EventManager::new_with_capacity(queues + 1).map_err(io::Error::other)?;
        let (work, to_do) = channel::<Work>();
        let (give_back, done) = channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                block_signals();
                while let Ok(work) = to_do.recv() {
                    let mut service = match work {
                        Work::Confine(filters, role) => {
                            filters.enter(role);
                            continue;
                        }
                        Work::Serve(service) => service,
                    };
                    service.stop = Some(Arc::clone(&stopped));
                    let Some(mut service) = serve(service, &stopped, &mut events) else {
                        return;
                    };
                    service.stop = None;
                    if give_back.send(service).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            stop,
            work: Some(work),
            done,
            working: false,
            stopping: false,
            limit: STALL_LIMIT,
            thread: Some(thread),
        })
    }

    /// Has the thread enter its filter, before it serves anything else.
    pub(super) fn confine(&self, filters: &ThreadFilters, role: Role) {
        if let Some(work) = &self.work {
            // A thread that is gone does nothing any more.
            let _ = work.send(Work::Confine(filters.clone(), role));
        }
    }

    /// Has the thread serve what is in the queues now, and then after each kick.
    ///
    /// # Errors
    ///
    /// Where the thread has panicked.
    pub(super) fn start(&mut self, service: Service) -> io::Result<()> {
        let gone = || io::Error::other("the device's thread is gone");
        let work = self.work.as_ref().ok_or_else(gone)?;
        work.send(Work::Serve(service)).map_err(|_| gone())?;
        self.working = true;
        Ok(())
    }

    /// Whether the thread has something to do.
    pub(super) fn is_working(&self) -> bool {
        self.working
    }

    /// Stops the work and returns what the thread was given, its queues as they are now; nothing if
    /// it panicked.
    ///
    /// A request that takes long is abandoned and stays in the queue.
    ///
    /// # Errors
    ///
    /// Where the thread has not stopped until `deadline`. It still is to, unless [`go_on`](Self::go_on) says otherwise; to
    /// see whether it has, call this again.
    pub(super) fn stop(&mut self, deadline: Instant) -> Result<Option<Service>, NotStopped> {
        if !std::mem::replace(&mut self.stopping, true) {
            self.stop.say();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let stopped = match self.done.recv_timeout(left) {
            Ok(service) => Some(service),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => return Err(NotStopped),
        };
        (self.working, self.stopping) = (false, false);
        Ok(stopped)
    }

    /// After a [`stop`](Self::stop) in vain: has the thread go on. Where it has stopped just now, what it was given.
    pub(super) fn go_on(&mut self) -> Option<Option<Service>> {
        self.stopping = false;
        if self.stop.take() {
            return None;
        }
        self.working = false;
        // Nothing is between its heeding the word and its giving back.
        Some(self.done.recv().ok())
    }

    /// Sets how long the end of the thread is waited for where this is dropped.
    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.work = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.working && self.stop(Instant::now() + self.limit).is_err() {
            // What it uses is its own, or shared, until the host answers.
            let name = thread.thread().name().unwrap_or_default();
            log::warn!(
                "the thread {name} is left behind: the host has not finished its request for {} s",
                self.limit.as_secs()
            );
            return;
        }
        // Its panic was reported when it happened.
        let _ = thread.join();
    }
}

/// How often a service whose events cannot be watched looks whether it is to stop, in milliseconds.
const DEAF_WAIT: i32 = 20;

/// Far in the future.
const FAR: Duration = Duration::from_secs(1 << 32);

/// Serves until the service is told to stop, and returns it.
fn serve(mut service: Service, stop: &Stop, events: &mut EventManager<Service>) -> Option<Service> {
    loop {
        let (returned, is_deaf) = serve_until_told(service, events);
        service = returned?;
        // It may have been taken back meanwhile.
        if stop.take() || is_deaf {
            return Some(service);
        }
    }
}

/// Serves until the service sees that it is to stop, or until the host lets it wait for nothing any more, which the second value says.
fn serve_until_told(
    mut service: Service,
    events: &mut EventManager<Service>,
) -> (Option<Service>, bool) {
    service.serve_all();
    let id = events.add_subscriber(service);
    let mut is_deaf = false;
    loop {
        let running = events.subscriber_mut(id).is_ok_and(|s| !s.stopping());
        if !running {
            break;
        }
        let timeout = events.subscriber_mut(id).map_or(0, |s| s.timeout());
        if let Err(error) = events.run_with_timeout(timeout) {
            log::error!("a virtio device cannot wait for its driver: {error}");
            is_deaf = true;
            break;
        }
        if let Ok(service) = events.subscriber_mut(id)
            && service.is_due()
        {
            service.serve_all();
        }
    }
    (events.remove_subscriber(id).ok(), is_deaf)
}

/// Signals are for the threads that wait for them; this one may have been started by any.
pub(super) fn block_signals() {
    // SAFETY: an all-zero sigset_t is a valid value, sigfillset and sigdelset write only to it, and
    // pthread_sigmask reads it and changes the calling thread's mask alone.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        // What the thread itself causes must reach its handler; where it is blocked, the kernel kills at once.
        libc::sigdelset(&raw mut all, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// The queues of a device with what is needed to serve them.
pub(super) struct Service {
    pub(super) driver_log: DriverLog,
    pub(super) mem: Arc<GuestMemoryMmap>,
    pub(super) queues: Vec<Queue>,
    pub(super) kicks: Arc<[EventFd]>,
    pub(super) handler: Box<dyn QueueHandler>,
    pub(super) notifier: Arc<Notifier>,
    stop: Option<Arc<Stop>>,
    broken: bool,
    /// The host refused to watch an event: what tells it to stop may be among those.
    deaf: bool,
    /// When the request at the front of a queue may be served, which is to wait.
    not_before: Option<Instant>,
}

impl Service {
    pub(super) fn new(
        driver_log: DriverLog,
        mem: Arc<GuestMemoryMmap>,
        queues: Vec<Queue>,
        kicks: Arc<[EventFd]>,
        handler: Box<dyn QueueHandler>,
        notifier: Arc<Notifier>,
    ) -> Self {
        Self {
            driver_log,
            mem,
            queues,
            kicks,
            handler,
            notifier,
            stop: None,
            broken: false,
            deaf: false,
            not_before: None,
        }
    }

    /// How long to wait for events, in the milliseconds of epoll_wait(2).
    fn timeout(&self) -> i32 {
        let left = self
            .not_before
            .map(|then| then.saturating_duration_since(Instant::now()));
        let left = left.map(|left| {
            let milliseconds = left.as_nanos().div_ceil(1_000_000);
            i32::try_from(milliseconds).unwrap_or(i32::MAX)
        });
        // One that cannot be woken looks from time to time.
        let look = self.deaf.then_some(DEAF_WAIT);
        left.into_iter().chain(look).min().unwrap_or(-1)
    }

    /// Whether the time of a request that had to wait has come.
    fn is_due(&mut self) -> bool {
        self.not_before
            .take_if(|then| Instant::now() >= *then)
            .is_some()
    }

    fn stopping(&self) -> bool {
        self.stop
            .as_ref()
            .is_none_or(|stop| stop.flag.load(Ordering::Acquire))
    }

    fn serve_all(&mut self) {
        for index in 0..self.queues.len() {
            self.serve(index);
        }
    }

    /// Serves the queue with number `index` until it is empty. A queue that cannot be worked with
    /// ends all work: the driver is told that the device needs a reset.
    fn serve(&mut self, index: usize) {
        if self.broken || self.not_before.is_some() || !self.queues[index].ready() {
            return;
        }
        if let Err(error) = self.drain(index) {
            self.driver_log
                .log(format_args!("queue {index} needs a reset: {error}"));
            self.broken = true;
            self.notifier.needs_reset();
        }
    }

    fn drain(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(stop) = &self.stop else {
            return Ok(());
        };
        let mem = &*self.mem;
        let queue = &mut self.queues[index];
        loop {
            queue.disable_notification(mem)?;
            while !stop.flag.load(Ordering::Acquire) {
                let Some(chain) = queue.iter(mem)?.next() else {
                    break;
                };
                let head = chain.head_index();
                // `add_used` refuses it too, and logs an error each time.
                if head >= queue.size() {
                    return Err(QueueError::InvalidDescriptorIndex);
                }
                match self.handler.serve(index, chain, &stop.flag) {
                    Served::Done(written) => queue.add_used(mem, head, written)?,
                    Served::Abandoned => {
                        queue.go_to_previous_position();
                        break;
                    }
                    Served::NotYet(wait) => {
                        queue.go_to_previous_position();
                        // A time that cannot be counted to does not come.
                        let now = Instant::now();
                        self.not_before = now.checked_add(wait).or(now.checked_add(FAR));
                        // Kicks are not asked for meanwhile: the queue is looked at then.
                        return Ok(());
                    }
                }
                // After each request and not once for all: the next may take long, and a driver
                // that gets too many interrupts says so in the ring.
                if queue.needs_notification(mem)? {
                    self.notifier.used_buffers();
                }
            }
            let more = queue.enable_notification(mem)?;
            if !more || stop.flag.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        self.deaf = false;
        let kicks = (0u32..).zip(self.kicks.iter());
        let kicks = kicks.map(|(index, kick)| Events::with_data(kick, index, EventSet::IN));
        let stop = self.stop.iter();
        let stop = stop.map(|stop| Events::with_data(&stop.event, u32::MAX, EventSet::IN));
        for events in kicks.chain(stop) {
            if let Err(error) = ops.add(events) {
                self.driver_log
                    .log(format_args!("cannot wait for the driver: {error}"));
                self.broken = true;
                self.deaf = true;
                self.notifier.needs_reset();
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let index = events.data() as usize;
        // The stop event has no queue: the loop sees the flag.
        if let Some(kick) = self.kicks.get(index) {
            // It may have been read already, and what counts is the queue.
            let _ = kick.read();
            self.serve(index);
        }
    }
}
