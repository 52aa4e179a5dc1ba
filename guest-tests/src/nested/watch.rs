//! What is heard of an outer VM while it runs: its init's events, its kernel's console and its program's output. It says
//! the stages, passes the output on, and ends a VM that gives no sign of life, takes too long, or has a program that
//! waits for ever.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::control::Event;
use super::error::OuterError;
use super::qemu::Qemu;

/// What happens to what the program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// It is passed on as it comes.
    Streamed,
    /// It is passed on by whole lines: other outer VMs write too.
    Lines,
    /// Nobody sees it.
    Hidden,
}

/// How often the time that passed is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How much of the kernel's console an error shows.
const CONSOLE_TAIL_LINES: usize = 60;

/// Says on standard error what an outer VM does, with its name if it has one.
pub(super) struct Progress(pub(super) Option<String>);

impl Progress {
    /// One line, apart from the output of what runs in the VM.
    pub(super) fn say(&self, text: std::fmt::Arguments<'_>) {
        match &self.0 {
            Some(name) => eprintln!("outer VM of {name}: {text}"),
            None => eprintln!("outer VM: {text}"),
        }
    }
}

/// The threads that read QEMU's pipes, and what they have seen.
pub(super) struct Watch<'a> {
    qemu: Qemu,
    events: mpsc::Receiver<Event>,
    console: thread::JoinHandle<String>,
    output: thread::JoinHandle<()>,
    progress: &'a Progress,
    /// When there was something from the VM last.
    alive: Alive,
}

/// When there was a sign of life last.
#[derive(Clone)]
struct Alive(Arc<Mutex<Instant>>);

impl Alive {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn mark(&self) {
        // An instant is whole after every statement.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn elapsed(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

impl<'a> Watch<'a> {
    pub(super) fn over(
        qemu: Qemu,
        verbose: bool,
        how: Output,
        progress: &'a Progress,
    ) -> Result<Self, OuterError> {
        let (sender, events) = mpsc::channel();
        let control = qemu.control.try_clone().map_err(OuterError::Qemu)?;
        let console = qemu.console.try_clone().map_err(OuterError::Qemu)?;
        let output = qemu.output.try_clone().map_err(OuterError::Qemu)?;
        let alive = Alive::new();
        let (events_alive, console_alive) = (alive.clone(), alive.clone());
        thread::spawn(move || forward_events(control, &sender, &events_alive));
        Ok(Self {
            qemu,
            events,
            alive,
            console: thread::spawn(move || collect_console(console, verbose, &console_alive)),
            progress,
            output: thread::spawn(move || match how {
                Output::Streamed => forward_output(output),
                Output::Lines => forward_lines(output),
                // Read, so that its writer never waits.
                Output::Hidden => drop(io::copy(&mut &output, &mut io::sink())),
            }),
        })
    }

    /// Waits until the init, which has the kernel tell what its tasks wait for, has ended the VM; for so long at most, as
    /// nothing is sure in a VM that hangs.
    fn let_the_kernel_speak(&self, at_most: Duration) {
        let start = Instant::now();
        while self.events.recv_timeout(LOOK) != Err(RecvTimeoutError::Disconnected)
            && start.elapsed() < at_most
        {}
    }

    pub(super) fn until_the_end(
        mut self,
        started: Instant,
        limit: Duration,
        silence: Duration,
    ) -> Result<u8, OuterError> {
        let mut stage = "its start";
        let mut status = None;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let elapsed = || format!("{:.1} s", started.elapsed().as_secs_f32());
            match self.events.recv_timeout(left.min(LOOK)) {
                Ok(Event::Alive) => {}
                Ok(Event::Up) => {
                    stage = "the boot of its kernel";
                    self.progress.say(format_args!("kernel up, {}", elapsed()));
                }
                Ok(Event::Ready) => {
                    stage = "the start of the program";
                    self.progress
                        .say(format_args!("program starts, {}", elapsed()));
                }
                Ok(Event::Exited(code)) => {
                    status = Some(Ok(code));
                    self.progress
                        .say(format_args!("program exited with {code}, {}", elapsed()));
                }
                Ok(Event::Signalled(signal)) => {
                    status = Some(Ok(128 + signal));
                    self.progress.say(format_args!(
                        "program killed by signal {signal}, {}",
                        elapsed()
                    ));
                }
                Ok(Event::Stuck(seconds)) => {
                    let registers = self.qemu.registers();
                    self.let_the_kernel_speak(silence);
                    drop(self.qemu);
                    let console = self.console.join().unwrap_or_default();
                    return Err(OuterError::Stuck {
                        seconds,
                        registers,
                        console,
                    });
                }
                Ok(Event::Failed(text)) => status = Some(Err(OuterError::Init(text))),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.alive.elapsed() > silence => {
                    let silent = self.alive.elapsed();
                    let registers = self.qemu.registers();
                    drop(self.qemu);
                    let console = tail(&self.console.join().unwrap_or_default());
                    return Err(OuterError::Silent {
                        silent,
                        stage,
                        registers,
                        console,
                    });
                }
                Err(RecvTimeoutError::Timeout) if started.elapsed() < limit => {}
                Err(RecvTimeoutError::Timeout) => {
                    drop(self.qemu);
                    let console = tail(&self.console.join().unwrap_or_default());
                    return Err(OuterError::TimedOut { limit, console });
                }
            }
        }
        let qemu = self.qemu.wait().map_err(OuterError::Qemu)?;
        // A panic in a reading thread was printed by it; what it had read is lost.
        let _ = self.output.join();
        let console = self.console.join().unwrap_or_default();
        status.unwrap_or_else(|| {
            Err(OuterError::NoStatus {
                stage,
                qemu: qemu.to_string(),
                console: tail(&console),
            })
        })
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n")
}

fn forward_events(control: impl Read, events: &Sender<Event>, alive: &Alive) {
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        alive.mark();
        let event = line
            .parse()
            .unwrap_or_else(|error| Event::Failed(format!("{error}")));
        if events.send(event).is_err() {
            return;
        }
    }
}

fn collect_console(console: impl Read, verbose: bool, alive: &Alive) -> String {
    let mut text = String::new();
    let mut reader = BufReader::new(console);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        alive.mark();
        let shown = String::from_utf8_lossy(&line);
        if verbose {
            eprintln!("{}", shown.trim_end());
        }
        text.push_str(&shown);
        line.clear();
    }
    text
}

fn forward_lines(output: impl Read) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        // One call for a line, so that lines of other outer VMs come before or after it.
        let _ = io::stdout().lock().write_all(&line);
        line.clear();
    }
}

fn forward_output(mut output: impl Read) {
    let mut stdout = io::stdout();
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut bytes) {
        // A closed standard output is no reason to stop the test run.
        let _ = stdout
            .write_all(&bytes[..length])
            .and_then(|()| stdout.flush());
    }
}
