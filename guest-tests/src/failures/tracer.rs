//! Runs a program under ptrace(2).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;
use syscalls::Sysno;

use super::call::Call;
use super::fault::Fault;

/// Places of registers in `struct user_regs_struct` (arch/x86/include/asm/user_64.h), in bytes.
const RAX: u64 = 10 * 8;
const RDX: u64 = 12 * 8;
const ORIG_RAX: u64 = 15 * 8;

/// Which call fails, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The kind of call.
    pub call: Call,
    /// Which of them in the life of the process, from 0. Threads are not told apart.
    pub number: usize,
    /// What becomes of it.
    pub fault: Fault,
}

impl Point {
    /// Whether a program that goes on as if nothing had happened is the only right answer: transfers that were short, and waits
    /// and transfers that a signal interrupted.
    pub fn must_be_retried(&self) -> bool {
        match self.fault {
            Fault::Short => true,
            Fault::Fails(libc::EINTR) => match self.call.number {
                Sysno::ioctl => self.call.is_kvm_run() || self.call.is_kvm_create_vm(),
                Sysno::fcntl | Sysno::flock | Sysno::connect | Sysno::fsync | Sysno::fdatasync => {
                    false
                }
                _ => true,
            },
            _ => false,
        }
    }
}

/// A system call that a thread makes instead of its first one after it has entered a seccomp filter.
#[derive(Clone, Copy, Debug)]
pub struct Instead<'a> {
    /// The thread's name.
    pub thread: &'a str,
    /// The call, with the arguments of the one that it replaces.
    pub call: Sysno,
}

impl Instead<'_> {
    fn is_due(&self, thread: Pid) -> bool {
        let read = |file: &str| fs::read_to_string(format!("/proc/{thread}/{file}"));
        let named = read("comm").is_ok_and(|name| name.trim_end() == self.thread);
        // SECCOMP_MODE_FILTER.
        named && read("status").is_ok_and(|status| status.contains("\nSeccomp:\t2\n"))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It did not end in time, and was killed.
    Hung,
}

/// What was seen of a process.
#[derive(Debug)]
pub struct Traced {
    /// How it ended.
    pub end: End,
    /// Its calls with the failures that each could have had, in order.
    pub calls: Vec<(Call, Vec<Fault>)>,
    /// Whether the point was reached, or the other call made.
    pub failed: bool,
    /// From its start to its end.
    pub took: Duration,
}

impl Traced {
    /// Every way in which one of its calls could have failed.
    pub fn points(&self) -> Vec<Point> {
        let mut seen = BTreeMap::<&Call, usize>::new();
        let mut points = Vec::new();
        for (call, faults) in &self.calls {
            let number = seen.entry(call).or_default();
            points.extend(faults.iter().map(|fault| Point {
                call: call.clone(),
                number: *number,
                fault: *fault,
            }));
            *number += 1;
        }
        points
    }
}

/// A process that is traced from its first instruction on, and stands before it.
#[derive(Debug)]
pub struct Tracee {
    process: Pid,
    handle: Handle,
}

/// Sends signals to a process, and never to another that has its number.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Tracee {
    /// Starts a program. Of the calling thread, which must have no other children, it is the tracee.
    ///
    /// # Errors
    ///
    /// Where the program cannot be started.
    pub fn start(mut command: Command) -> io::Result<Self> {
        // SAFETY: the closure makes one system call, which is async-signal-safe.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
        let process = Pid::from_raw(command.spawn()?.id().cast_signed());
        // SAFETY: pidfd_open(2) takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just given it to this function alone.
        let handle = Handle(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        Ok(Self { process, handle })
    }

    /// What another thread can send it signals by.
    ///
    /// # Errors
    ///
    /// Where there are no more file descriptors.
    pub fn handle(&self) -> io::Result<Handle> {
        self.handle.0.try_clone().map(Handle)
    }

    /// Runs it to its end, or for `limit`, with the call at `point` failing.
    ///
    /// # Errors
    ///
    /// Where it cannot be traced.
    pub fn run(self, point: Option<&Point>, limit: Duration) -> io::Result<Traced> {
        self.trace(point, None, limit)
    }

    /// Runs it to its end, or for `limit`, with a thread of it making another system call than it was about to.
    ///
    /// # Errors
    ///
    /// Where it cannot be traced.
    pub fn run_with(self, instead: &Instead<'_>, limit: Duration) -> io::Result<Traced> {
        self.trace(None, Some(instead), limit)
    }

    fn trace(
        self,
        point: Option<&Point>,
        instead: Option<&Instead<'_>>,
        limit: Duration,
    ) -> io::Result<Traced> {
        let started = Instant::now();
        let handle = self.handle;
        let (done, ended) = channel::<()>();
        let watchdog = thread::spawn(move || {
            let hung = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if hung {
                handle.kill(libc::SIGKILL);
            }
            hung
        });
        let mut tracer = Tracer {
            process: self.process,
            point,
            instead,
            matching: 0,
            calls: Vec::new(),
            after_main: false,
            failed: false,
            brk: 0,
            threads: HashMap::new(),
        };
        let end = tracer.run();
        drop(done);
        let hung = watchdog.join().unwrap_or(false);
        Ok(Traced {
            end: if hung { End::Hung } else { end? },
            calls: tracer.calls,
            failed: tracer.failed,
            took: started.elapsed(),
        })
    }
}

impl Handle {
    /// Sends a signal. A process that has ended is not told.
    pub fn kill(&self, signal: i32) {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) takes a null pointer for the information of kill(2).
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                none,
                0,
            )
        };
    }
}

/// What is to be done when a call that was tampered with returns.
enum OnExit {
    /// Nothing.
    Nothing,
    /// Give this result.
    Result(i64),
    /// Put back the third argument, and what was in memory.
    Restore {
        rdx: u64,
        memory: Option<(u64, i64)>,
    },
}

struct Tracer<'a> {
    process: Pid,
    point: Option<&'a Point>,
    instead: Option<&'a Instead<'a>>,
    /// Calls of the point's kind so far.
    matching: usize,
    calls: Vec<(Call, Vec<Fault>)>,
    /// Whether the runtimes are done.
    after_main: bool,
    failed: bool,
    /// The end of the heap, which brk(2) gives where it fails.
    brk: i64,
    /// What waits for each thread's return.
    threads: HashMap<Pid, OnExit>,
}

impl Tracer<'_> {
    fn run(&mut self) -> io::Result<End> {
        // After execve; with this option threads are traced from their first instruction on.
        wait(self.process)?;
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(self.process, options)?;
        go_on(self.process, 0)?;
        loop {
            match wait(ANY)? {
                (thread, Event::Ended(end)) if thread == self.process => return Ok(end),
                (thread, Event::Ended(_)) => drop(self.threads.remove(&thread)),
                (thread, Event::Syscall) => {
                    // A thread that is killed meanwhile is told of by the next wait.
                    match self.stopped(thread) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => return Err(error.into()),
                    }
                    go_on(thread, 0)?;
                }
                (thread, Event::Clone) => go_on(thread, 0)?,
                (thread, Event::Signal(signal)) => {
                    // The first stop of a thread is the tracer's own.
                    let new = !self.threads.contains_key(&thread) && thread != self.process;
                    self.threads.entry(thread).or_insert(OnExit::Nothing);
                    let own = new && signal == libc::SIGSTOP;
                    go_on(thread, if own { 0 } else { signal })?;
                }
            }
        }
    }

    /// A thread stands at the entry of a system call or at its end.
    fn stopped(&mut self, thread: Pid) -> nix::Result<()> {
        let info = syscall_info(thread)?;
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: the kernel says that it has filled in this part.
                let entry = unsafe { info.u.entry };
                let action = self.entered(thread, entry.nr, &entry.args)?;
                self.threads.insert(thread, action);
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: likewise.
                let result = unsafe { info.u.exit.sval };
                let action = self.threads.insert(thread, OnExit::Nothing);
                match action {
                    Some(OnExit::Result(value)) => ptrace::write_user(thread, RAX as _, value)?,
                    Some(OnExit::Restore { rdx, memory }) => {
                        ptrace::write_user(thread, RDX as _, rdx as i64)?;
                        if let Some((at, word)) = memory {
                            ptrace::write(thread, at as _, word)?;
                        }
                    }
                    _ => {}
                }
                // Of all results, only this one is wanted again.
                if self.brk == 0 || result >= self.brk {
                    self.note_brk(thread, result)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn note_brk(&mut self, thread: Pid, result: i64) -> nix::Result<()> {
        if ptrace::read_user(thread, ORIG_RAX as _)? == Sysno::brk as i64 {
            self.brk = result;
        }
        Ok(())
    }

    fn entered(&mut self, thread: Pid, number: u64, args: &[u64; 6]) -> nix::Result<OnExit> {
        let Some(number) = Sysno::new(number as usize) else {
            return Ok(OnExit::Nothing);
        };
        if !self.after_main {
            // The last thing that Rust's runtime does before `main` is to handle SIGBUS.
            self.after_main =
                number == Sysno::rt_sigaction && args[0] == libc::SIGBUS as u64 && args[1] != 0;
            return Ok(OnExit::Nothing);
        }
        if let Some(instead) = self.instead {
            if !self.failed && instead.is_due(thread) {
                ptrace::write_user(thread, ORIG_RAX as _, instead.call as i64)?;
                self.failed = true;
            }
            return Ok(OnExit::Nothing);
        }
        let call = Call::of(thread, number, args);
        let Some(point) = self.point else {
            let faults = Fault::of(&call, args);
            self.calls.push((call, faults));
            return Ok(OnExit::Nothing);
        };
        if self.failed || call != point.call {
            return Ok(OnExit::Nothing);
        }
        self.matching += 1;
        if self.matching <= point.number {
            return Ok(OnExit::Nothing);
        }
        self.tamper(thread, number, args, point.fault)
    }

    fn tamper(
        &mut self,
        thread: Pid,
        number: Sysno,
        args: &[u64; 6],
        fault: Fault,
    ) -> nix::Result<OnExit> {
        let action = match fault {
            Fault::Fails(errno) => {
                // A call that does nothing and that every thread in the sandbox may make.
                ptrace::write_user(thread, ORIG_RAX as _, Sysno::getpid as i64)?;
                OnExit::Result(match number {
                    Sysno::brk => self.brk,
                    _ => -i64::from(errno),
                })
            }
            Fault::FailsAfterwards(errno) => OnExit::Result(-i64::from(errno)),
            Fault::Short => match halve(thread, number, args)? {
                Some(restore) => restore,
                // It is too short to be shorter: the next one may not be.
                None => return Ok(OnExit::Nothing),
            },
        };
        self.failed = true;
        Ok(action)
    }
}

/// Halves the length of a transfer, or of its first part with the other parts left out.
fn halve(thread: Pid, number: Sysno, args: &[u64; 6]) -> nix::Result<Option<OnExit>> {
    let rdx = args[2];
    let in_parts = matches!(
        number,
        Sysno::readv
            | Sysno::writev
            | Sysno::preadv
            | Sysno::pwritev
            | Sysno::preadv2
            | Sysno::pwritev2
    );
    if !in_parts {
        if rdx < 2 {
            return Ok(None);
        }
        ptrace::write_user(thread, RDX as _, (rdx / 2) as i64)?;
        return Ok(Some(OnExit::Restore { rdx, memory: None }));
    }
    // `struct iovec`: an address and a length.
    let at = args[1] + 8;
    let length = ptrace::read(thread, at as _)?;
    if length < 2 && rdx < 2 {
        return Ok(None);
    }
    ptrace::write(thread, at as _, (length / 2).max(1))?;
    ptrace::write_user(thread, RDX as _, 1)?;
    let memory = Some((at, length));
    Ok(Some(OnExit::Restore { rdx, memory }))
}

fn syscall_info(thread: Pid) -> nix::Result<libc::ptrace_syscall_info> {
    // SAFETY: all bytes zero are a value of this struct of numbers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread.as_raw(),
            size_of_val(&info),
            &raw mut info,
        )
    };
    Errno::result(result).map(|_| info)
}

/// Any thread that the calling thread traces.
const ANY: Pid = Pid::from_raw(-1);

/// What has happened to a thread.
enum Event {
    Ended(End),
    /// It stands before or after a system call.
    Syscall,
    /// It has started another.
    Clone,
    /// It is about to be given a signal. Real-time signals have no names.
    Signal(i32),
}

fn wait(which: Pid) -> io::Result<(Pid, Event)> {
    let mut status = 0;
    let thread = loop {
        // SAFETY: the kernel writes the status to it.
        let thread = unsafe {
            libc::waitpid(
                which.as_raw(),
                &raw mut status,
                libc::__WALL | libc::__WNOTHREAD,
            )
        };
        match Errno::result(thread) {
            Err(Errno::EINTR) => {}
            other => break Pid::from_raw(other?),
        }
    };
    let event = if libc::WIFEXITED(status) {
        Event::Ended(End::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Event::Ended(End::Killed(libc::WTERMSIG(status)))
    } else if status >> 16 != 0 {
        Event::Clone
    } else {
        match libc::WSTOPSIG(status) {
            // PTRACE_O_TRACESYSGOOD marks them so.
            signal if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
            signal => Event::Signal(signal),
        }
    };
    Ok((thread, event))
}

/// Lets a thread go on to its next stop, with a signal, or with none for 0. One that was killed meanwhile is told of by the
/// next wait.
fn go_on(thread: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_SYSCALL takes a number in the place of its last argument.
    let result = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread.as_raw(), 0, signal) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
