//! `msr-vmm trace record`: a VM that another VMM runs.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use msr_trace::{Record, Source, TraceWriter};
use nix::sys::signal::Signal;

use super::RecordArgs;
use crate::cli::{Failure, session};
use crate::trace::{KernelTrace, Sink, header, monotonic, not_seen_by_tracepoints};

/// The most vCPUs of another VMM's VM, by KVM's numbers, which need not be dense.
const VCPUS: u32 = 1024;
/// How often to look whether the VM is still there.
const POLL: Duration = Duration::from_millis(50);

/// Records until the process ends or a signal comes.
pub(super) fn record(args: &RecordArgs) -> Result<(), Failure> {
    let threads = threads(args.pid)?;
    let signals = session::block_signals().map_err(Failure::fault)?;
    let mut header = header(VCPUS, None);
    header.with_rip = true;
    header.topology = format!("the VM of process {}", args.pid);
    header.not_seen = not_seen_by_tracepoints(None);
    let cannot = |error: io::Error| Failure::usage(format!("{}: {error}", args.output.display()));
    let file = File::create(&args.output).map_err(cannot)?;
    let writer = TraceWriter::new(file, &header).map_err(cannot)?;
    let sink = FileSink {
        writer: Some(writer),
        error: None,
        lost: Vec::new(),
    };
    let trace = KernelTrace::start(&threads, Vec::new(), sink).map_err(Failure::fault)?;
    log::info!(
        "recording process {} into {}; Ctrl-C ends it",
        args.pid,
        args.output.display()
    );
    let process = Path::new("/proc").join(args.pid.to_string());
    while process.exists() {
        if let Ok(Some(signal)) = signals.read_signal() {
            let signal =
                Signal::try_from(signal.ssi_signo as i32).map_or("a signal", Signal::as_str);
            log::info!("{signal}: the recording ends");
            break;
        }
        thread::sleep(POLL);
    }
    let sink = trace.finish().map_err(Failure::fault)?;
    let (records, bytes) = sink.finish().map_err(cannot)?;
    log::info!("{records} records, {bytes} bytes");
    Ok(())
}

/// A process's threads.
fn threads(pid: u32) -> Result<Vec<u32>, Failure> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).map_err(|error| {
        Failure::usage(format!(
            "--pid {pid}: there is no such process ({folder}: {error})"
        ))
    })?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.collect())
}

/// Writes records as they come, on the thread that reads them.
struct FileSink {
    /// `None` after an error.
    writer: Option<TraceWriter<File>>,
    error: Option<io::Error>,
    lost: Vec<(u16, u64)>,
}

impl FileSink {
    fn attempt(&mut self, what: impl FnOnce(&mut TraceWriter<File>) -> io::Result<()>) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        if let Err(error) = what(writer) {
            log::error!("the trace cannot be written on: {error}");
            self.error = Some(error);
            self.writer = None;
        }
    }

    fn finish(self) -> io::Result<(u64, u64)> {
        match (self.writer, self.error) {
            (Some(writer), _) => writer.finish(),
            (None, error) => Err(error.unwrap_or_else(|| io::Error::other("the trace is closed"))),
        }
    }
}

impl Sink for FileSink {
    fn record(&mut self, record: Record) {
        // KVM_MAX_VCPUS is larger on some hosts; such numbers are beyond this trace.
        if u32::from(record.vcpu) < VCPUS {
            self.attempt(|writer| writer.record(&record));
        } else {
            self.lost(0, 1);
        }
    }

    fn lost(&mut self, vcpu: u16, count: u64) {
        let vcpu = if u32::from(vcpu) < VCPUS { vcpu } else { 0 };
        let sum = match self.lost.iter_mut().find(|(of, _)| *of == vcpu) {
            Some((_, sum)) => {
                *sum += count;
                *sum
            }
            None => {
                self.lost.push((vcpu, count));
                count
            }
        };
        self.attempt(|writer| writer.lost(vcpu, Source::Kernel, sum));
    }

    fn idle(&mut self) {
        self.attempt(|writer| writer.flush_old(monotonic()));
    }
}
