//! KVM's tracepoints as records: `kvm:kvm_msr` has the access, and `kvm:kvm_exit` before it on the same thread the
//! instruction pointer and the vCPU.
//!
//! KVM traces what it answers, and not what it hands to userspace, so that the two kinds of records never overlap. The
//! tracepoints' text gives microseconds, rounded; between two exits of one vCPU there is more.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use msr_trace::{Answerer, Kind, Record};

use super::tracefs::{Instance, TracefsError};

/// How long to wait while there is nothing to read.
const NAP: Duration = Duration::from_millis(10);

/// Takes records as they come, and how many events were lost on the way, of a vCPU.
pub trait Sink: Send {
    /// Takes a record.
    fn record(&mut self, record: Record);
    /// Takes note of lost events.
    fn lost(&mut self, vcpu: u16, count: u64);
    /// Is called now and then, also while nothing happens.
    fn idle(&mut self) {}
}

/// A thread that reads KVM's tracepoints.
pub struct KernelTrace<S> {
    thread: JoinHandle<Result<S, TracefsError>>,
    stop: Arc<AtomicBool>,
}

impl<S: Sink + 'static> KernelTrace<S> {
    /// Starts to read the tracepoints of these threads, and those they start, into `sink`. `vcpus` has KVM's numbers of the vCPUs in a trace's
    /// order; where it is empty, KVM's number is the trace's.
    ///
    /// # Errors
    ///
    /// [`TracefsError`].
    pub fn start(threads: &[u32], vcpus: Vec<u32>, mut sink: S) -> Result<Self, TracefsError> {
        let instance = Instance::new(threads)?;
        let mut pipe = instance.pipe()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let mut parser = Parser::new(vcpus);
            let mut text = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            let mut stopping = false;
            loop {
                match pipe.read(&mut buffer) {
                    Ok(count) if count > 0 => {
                        text.extend_from_slice(&buffer[..count]);
                        let whole = text
                            .iter()
                            .rposition(|&byte| byte == b'\n')
                            .map_or(0, |at| at + 1);
                        for line in String::from_utf8_lossy(&text[..whole]).lines() {
                            parser.line(line, &mut sink);
                        }
                        text.drain(..whole);
                        continue;
                    }
                    Ok(_) => {}
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::Interrupted
                        ) => {}
                    Err(error) => log::warn!("reading trace_pipe: {error}"),
                }
                // Everything up to the stop has been read.
                if stopping {
                    break;
                }
                if stopped.load(Ordering::Acquire) {
                    instance.stop()?;
                    stopping = true;
                    continue;
                }
                sink.idle();
                thread::sleep(NAP);
            }
            Ok(sink)
        };
        let thread = thread::Builder::new()
            .name("kvm-trace".to_owned())
            .spawn(work);
        let thread = thread.map_err(|source| TracefsError::File {
            path: "a thread".into(),
            source,
        })?;
        Ok(Self { thread, stop })
    }

    /// Reads what has been recorded, and removes the instance.
    ///
    /// # Errors
    ///
    /// [`TracefsError`].
    pub fn finish(self) -> Result<S, TracefsError> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| {
            Err(TracefsError::File {
                path: "trace_pipe".into(),
                source: std::io::Error::other("the thread that reads it panicked"),
            })
        })
    }
}

/// Lines of `trace_pipe` to records.
#[derive(Debug)]
struct Parser {
    vcpus: Vec<u32>,
    /// By thread: its vCPU and the instruction pointer of its last exit for an MSR.
    threads: HashMap<u32, (u16, Option<u64>)>,
    /// By host CPU: the vCPU seen there last.
    cpus: HashMap<u32, u16>,
}

impl Parser {
    fn new(vcpus: Vec<u32>) -> Self {
        Self {
            vcpus,
            threads: HashMap::new(),
            cpus: HashMap::new(),
        }
    }

    /// Takes a line. Those of other forms mean nothing here.
    fn line(&mut self, line: &str, sink: &mut impl Sink) {
        if let Some((cpu, count)) = lost(line) {
            sink.lost(self.cpus.get(&cpu).copied().unwrap_or(0), count);
            return;
        }
        let Some(event) = Event::parse(line) else {
            return;
        };
        if event.name == "kvm_exit" {
            let kvm_number = word_after(event.text, "vcpu").and_then(|word| word.parse().ok());
            if let Some(vcpu) = kvm_number.and_then(|number| self.number(number)) {
                let rip = word_after(event.text, "rip").and_then(hex);
                self.threads.insert(event.thread, (vcpu, rip));
                self.cpus.insert(event.cpu, vcpu);
            }
            return;
        }
        if event.name != "kvm_msr" {
            return;
        }
        let Some((vcpu, rip)) = self.threads.get_mut(&event.thread) else {
            return;
        };
        if let Some(record) = access(&event, *vcpu, rip.take()) {
            sink.record(record);
        }
    }

    fn number(&self, kvm_number: u32) -> Option<u16> {
        if self.vcpus.is_empty() {
            return u16::try_from(kvm_number).ok();
        }
        let at = self.vcpus.iter().position(|number| *number == kvm_number)?;
        u16::try_from(at).ok()
    }
}

/// An event's line: `TASK-TID [CPU] FLAGS SECONDS.MICROSECONDS: NAME: TEXT`. A task's name may hold anything.
struct Event<'a> {
    thread: u32,
    cpu: u32,
    /// In nanoseconds.
    time: u64,
    name: &'a str,
    text: &'a str,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // The tracepoint's name bounds what can be part of the task's.
        let (name, at) = ["kvm_msr", "kvm_exit"]
            .into_iter()
            .find_map(|name| Some((name, line.find(&format!(": {name}: "))?)))?;
        let text = &line[at + name.len() + 4..];
        let before = &line[..at];
        let (before, time) = before.rsplit_once(char::is_whitespace)?;
        let (seconds, micros) = time.split_once('.')?;
        let time = seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?
            + micros
                .parse::<u64>()
                .ok()
                .filter(|micros| *micros < 1_000_000)?
                * 1000;
        let (before, cpu) = before.rsplit_once('[')?;
        let cpu = cpu.split(']').next()?.parse().ok()?;
        let thread = before.trim_end().rsplit('-').next()?.parse().ok()?;
        Some(Self {
            thread,
            cpu,
            time,
            name,
            text,
        })
    }
}

/// `msr_read c0000080 = 0xd01`, or `msr_write ...`, with ` (#GP)` where it faulted (arch/x86/kvm/trace.h).
fn access(event: &Event<'_>, vcpu: u16, rip: Option<u64>) -> Option<Record> {
    let mut words = event.text.split_ascii_whitespace();
    let kind = match words.next()? {
        "msr_read" => Kind::Read,
        "msr_write" => Kind::Write,
        _ => return None,
    };
    let index = u32::from_str_radix(words.next()?, 16).ok()?;
    let value = words.nth(1).and_then(hex)?;
    let fault = words.next() == Some("(#GP)");
    Some(Record {
        time: event.time,
        vcpu,
        index,
        kind,
        value: if fault && kind == Kind::Read {
            0
        } else {
            value
        },
        rip,
        fault,
        injected: false,
        answerer: Answerer::Kernel,
    })
}

/// `CPU:1 [LOST 12 EVENTS]`.
fn lost(line: &str) -> Option<(u32, u64)> {
    let rest = line.strip_prefix("CPU:")?;
    let (cpu, rest) = rest.split_once(" [LOST ")?;
    let (count, _) = rest.split_once(' ')?;
    Some((cpu.parse().ok()?, count.parse().ok()?))
}

fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut words = text.split_ascii_whitespace();
    words.find(|word| *word == key)?;
    words.next()
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<Record>, Vec<(u16, u64)>);

    impl Sink for Seen {
        fn record(&mut self, record: Record) {
            self.0.push(record);
        }

        fn lost(&mut self, vcpu: u16, count: u64) {
            self.1.push((vcpu, count));
        }
    }

    // Lines as Linux 6.1 prints them.
    const TEXT: &str = "\
           vcpu0-231     [000] .....   142.003001: kvm_exit: vcpu 0 reason msr rip 0xffffffff81067ce4 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000
           vcpu0-231     [000] .....   142.003004: kvm_msr: msr_read 1b = 0xfee00d00
 a: kvm_ x-y-232     [001] d..1.   142.003100: kvm_exit: vcpu 2 reason msr rip 0xffffffff81067d20 info1 0x0000000000000001 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000
 a: kvm_ x-y-232     [001] .....   142.003105: kvm_msr: msr_write c0010015 = 0x8 (#GP)
CPU:1 [LOST 12 EVENTS]
           vcpu0-231     [000] .....   142.003200: kvm_msr: msr_read 277 = 0x7040600070406 (#GP)
           other-9       [000] .....   142.003300: kvm_msr: msr_read 10 = 0x1
           vcpu0-231     [000] .....   142.003300: kvm_pio: pio_write at 0x80
";

    #[test]
    fn lines_become_records_with_the_exits_address_and_vcpu() {
        let mut parser = Parser::new(vec![0, 2]);
        let mut seen = Seen::default();
        TEXT.lines().for_each(|line| parser.line(line, &mut seen));
        let read = Record {
            time: 142_003_004_000,
            vcpu: 0,
            index: 0x1b,
            kind: Kind::Read,
            value: 0xfee0_0d00,
            rip: Some(0xffff_ffff_8106_7ce4),
            fault: false,
            injected: false,
            answerer: Answerer::Kernel,
        };
        let write = Record {
            time: 142_003_105_000,
            vcpu: 1,
            index: 0xc001_0015,
            kind: Kind::Write,
            value: 8,
            rip: Some(0xffff_ffff_8106_7d20),
            fault: true,
            injected: false,
            answerer: Answerer::Kernel,
        };
        let without_exit = Record {
            time: 142_003_200_000,
            index: 0x277,
            value: 0,
            rip: None,
            fault: true,
            injected: false,
            ..read
        };
        assert_eq!(seen.0, [read, write, without_exit]);
        assert_eq!(seen.1, [(1, 12)]);
    }

    #[test]
    fn lines_of_no_form_mean_nothing() {
        let mut parser = Parser::new(Vec::new());
        let mut seen = Seen::default();
        for cut in 0..TEXT.len() {
            if let Some(text) = TEXT.get(cut..) {
                parser.line(text.lines().next().unwrap_or_default(), &mut seen);
            }
        }
        for line in [
            "",
            "CPU: [LOST x EVENTS]",
            "-[]. : kvm_msr: ",
            "x-1 [0] . 1.9999999: kvm_msr: msr_read 1 = 0x1",
        ] {
            parser.line(line, &mut seen);
        }
    }
}
