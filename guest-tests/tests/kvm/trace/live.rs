//! Traces that are read while they grow, that a killed VMM leaves behind, and that a confined one writes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, OnTerminal};
use libtest_mimic::{Failed, Trial};
use msr_trace::{Answerer, Ending, FLUSH_INTERVAL};

use super::micro::{CONFIG, SCRATCH, kernel};
use super::{open, records};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("trace::show_and_top_follow_a_guest_that_runs", followed),
        Trial::test(
            "trace::what_is_older_than_the_flush_interval_outlives_a_killed_vmm",
            killed,
        ),
        Trial::test(
            "trace::a_sandboxed_vmm_records_its_exits",
            || sandboxed(&[]),
        ),
        Trial::test("trace::a_sandboxed_vmm_reads_kvms_tracepoints", || {
            sandboxed(&["--trace-kernel"])
        }),
    ]
}

const TIMES: u64 = 500;
const RECORDS: usize = 3 * TIMES as usize;

fn followed() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let config = folder.file("config.toml", CONFIG)?;
    // Once it has made its accesses, `q` switches it off.
    let mut kernel = kernel(TIMES)?;
    kernel.echo()?;
    let guest = Guest::tiny(&mut kernel)?
        .option("--config", config)
        .option("--trace", &path);
    let mut running = OnTerminal::start(guest.command()?)?;
    // Said once the trace has begun.
    running.wait_for("Ctrl-A h")?;
    let started = Instant::now();
    while open(&path).is_err() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(5));
    }

    let mut show = Command::new(assets::msr_vmm()?);
    show.args(["trace", "show", "--follow", "--json"])
        .arg(&path);
    let mut show = show.stdout(Stdio::piped()).spawn()?;
    let out = show.stdout.take().ok_or("standard output is piped")?;
    let mut lines = BufReader::new(out).lines();
    let scratch = format!("\"msr\":{SCRATCH},");
    let mut of_scratch = 0;
    for _ in 0..RECORDS {
        let line = lines
            .next()
            .ok_or("the output ended while the guest ran")??;
        of_scratch += usize::from(line.contains(&scratch));
    }
    assert_eq!(of_scratch, RECORDS / 3 * 2);

    let mut top = Command::new(assets::msr_vmm()?);
    top.arg("top").arg(&path);
    let mut top = OnTerminal::start(top)?;
    for text in [
        "1500",
        "recording",
        "0xc0011f00",
        "scratch",
        "0x00003fff",
        "unclaimed",
    ] {
        top.wait_for(text)?;
    }
    // All of that was while the guest ran.
    assert_eq!(open(&path)?.ending(), Ending::Unfinished);

    running.enter(b"q")?;
    let (status, _, shown) = running.wait()?;
    assert_eq!(status.code(), Some(0), "{shown}");
    if let Some(line) = lines.next() {
        return Err(format!("one record more: {}", line?).into());
    }
    assert!(show.wait()?.success());
    top.wait_for("ended")?;
    top.enter(b"q")?;
    let before = top.before.clone();
    let (status, after, shown) = top.wait()?;
    assert_eq!(status.code(), Some(0), "{shown}");
    assert_eq!(after, before, "top leaves the terminal as it was");
    Ok(())
}

fn killed() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let config = folder.file("config.toml", CONFIG)?;
    let mut kernel = kernel(TIMES)?;
    kernel.print("made\n")?.halt()?;
    let mut guest = Guest::tiny(&mut kernel)?
        .option("--config", config)
        .option("--trace", &path)
        .start()?;
    guest.wait_for("made")?;
    // The interval, and as much again for a writer that has to wait for a CPU.
    thread::sleep(2 * FLUSH_INTERVAL);
    guest.kill()?;
    let mut trace = open(&path)?;
    assert_eq!(trace.ending(), Ending::Unfinished);
    assert_eq!(
        (records(&mut trace)?.len(), trace.total_lost()),
        (RECORDS, 0)
    );
    Ok(())
}

fn sandboxed(more: &[&str]) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let config = folder.file("config.toml", CONFIG)?;
    let mut kernel = kernel(TIMES)?;
    kernel.power_off()?;
    let mut guest = Guest::tiny(&mut kernel)?
        .option("--config", config)
        .option("--trace", &path);
    for argument in more {
        guest = guest.argument(argument);
    }
    let guest = guest.start()?;
    let own = format!("msr-vmm-{}-", guest.pid());
    let outcome = guest.wait()?;
    assert_eq!(outcome.status.code(), Some(0), "{}", outcome.stderr);
    let mut trace = open(&path)?;
    assert_eq!(
        (trace.ending(), trace.total_lost()),
        (Ending::Whole, 0),
        "{}",
        outcome.stderr
    );
    let exits = records(&mut trace)?
        .iter()
        .filter(|record| record.answerer != Answerer::Kernel)
        .count();
    assert_eq!(exits, RECORDS, "{}", outcome.stderr);
    if !more.is_empty() {
        // tracefs is mounted now, and the instance of that process is gone.
        for entry in fs::read_dir("/sys/kernel/tracing/instances")? {
            let name = entry?.file_name();
            assert!(
                !name.to_string_lossy().starts_with(&own),
                "{name:?} is left"
            );
        }
    }
    Ok(())
}
