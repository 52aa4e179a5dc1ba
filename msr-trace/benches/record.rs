//! How many records a second one core takes from a synthetic source without loss, what a push costs its thread, and how fast
//! a trace of ten million records is read.
//!
//! Source and writer share one CPU. What else the host does there lengthens the wall clock's time; the CPU time is what
//! source and writer take.

use std::fs::{self, File};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use msr_trace::{Answerer, Header, Kind, RING, Reason, Record, Recorder, Recording, Trace};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

const RECORDS: u64 = 10_000_000;
/// Records pushed without a look at whether the writer keeps up.
const BURST: usize = 1024;
/// Records a second.
const GOAL: f64 = 1e6;

fn record(n: u64) -> Record {
    // Like a boot: some sixty places, values that change a little, exits some microseconds apart.
    Record {
        time: n * 900 + (n * 7919) % 300,
        vcpu: 0,
        index: 0x10 + (n % 61) as u32,
        kind: if n.is_multiple_of(3) {
            Kind::Write
        } else {
            Kind::Read
        },
        value: 0x1000_0000 + n / 61,
        rip: Some(0xffff_ffff_8100_0000 + (n % 61) * 64),
        fault: false,
        injected: false,
        answerer: Answerer::Device(Reason::Filter),
    }
}

fn main() {
    // cargo test runs benches with `--test`, and then asks for no figures.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut one = CpuSet::new();
    one.set(sched_getcpu().expect("a CPU")).expect("its number");
    sched_setaffinity(Pid::from_raw(0), &one).expect("one CPU");
    let path = std::env::temp_dir().join(format!("msr-trace-bench.{}", std::process::id()));
    write(&path);
    read(&path);
    fs::remove_file(&path).expect("the scratch file");
}

/// The CPU time of the process so far, in seconds.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock");
    Duration::from(time).as_secs_f64()
}

fn write(path: &std::path::Path) {
    let header = Header {
        vcpus: 1,
        ..Header::default()
    };
    let recorder = Arc::new(Recorder::new(1));
    let file = File::create(path).expect("a scratch file");
    let recording = Recording::start(file, &header, recorder.clone(), || 0).expect("a thread");
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut pushing = Duration::ZERO;
    let mut n = 0;
    while n < RECORDS {
        let burst = Instant::now();
        for _ in 0..(BURST as u64).min(RECORDS - n) {
            recorder.push(black_box(record(n)));
            n += 1;
        }
        pushing += burst.elapsed();
        // A source that is as fast as its sink.
        while recorder.waiting(0) > RING - BURST {
            thread::sleep(Duration::from_micros(50));
        }
    }
    let summary = recording.finish().expect("a whole trace");
    let rate = |seconds: f64| RECORDS as f64 / seconds;
    let (wall, cpu) = (
        rate(started.elapsed().as_secs_f64()),
        rate(cpu_time() - cpu),
    );
    let met = if cpu >= GOAL && summary.lost == 0 {
        "met"
    } else {
        "missed"
    };
    println!(
        "record: {:.2} million records a second of CPU time, {:.2} by the clock, {} of {RECORDS} lost (goal: 1 without loss, {met})",
        cpu / 1e6,
        wall / 1e6,
        summary.lost
    );
    println!(
        "record: {} ns a push, {:.1} bytes a record",
        pushing.as_nanos() / u128::from(RECORDS),
        summary.bytes as f64 / summary.records as f64
    );
}

fn read(path: &std::path::Path) {
    let cpu = cpu_time();
    let mut trace = Trace::open(path).expect("a trace");
    let sum = trace
        .records()
        .map(|record| record.expect("a record").value)
        .fold(0u64, u64::wrapping_add);
    black_box(sum);
    println!(
        "read: {:.2} s of CPU time for {} records",
        cpu_time() - cpu,
        trace.len()
    );
}
