//! How many records a second one core takes from a synthetic source without loss, what a push costs its thread, and how fast
//! a trace of ten million records is read.

use std::fs::{self, File};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use msr_trace::{Answerer, Header, Kind, Reason, Record, Recorder, Recording, Trace};

const RECORDS: u64 = 10_000_000;
/// Records pushed without a look at whether the writer keeps up.
const BURST: u64 = 8192;

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
        answerer: Answerer::Device(Reason::Filter),
    }
}

fn main() {
    // cargo test runs benches with `--test`, and then asks for no figures.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let path = std::env::temp_dir().join(format!("msr-trace-bench.{}", std::process::id()));
    let header = Header {
        vcpus: 1,
        ..Header::default()
    };

    let recorder = Arc::new(Recorder::new(1));
    let file = File::create(&path).expect("a scratch file");
    let recording = Recording::start(file, &header, recorder.clone(), || 0).expect("a thread");
    let started = Instant::now();
    let mut pushing = 0;
    let mut n = 0;
    while n < RECORDS {
        let burst = Instant::now();
        for _ in 0..BURST.min(RECORDS - n) {
            recorder.push(black_box(record(n)));
            n += 1;
        }
        pushing += burst.elapsed().as_nanos();
        // A source that is as fast as its sink.
        while recorder.waiting(0) > 4096 {
            std::hint::spin_loop();
        }
    }
    let summary = recording.finish().expect("a whole trace");
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "record: {:.2} million records a second, {} of {RECORDS} lost",
        RECORDS as f64 / seconds / 1e6,
        summary.lost
    );
    println!(
        "record: {} ns a push, {:.1} bytes a record",
        pushing / u128::from(RECORDS),
        summary.bytes as f64 / summary.records as f64
    );

    let started = Instant::now();
    let mut trace = Trace::open(&path).expect("a trace");
    let sum = trace
        .records()
        .map(|record| record.expect("a record").value)
        .fold(0u64, u64::wrapping_add);
    println!(
        "read: {:.2} s for {} records",
        started.elapsed().as_secs_f64(),
        trace.len()
    );
    black_box(sum);
    fs::remove_file(&path).expect("the scratch file");
}
