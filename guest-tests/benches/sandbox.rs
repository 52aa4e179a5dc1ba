//! What the sandbox costs: the round trip of an RDMSR exit on a vCPU thread with its filter, next to one without, and the
//! time from exec to the guest's first instruction of `msr-vmm --sandbox=on`, next to `--sandbox=off`.
//!
//! Batches and starts alternate, on one CPU of the host, so that what else the host does hits both alike. The exits' result is
//! the median of the pairs' ratios.

use std::error::Error;
use std::process::{Command, ExitCode, Stdio};

use guest_tests::assets;
use guest_tests::guest::{Folder, TinyKernel};
use msr_bus::DeviceModel;
use msr_vmm::sandbox::Sandbox;
use msr_vmm::{BootEvent, Config};

mod product;

use product::{BATCH, Product, median, micros, stay_on_one_cpu};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let (batches, starts) = if bench { (401, 101) } else { (3, 2) };
    match exits(batches).and_then(|()| start(starts)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox: {error}");
            ExitCode::FAILURE
        }
    }
}

fn exits(batches: usize) -> Outcome<()> {
    stay_on_one_cpu()?;
    let mut free = Product::new(|builder| builder)?;
    // Of the whole sandbox only this is there at an exit: a filter for each system call of the vCPU's thread.
    let filters = Sandbox::new(&Config::default(), DeviceModel::all()).thread_filters()?;
    let mut confined = Product::new(|builder| builder.thread_filters(filters))?;
    // The first batches pay for what is set up when it is first used.
    free.batch()?;
    confined.batch()?;
    let mut pairs = Vec::new();
    for number in 0..batches {
        // Neither is always the one that follows the other.
        pairs.push(if number % 2 == 0 {
            (free.batch()?, confined.batch()?)
        } else {
            let time = confined.batch()?;
            (free.batch()?, time)
        });
    }
    let ratios = pairs
        .iter()
        .map(|(free, confined)| confined.as_secs_f64() / free.as_secs_f64());
    let ratio = median(ratios);
    let free = median(pairs.iter().map(|(free, _)| micros(*free)));
    let confined = median(pairs.iter().map(|(_, confined)| micros(*confined)));
    println!("RDMSR exit and back, median of {batches} pairs of batches of {BATCH}:");
    println!("  --sandbox=off             {free:>9.3} us");
    println!("  --sandbox=on              {confined:>9.3} us");
    println!("  ratio {ratio:.4}");
    Ok(())
}

/// From exec to the first KVM_RUN.
fn start(starts: usize) -> Outcome<()> {
    let folder = Folder::new()?;
    let kernel = folder.file("kernel", TinyKernel::new()?.power_off()?.elf()?)?;
    let first_run = |sandbox: &str| -> Outcome<f64> {
        let mut command = Command::new(assets::msr_vmm()?);
        command.args(["run", "--boot-timing", sandbox, "--kernel"]);
        let output = command.arg(&kernel).stdin(Stdio::null()).output()?;
        let stderr = String::from_utf8(output.stderr)?;
        if !output.status.success() {
            return Err(format!("{}: {stderr}", output.status).into());
        }
        let label = BootEvent::FirstRun.label();
        let mut lines = stderr.lines().map(str::trim_start);
        let row = lines.find_map(|line| line.strip_prefix(label));
        let number = row.and_then(|row| row.split_whitespace().next());
        let number = number.ok_or_else(|| format!("no `{label}` in {stderr}"))?;
        Ok(number.parse()?)
    };
    let mut times = Vec::new();
    for _ in 0..starts {
        times.push((first_run("--sandbox=off")?, first_run("--sandbox=on")?));
    }
    let off = median(times.iter().map(|(off, _)| *off));
    let on = median(times.iter().map(|(_, on)| *on));
    let more = median(times.iter().map(|(off, on)| on - off));
    println!("exec to the first KVM_RUN, median of {starts} pairs:");
    println!("  --sandbox=off             {off:>9.3} ms");
    println!("  --sandbox=on              {on:>9.3} ms");
    println!("  the sandbox's own time    {more:>9.3} ms (goal: at most 1)");
    Ok(())
}
