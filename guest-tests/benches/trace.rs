//! What tracing takes.
//!
//! - An RDMSR exit and back with `--trace`, next to the same without: VMs whose batches alternate on one CPU of the host,
//!   which the thread that writes the trace has to share. The result is the median of the rounds' ratios, by the clock
//!   and by the CPU time of the whole process, which what else the host does cannot lengthen.
//! - `msr-vmm trace show --json` of ten million records: time and memory.
//!
//! How many records a second the writer takes is `msr-trace`'s own bench; the bytes a record of a real boot are part of
//! `boot`.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_tests::guest::Folder;
use guest_tests::{assets, backend, pack};
use msr_trace::{Answerer, Header, Kind, Reason, Record, Recorder, Recording, TraceWriter};
use msr_vmm::VmBuilder;
use msr_vmm::trace::{TraceObserver, monotonic};

mod product;

use product::{BATCH, Product, median, micros, stay_on_one_cpu};

/// Of the round trip's time.
const GOAL: f64 = 1.03;
/// Of `trace show --json`.
const SECONDS: f64 = 10.0;
const MEGABYTES: f64 = 100.0;

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let passed_on = if bench {
        vec!["--bench".to_owned()]
    } else {
        vec![]
    };
    if !backend::in_outer_vm()
        && let Err(error) = show(if bench { 10_000_000 } else { 10_000 })
    {
        eprintln!("trace: {error}");
        return ExitCode::FAILURE;
    }
    if !msr_kvm::check::probe().can_run_micro_guests()
        && let Some(status) = backend::run_elsewhere(&passed_on, pack::basics)
    {
        return status;
    }
    match exits(if bench { 401 } else { 3 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trace: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A VM of the bench, with its trace.
struct Traced {
    name: &'static str,
    product: Product,
    _recording: Option<Recording>,
}

impl Traced {
    fn new(
        name: &'static str,
        folder: &Folder,
        prepare: Option<fn(VmBuilder) -> VmBuilder>,
    ) -> Result<Self, Box<dyn Error>> {
        let Some(prepare) = prepare else {
            return Ok(Self {
                name,
                product: Product::new(|builder| builder)?,
                _recording: None,
            });
        };
        let recorder = Arc::new(Recorder::new(1));
        // As in a guest whose Linux runs; until then some exits look for it.
        recorder.set_lstar(0xffff_ffff_8100_0000);
        let header = Header {
            vcpus: 1,
            ..Header::default()
        };
        let file = File::create(folder.path(name))?;
        let recording = Recording::start(file, &header, recorder.clone(), monotonic)?;
        let observer = Arc::new(TraceObserver::new(recorder));
        Ok(Self {
            name,
            product: Product::new(|builder| prepare(builder.msr_observer(observer)))?,
            _recording: Some(recording),
        })
    }

    /// The time of a batch by the clock, and the process's CPU time.
    fn batch(&mut self) -> Result<(f64, f64), Box<dyn Error>> {
        let cpu = cpu_time();
        let time = self.product.batch()?;
        Ok((micros(time), micros(cpu_time() - cpu)))
    }
}

fn exits(rounds: usize) -> Result<(), Box<dyn Error>> {
    stay_on_one_cpu()?;
    let folder = Folder::new()?;
    let mut vms = [
        Traced::new("without a trace", &folder, None)?,
        Traced::new("traced, without RIP", &folder, Some(|builder| builder))?,
        Traced::new(
            "traced, as by --trace",
            &folder,
            Some(VmBuilder::instruction_pointers),
        )?,
    ];
    let mut rows: Vec<[(f64, f64); 3]> = Vec::new();
    // The first round pays for what is set up when it is first used.
    for round in 0..=rounds {
        let mut row = [(0.0, 0.0); 3];
        // None is always the one that follows another.
        for number in 0..3 {
            let at = (number + round) % 3;
            row[at] = vms[at].batch()?;
        }
        if round > 0 {
            rows.push(row);
        }
    }
    println!("RDMSR exit and back, median of {rounds} rounds of batches of {BATCH}:");
    println!(
        "  {:<24}{:>10}{:>10}{:>10}{:>10}",
        "", "us", "ratio", "CPU us", "ratio"
    );
    for (at, vm) in vms.iter().enumerate() {
        let of =
            |what: fn(&[(f64, f64); 3], usize) -> f64| median(rows.iter().map(|row| what(row, at)));
        let ratio = of(|row, at| row[at].1 / row[0].1);
        let verdict = match (at, ratio <= GOAL) {
            (0, _) => String::new(),
            (_, true) => format!("   (goal: at most {GOAL}, met)"),
            (_, false) => format!("   (goal: at most {GOAL}, missed)"),
        };
        println!(
            "  {:<24}{:>10.3}{:>10.4}{:>10.3}{ratio:>10.4}{verdict}",
            vm.name,
            of(|row, at| row[at].0),
            of(|row, at| row[at].0 / row[0].0),
            of(|row, at| row[at].1),
        );
    }
    Ok(())
}

/// The CPU time of this process so far.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to write; every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Reads of an MSR with many fields, one with few and some without, from many places.
const READ: [u32; 8] = [0x1a0, 0x277, 0x611, 0x19c, 0x10, 0xce, 0xc001_0015, 0x3fff];

fn write(path: &Path, records: u64) -> Result<(), Box<dyn Error>> {
    let header = Header {
        vcpus: 2,
        with_rip: true,
        ..Header::default()
    };
    let mut writer = TraceWriter::new(File::create(path)?, &header)?;
    for n in 0..records {
        writer.record(&Record {
            time: n * 900 + (n * 7919) % 300,
            vcpu: (n % 2) as u16,
            index: READ[(n % 8) as usize],
            kind: if n % 3 == 0 { Kind::Write } else { Kind::Read },
            value: 0x1000_0000 + n / 61,
            rip: Some(0xffff_ffff_8100_0000 + n % 61 * 64),
            fault: false,
            injected: false,
            answerer: Answerer::Device(Reason::Filter),
        })?;
    }
    writer.finish()?;
    Ok(())
}

fn show(records: u64) -> Result<(), Box<dyn Error>> {
    let folder = Folder::new()?;
    let path = folder.path("trace");
    write(&path, records)?;
    // For names, without which a row says less.
    let map: String = (0..61)
        .map(|n| format!("{:x} T a_function_{n}\n", 0xffff_ffff_8100_0000u64 + n * 64))
        .collect();
    let map = folder.file("System.map", map)?;
    let started = Instant::now();
    let child = Command::new(assets::msr_vmm()?)
        .args(["trace", "show", "--json"])
        .arg(&path)
        .arg("--symbols")
        .arg(map)
        .stdout(Stdio::null())
        .spawn()?;
    let mut status = 0;
    // SAFETY: all fields are integers, for which zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id().cast_signed();
    // SAFETY: both places are valid for the call to write; the child is this process's and has not been waited for.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let seconds = started.elapsed().as_secs_f64();
    if waited != pid || status != 0 {
        return Err(format!("trace show --json: status {status:#x}").into());
    }
    let spent = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu = spent(usage.ru_utime) + spent(usage.ru_stime);
    let megabytes = usage.ru_maxrss as f64 * 1024.0 / 1e6;
    let verdict = if cpu < SECONDS && megabytes < MEGABYTES {
        "met"
    } else {
        "missed"
    };
    println!(
        "trace show --json of {records} records: {cpu:.2} s of CPU time, {seconds:.2} s by the clock, {megabytes:.1} MB resident at most (goal: {SECONDS} s and {MEGABYTES} MB, {verdict})"
    );
    Ok(())
}
