//! From the vCPU threads to the file, without ever holding up a vCPU.
//!
//! Each vCPU has a bounded queue of its own. Its thread pushes, and where the queue is full counts the record as lost and goes on; one
//! thread takes records out and writes blocks. The queue is crossbeam's `ArrayQueue`: lock-free, allocated once, and pushed to
//! through a shared reference, which an observer has; a single-producer ring such as rtrb's needs an exclusive one.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::header::Header;
use crate::note::Note;
use crate::record::{Record, Source};
use crate::write::TraceWriter;

#[cfg(test)]
mod tests;

/// How many records of a vCPU may wait for the writer.
pub const RING: usize = 16 << 10;
/// How many marks may wait for the writer.
pub const MARKS: usize = 1024;
/// How long the writer sleeps while there is nothing to write. At a million records a second a ring fills in 16
/// ms.
const NAP: Duration = Duration::from_millis(8);
/// How many records the writer takes from one vCPU before it looks at the next.
const TURN: usize = 4096;

/// Where vCPU threads leave their records.
#[derive(Debug)]
pub struct Recorder {
    vcpus: Box<[Lane]>,
    lstar: AtomicU64,
    /// What was done to the VM from outside, for the writer.
    marks: Mutex<Vec<Note>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Lane {
    ring: ArrayQueue<Record>,
    lost: AtomicU64,
    lost_in_kernel: AtomicU64,
}

impl Recorder {
    /// Rings for as many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        let lane = |_| Lane {
            ring: ArrayQueue::new(RING),
            lost: AtomicU64::new(0),
            lost_in_kernel: AtomicU64::new(0),
        };
        Self {
            vcpus: (0..vcpus).map(lane).collect(),
            lstar: AtomicU64::new(0),
            marks: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Leaves a record for the writer, or counts it as lost. Takes no lock, allocates nothing and makes no system call.
    #[inline]
    pub fn push(&self, record: Record) {
        let Some(lane) = self.vcpus.get(usize::from(record.vcpu)) else {
            return;
        };
        if lane.ring.push(record).is_err() {
            lane.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many records of a vCPU wait for the writer.
    pub fn waiting(&self, vcpu: u16) -> usize {
        self.vcpus
            .get(usize::from(vcpu))
            .map_or(0, |lane| lane.ring.len())
    }

    /// Counts records of a vCPU that the kernel's tracing lost before they could be pushed.
    pub fn lost_in_kernel(&self, vcpu: u16, count: u64) {
        if let Some(lane) = self.vcpus.get(usize::from(vcpu)) {
            lane.lost_in_kernel.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Notes what was done to the VM from outside, and when. Takes a lock: not for vCPU threads. Where [`MARKS`] wait for the
    /// writer already, as they do once it has met a full disk, the next one says that marks are lost, and those after it are.
    pub fn mark(&self, time: u64, text: String) {
        let mut marks = self.marks();
        match marks.len() {
            ..MARKS => marks.push(Note::Mark { time, text }),
            MARKS => {
                let text = "marks are lost from here on: they are not written as fast as they come";
                let text = text.to_owned();
                marks.push(Note::Mark { time, text });
            }
            _ => {}
        }
    }

    fn marks(&self) -> MutexGuard<'_, Vec<Note>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest's `IA32_LSTAR` is known.
    #[inline]
    pub fn knows_lstar(&self) -> bool {
        self.lstar.load(Ordering::Relaxed) != 0
    }

    /// Notes the guest's `IA32_LSTAR`. The first value that is not 0 stays.
    pub fn set_lstar(&self, value: u64) {
        let _ = self
            .lstar
            .compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The thread that writes a trace.
#[derive(Debug)]
pub struct Recording {
    recorder: Arc<Recorder>,
    thread: JoinHandle<io::Result<Summary>>,
}

/// What a recording came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many records were written.
    pub records: u64,
    /// How many were lost.
    pub lost: u64,
    /// How many bytes the file has.
    pub bytes: u64,
}

impl Recording {
    /// Begins a trace in `out` and starts the thread that writes to it. `clock` gives the time of records.
    ///
    /// # Errors
    ///
    /// Those of `out`, and of the host where it has no more threads.
    pub fn start(
        out: impl Write + Send + 'static,
        header: &Header,
        recorder: Arc<Recorder>,
        clock: fn() -> u64,
    ) -> io::Result<Self> {
        Self::start_with(out, header, recorder, clock, || {})
    }

    /// The same, with a thread that first calls `begin`: to confine itself, for instance.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub fn start_with(
        out: impl Write + Send + 'static,
        header: &Header,
        recorder: Arc<Recorder>,
        clock: fn() -> u64,
        begin: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let writer = TraceWriter::new(out, header)?;
        let of_thread = recorder.clone();
        let thread = thread::Builder::new()
            .name("msr-trace".to_owned())
            .spawn(move || {
                begin();
                write_on(writer, &of_thread, clock)
            })?;
        Ok(Self { recorder, thread })
    }

    /// Writes what has been pushed, and ends the file.
    ///
    /// # Errors
    ///
    /// What kept the file from being written, a full disk for instance; it holds what was written before.
    pub fn finish(self) -> io::Result<Summary> {
        self.recorder.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that writes the trace panicked",
            ))
        })
    }
}

fn write_on<W: Write>(
    mut writer: TraceWriter<W>,
    recorder: &Recorder,
    clock: fn() -> u64,
) -> io::Result<Summary> {
    let mut lstar_noted = false;
    loop {
        // Before the rings are looked at, so that what was pushed before the end is in it.
        let stop = recorder.stop.load(Ordering::Acquire);
        let mut taken = 0;
        for lane in &recorder.vcpus {
            for record in std::iter::from_fn(|| lane.ring.pop()).take(TURN) {
                writer.record(&record)?;
                taken += 1;
            }
        }
        for (vcpu, lane) in (0..).zip(&recorder.vcpus) {
            writer.lost(vcpu, Source::Userspace, lane.lost.load(Ordering::Relaxed))?;
            let lost = lane.lost_in_kernel.load(Ordering::Relaxed);
            writer.lost(vcpu, Source::Kernel, lost)?;
        }
        let lstar = recorder.lstar.load(Ordering::Relaxed);
        if lstar != 0 && !lstar_noted {
            writer.note(&Note::Lstar { value: lstar })?;
            lstar_noted = true;
        }
        let marks = std::mem::take(&mut *recorder.marks());
        for mark in &marks {
            writer.note(mark)?;
        }
        if taken > 0 {
            continue;
        }
        if stop {
            break;
        }
        writer.flush_old(clock())?;
        thread::park_timeout(NAP);
    }
    let lost = recorder.vcpus.iter().map(|lane| {
        lane.lost.load(Ordering::Relaxed) + lane.lost_in_kernel.load(Ordering::Relaxed)
    });
    let lost = lost.sum();
    let (records, bytes) = writer.finish()?;
    Ok(Summary {
        records,
        lost,
        bytes,
    })
}
