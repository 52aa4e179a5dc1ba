//! The event loop of `msr-vmm run`: the console's input, signals, and the guest's shutdown.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use msr_kvm::MsrStats;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cli::input::{Escapes, Request};
use crate::cli::terminal::RawTerminal;
use crate::control_socket::{ControlSocket, Files, Server, VmMethods, WaitResult};
use crate::running::RunningVm;
use crate::scenario::{PreparedScenarios, Scenarios};
use crate::shutdown::ShutdownReason;
use crate::trace::LiveTrace;

/// The signals that are read here: those that end a session, and SIGUSR1, which asks what the vCPUs do.
const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
];

const STDIN: u32 = 0;
const SIGNAL: u32 = 1;
const ENDED: u32 = 2;
const INPUT_TAKEN: u32 = 3;

/// Blocks the signals of a session, so that they are read instead of delivered. Belongs before the
/// first thread starts, because threads inherit it.
pub(crate) fn block_signals() -> io::Result<SignalFd> {
    let mask: SigSet = SIGNALS.into_iter().collect();
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Does `work`, while a signal that [`block_signals`] blocked still ends the process, as it does one that has no event
/// loop yet, and SIGUSR1 is answered. A kernel may take seconds to load, and a disk on a network longer to open.
pub(crate) fn interruptible<T>(signals: &SignalFd, work: impl FnOnce() -> T) -> io::Result<T> {
    let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    thread::scope(|scope| {
        let watcher = thread::Builder::new().name("signals".to_owned());
        // SAFETY: `done` is open until after the thread has ended.
        let done_fd = unsafe { BorrowedFd::borrow_raw(done.as_raw_fd()) };
        watcher.spawn_scoped(scope, move || {
            let mut events =
                [signals.as_fd(), done_fd].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            loop {
                while poll(&mut events, PollTimeout::NONE) == Err(Errno::EINTR) {}
                let Ok(Some(info)) = signals.read_signal() else {
                    return;
                };
                match Signal::try_from(info.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGUSR1) => {
                        tell("msr-vmm: the VM is being built: no vCPU runs yet\n");
                    }
                    Ok(signal) => {
                        // Unblocked in this thread and with no handler, it does what it does to any process.
                        let _ = SigSet::from(signal).thread_unblock();
                        let _ = raise(signal);
                    }
                    Err(_) => {}
                }
            }
        })?;
        let result = work();
        // It fails only if the count overflows, which takes more than one write.
        let _ = done.write(1);
        Ok(result)
    })
}

/// What a person can type ahead of a guest that does not read, in bytes; the rest is lost, as a terminal's is.
const TYPED_AHEAD: usize = 4096;

/// Says something to a person at the terminal. With standard error gone nobody is there to hear it.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Has the terminal, where there is one, carry bytes as they are, and says how to get out. Belongs before the
/// guest's first instruction: what the guest writes follows it.
pub(crate) fn open_terminal() -> io::Result<Option<RawTerminal>> {
    let terminal = RawTerminal::enter()?;
    if terminal.is_some() {
        tell(&format!("msr-vmm: {}\r\n", Escapes::BANNER));
    }
    Ok(terminal)
}

type Subscriber<'a> = Rc<RefCell<dyn MutEventSubscriber + 'a>>;

/// Where other processes steer the VM.
pub(crate) struct Control {
    pub(crate) socket: ControlSocket,
    /// What counts the VM's MSR accesses.
    pub(crate) stats: Arc<MsrStats>,
    /// Where the process may make files.
    pub(crate) files: Files,
}

/// What steers the VM besides the person at its console.
pub(crate) struct Steering {
    pub(crate) control: Option<Control>,
    /// The trace that is on, if one is.
    pub(crate) trace: Rc<RefCell<LiveTrace>>,
    /// The scenarios that begin with the VM, where there can be any.
    pub(crate) scenarios: Option<PreparedScenarios>,
}

/// Serves the VM until it ends. `grace` is how long a guest that was asked to switch itself off may take.
pub(crate) fn serve(
    vm: RunningVm,
    terminal: Option<RawTerminal>,
    signals: SignalFd,
    grace: Duration,
    steering: Steering,
) -> io::Result<ShutdownReason> {
    let session = Rc::new(RefCell::new(Session {
        vm: &vm,
        signals,
        escapes: terminal.is_some().then(Escapes::default),
        pending: Vec::new(),
        stdin: Stdin::Pollable,
        grace,
        deadline: None,
        ended: false,
        refused: None,
    }));
    let mut events = EventManager::new().map_err(event_error)?;
    let subscriber: Subscriber<'_> = session.clone();
    events.add_subscriber(subscriber);
    if let Some(error) = session.borrow_mut().refused.take() {
        return Err(error);
    }
    let trace = steering.trace;
    let scenarios = steering
        .scenarios
        .map(|scenarios| Rc::new(RefCell::new(Scenarios::new(&vm, scenarios, trace.clone()))));
    if let Some(scenarios) = &scenarios {
        let subscriber: Subscriber<'_> = scenarios.clone();
        events.add_subscriber(subscriber);
    }
    let server = steering.control.map(|control| {
        let mut methods = VmMethods::new(&vm, control.stats, trace).files(control.files);
        if let Some(scenarios) = &scenarios {
            methods = methods.scenarios(scenarios.clone());
        }
        Rc::new(RefCell::new(Server::new(control.socket, methods)))
    });
    if let Some(server) = &server {
        let subscriber: Subscriber<'_> = server.clone();
        events.add_subscriber(subscriber);
        if let Some(words) = server.borrow().refused() {
            return Err(io::Error::other(format!(
                "cannot serve the control socket: {words}"
            )));
        }
    }
    while !session.borrow().ended {
        let deadline = session.borrow().deadline;
        let grace = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let step = scenarios
            .as_ref()
            .and_then(|scenarios| scenarios.borrow().timeout());
        let reopen = server.as_ref().and_then(|server| server.borrow().timeout());
        let timeouts = grace.into_iter().chain(step).chain(reopen);
        let timeout = timeouts.min().map_or(-1, milliseconds);
        events.run_with_timeout(timeout).map_err(event_error)?;
        session.borrow_mut().check_deadline();
        if let Some(server) = &server {
            server.borrow_mut().run();
        }
        if let Some(scenarios) = &scenarios {
            scenarios.borrow_mut().run();
        }
    }
    drop(events);
    drop(scenarios);
    drop(session);
    // The loop held the other reference.
    let waiting =
        server.and_then(|server| Some(Rc::into_inner(server)?.into_inner().into_waiting()));
    let reason = vm.wait();
    if let Some(waiting) = waiting {
        waiting.tell(&WaitResult::from(&reason));
    }
    Ok(reason)
}

/// A time to wait, for epoll: rounded up, but for one that is over.
fn milliseconds(time: Duration) -> i32 {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds).unwrap_or(i32::MAX)
}

fn event_error(error: event_manager::Error) -> io::Error {
    io::Error::other(format!("cannot wait for events: {error}"))
}

/// What is known of standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stdin {
    /// A terminal, a pipe or a socket: readable when epoll says so.
    Pollable,
    /// A file, which epoll refuses because it always is.
    AlwaysReadable,
    /// At its end.
    Closed,
}

struct Session<'a> {
    vm: &'a RunningVm,
    signals: SignalFd,
    /// Where a person types.
    escapes: Option<Escapes>,
    /// Input the guest has had no room for yet. While there is some, none is read, except from a person, who
    /// may type an escape.
    pending: Vec<u8>,
    stdin: Stdin,
    /// How long a guest that was asked to switch itself off may take.
    grace: Duration,
    /// When a guest that was asked to switch itself off is stopped.
    deadline: Option<Instant>,
    ended: bool,
    /// What the host said where it watches nothing for the session, which then knows neither input nor end.
    refused: Option<io::Error>,
}

impl MutEventSubscriber for Session<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fds = [
            (self.signals.as_raw_fd(), SIGNAL),
            (self.vm.shutdown_event().as_raw_fd(), ENDED),
            (self.vm.console().input_taken().as_raw_fd(), INPUT_TAKEN),
        ];
        for (fd, data) in fds {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                self.refused = Some(event_error(error));
                return;
            }
        }
        match self.watch_stdin(ops) {
            Ok(()) => {}
            // The one that epoll_ctl(2) has for files.
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EPERM => {
                self.stdin = Stdin::AlwaysReadable;
                self.pump(ops);
            }
            Err(error) => self.refused = Some(event_error(error)),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            STDIN => self.read_stdin(ops),
            SIGNAL => self.read_signal(),
            ENDED => self.ended = true,
            _ => {
                // Not readable means that an earlier event was already served.
                let _ = self.vm.console().input_taken().read();
                self.pump(ops);
            }
        }
    }
}

impl Session<'_> {
    fn stdin_events() -> Events {
        let fd: RawFd = io::stdin().as_raw_fd();
        Events::with_data_raw(fd, STDIN, EventSet::IN)
    }

    fn watch_stdin(&self, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        ops.add(Self::stdin_events())
    }

    /// Gives the guest what waits, and goes on reading once it has all of it.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        let taken = self.vm.console().input(&self.pending);
        self.pending.drain(..taken);
        if !self.pending.is_empty() {
            return;
        }
        match self.stdin {
            Stdin::AlwaysReadable => self.read_stdin(ops),
            // Fails where it is watched already.
            Stdin::Pollable => drop(self.watch_stdin(ops)),
            Stdin::Closed => {}
        }
    }

    fn read_stdin(&mut self, ops: &mut EventOps<'_>) {
        let mut typed = [0; 256];
        // Not through `Stdin`, whose buffer would hold back what epoll then no longer tells of.
        let length = match nix::unistd::read(io::stdin(), &mut typed) {
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            Err(_) => 0,
        };
        if length == 0 {
            // The guest goes on without input.
            if self.stdin == Stdin::Pollable {
                drop(ops.remove(Self::stdin_events()));
            }
            self.stdin = Stdin::Closed;
            return;
        }
        let typed = &typed[..length];
        match &mut self.escapes {
            None => self.pending.extend_from_slice(typed),
            Some(escapes) => {
                for request in escapes.take(typed, &mut self.pending) {
                    self.serve_request(request);
                }
                self.pending.truncate(TYPED_AHEAD);
            }
        }
        let taken = self.vm.console().input(&self.pending);
        self.pending.drain(..taken);
        if !self.pending.is_empty() && self.stdin == Stdin::Pollable && self.escapes.is_none() {
            drop(ops.remove(Self::stdin_events()));
        }
    }

    fn serve_request(&mut self, request: Request) {
        match request {
            Request::Quit => self.vm.stop(),
            Request::PowerButton => self.vm.press_power_button(),
            Request::Help => tell(&format!("\r\n{}", Escapes::HELP)),
        }
    }

    fn read_signal(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGUSR1 as u32 {
                self.tell_vcpus();
                continue;
            }
            let polite = info.ssi_signo != Signal::SIGINT as u32;
            if polite && self.deadline.is_none() && self.vm.handles_power_button() {
                log::info!(
                    "asking the guest to switch itself off; a second signal stops it at once"
                );
                self.vm.press_power_button();
                self.deadline = Some(Instant::now() + self.grace);
            } else {
                self.vm.stop();
            }
        }
    }

    /// Shows what each vCPU does, for a person who wonders why the guest is silent.
    fn tell_vcpus(&self) {
        let end = if self.escapes.is_some() { "\r\n" } else { "\n" };
        let mut text = String::new();
        for report in self.vm.vcpu_reports() {
            for line in format!("msr-vmm: {report}").lines() {
                text += &format!("{line}{end}");
            }
        }
        tell(&text);
    }

    fn check_deadline(&mut self) {
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            log::warn!(
                "the guest did not switch itself off within {} s, stopping it",
                self.grace.as_secs()
            );
            self.deadline = None;
            self.vm.stop();
        }
    }
}
