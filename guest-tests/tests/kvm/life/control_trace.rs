//! Traces that `msr-vmm ctl` begins and ends while the guest runs.

use std::path::Path;

use guest_tests::guest::{Folder, Guest, TinyKernel};
use libtest_mimic::{Failed, Trial};
use msr_trace::{Ending, Kind, Record, Trace};

use super::control::{COUNTER, count, ctl, ensure, json, progresses, said, start_unconfined};
use super::{kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    listed!("control_trace":
        a_trace_begins_and_ends_while_the_guest_runs,
        a_trace_that_is_on_ends_in_order_with_the_vmm,
    )
}

fn a_trace_begins_and_ends_while_the_guest_runs() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_unconfined(&folder)?;
    let (first, second) = (folder.path("first"), folder.path("second"));
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("no UTF-8");
    let refused = |arguments: &[&str], status: i32, words: &str| -> Result<(), Failed> {
        let output = ctl(&socket, arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(
            output.status.code() == Some(status) && said.contains(words),
            (arguments, output.status, said),
        )
    };
    refused(&["trace", "stop"], 1, "no trace is on")?;
    // Its filter is that of now, and not the one that the VM was started with.
    let filter = folder.file(
        "filter.toml",
        "[[rule]]\nmsrs = [\"IA32_LSTAR\"]\naccess = \"r\"\nverdict = \"deny\"\n",
    )?;
    said(&socket, &["filter", "set", &text(&filter)?])?;
    said(&socket, &["trace", "start", &text(&first)?])?;
    let status = json(&socket, &["status"])?;
    ensure(status["trace"] == text(&first)?, &status)?;
    let again = ["trace", "start", &text(&second)?];
    refused(&again, 1, &format!("{} is on already", text(&first)?))?;
    ensure(!second.exists(), "the second file")?;
    for _ in 0..3 {
        progresses(&socket)?;
    }
    let from = count(&socket)?;
    let stopped = json(&socket, &["trace", "stop"])?;
    let to = count(&socket)?;
    ensure(json(&socket, &["status"])?.get("trace").is_none(), "status")?;
    let mut trace = Trace::open(&first)?;
    ensure(trace.ending() == Ending::Whole, trace.ending())?;
    let header = trace.header().clone();
    ensure(
        header.with_rip && header.kernel.path.ends_with("kernel"),
        &header.kernel,
    )?;
    ensure(header.config.contains("scratch"), &header.config)?;
    let policy = header.policy.ok_or("no policy")?;
    let rule = policy.rules.iter().find(|rule| rule.source == "rule 1");
    ensure(
        rule.is_some_and(|rule| rule.msrs.first() == 0xc000_0082),
        &policy.rules,
    )?;
    let records = trace.records().collect::<Result<Vec<_>, _>>()?;
    let lost = trace.total_lost();
    println!("control: {stopped}");
    ensure(
        stopped["records"] == records.len() && stopped["lost"] == lost,
        (&stopped, records.len(), lost),
    )?;
    ensure(records.len() > 100, records.len())?;
    // Each write of the guest is one more than the last, with nothing between where nothing was lost.
    let of_guest = |record: &&Record| record.index == COUNTER && record.kind == Kind::Write;
    let writes: Vec<u64> = records
        .iter()
        .filter(of_guest)
        .map(|record| record.value)
        .collect();
    let gaps = writes
        .windows(2)
        .filter(|pair| pair[1] != pair[0] + 1)
        .count();
    ensure(gaps as u64 <= lost, (gaps, lost))?;
    let last = *writes.last().ok_or("no writes")?;
    ensure((from..=to).contains(&last), (from, last, to))?;
    let known = records.iter().filter(|record| record.rip.is_some()).count();
    // All but those of `ctl read`, which are at whatever instruction the vCPU was.
    ensure(known == records.len(), (known, records.len()))?;

    refused(&["trace", "start", &text(&first)?], 2, "exists")?;
    let nowhere = folder.path("no/such/folder");
    refused(&["trace", "start", &text(&nowhere)?], 1, "cannot write")?;
    // With no trace on, nothing is written, and another one may begin.
    said(&socket, &["trace", "start", &text(&second)?])?;
    progresses(&socket)?;
    said(&socket, &["trace", "stop"])?;
    let size = std::fs::metadata(&second)?.len();
    progresses(&socket)?;
    ensure(std::fs::metadata(&second)?.len() == size, "it grows on")?;
    running.kill()?;
    Ok(())
}

fn a_trace_that_is_on_ends_in_order_with_the_vmm() -> Result<(), Failed> {
    let folder = Folder::new()?;
    // By a signal, by the socket, and by the guest itself.
    for end in ["signal", "stop"] {
        let (running, socket) = start_unconfined(&folder)?;
        let file = folder.path(end);
        said(
            &socket,
            &["trace", "start", file.to_str().ok_or("no UTF-8")?],
        )?;
        progresses(&socket)?;
        if end == "stop" {
            said(&socket, &["stop"])?;
        } else {
            kill(running.pid(), libc::SIGTERM)?;
        }
        let outcome = running.wait()?;
        ensure(outcome.stderr.contains(" records, "), &outcome.stderr)?;
        let trace = Trace::open(&file)?;
        ensure(
            trace.ending() == Ending::Whole && !trace.is_empty(),
            trace.ending(),
        )?;
    }
    let mut kernel = TinyKernel::new()?;
    kernel.print("up\n")?.echo()?;
    let guest = Guest::tiny(&mut kernel)?.typed_to();
    let socket = folder.path("typed");
    let file = folder.path("guest");
    let guest = guest.option("--sandbox", "off");
    let mut running = guest.option("--control", &socket).start()?;
    running.wait_for("up")?;
    said(
        &socket,
        &["trace", "start", file.to_str().ok_or("no UTF-8")?],
    )?;
    let _ = ctl(&socket, &["read", "0x12345678"])?;
    running.enter("q")?;
    ensure(running.wait()?.status.success(), "the guest's own status")?;
    let mut trace = Trace::open(&file)?;
    ensure(trace.ending() == Ending::Whole, trace.ending())?;
    let records = trace.records().collect::<Result<Vec<_>, _>>()?;
    ensure(
        records.len() == 1 && records[0].index == 0x1234_5678 && records[0].fault,
        &records,
    )?;
    // One that is traced from its start stays so.
    let whole = folder.path("whole");
    let socket = folder.path("whole.socket");
    let mut running = Guest::tiny(TinyKernel::new()?.print("up\n")?.spin()?)?
        .option("--control", &socket)
        .option("--trace", &whole)
        .start()?;
    running.wait_for("up")?;
    for arguments in [&["trace", "start", "another"][..], &["trace", "stop"]] {
        let output = ctl(&socket, arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(
            output.status.code() == Some(1) && said.contains("that --trace began"),
            said,
        )?;
    }
    said(&socket, &["stop"])?;
    running.wait()?;
    ensure(
        Trace::open(&whole)?.ending() == Ending::Whole,
        "the whole one",
    )
}
