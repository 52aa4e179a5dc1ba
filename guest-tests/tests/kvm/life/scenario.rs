//! Scenarios: what happens to a guest step by step.

use std::path::Path;

use guest_tests::guest::{Folder, Guest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_trace::{Kind, Trace};

use super::control::{ctl, ensure, said};
use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("scenario":
        accesses_and_times_lead_to_steps_and_the_trace_has_them,
        scenarios_begin_while_the_guest_runs_and_wrong_ones_do_not,
    )
}

const SCRATCH: &str = r#"
    [[msr.device]]
    type = "scratch"
    msr = "0x3f00"
"#;

/// A guest that reads its scratch register until it holds what makes it end: 0xff.
fn reading(text: &str) -> Result<Guest, Failed> {
    let mut kernel = TinyKernel::new()?;
    let code = kernel.print("up\n")?;
    let mut again = code.0.create_label();
    code.0.set_label(&mut again)?;
    code.0.mov(ecx, 0x3f00)?;
    code.0.rdmsr()?;
    code.0.cmp(eax, 0xff)?;
    code.0.jne(again)?;
    kernel.power_off()?;
    let guest = Guest::tiny(&mut kernel)?;
    let config = guest
        .folder()
        .file("config.toml", format!("{SCRATCH}{text}"))?;
    Ok(guest.option("--config", config))
}

fn accesses_and_times_lead_to_steps_and_the_trace_has_them() -> Result<(), Failed> {
    let scenario = r#"
        [[msr.scenario]]
        [[msr.scenario.step]]
        after = "up"
        accesses = { msr = "0x3f00", count = 100 }
        write = { msr = "0x3f00", value = 5 }
        [[msr.scenario.step]]
        wait = "100ms"
        write = { msr = "0x12345678", value = 1 }
        [[msr.scenario.step]]
        set.scratch.now = 0xff
    "#;
    for sandbox in ["off", "on"] {
        let folder = Folder::new()?;
        let trace = folder.path("trace");
        let outcome = reading(scenario)?
            .option("--trace", &trace)
            .option("--sandbox", sandbox)
            .option("--log", "info")
            .run()?;
        ensure(outcome.status.success(), (outcome.status, &outcome.stderr))?;
        let mut trace = Trace::open(&trace)?;
        let marks = trace.marks();
        println!("scenario: sandbox {sandbox}: {marks:?}");
        let texts: Vec<&str> = marks.iter().map(|(_, text)| *text).collect();
        let expected = [
            "scenario 1, step 1: write 0x5 to 0x3f00 of vCPU 0",
            "scenario 1, step 2: write 0x1 to 0x12345678 of vCPU 0: #GP",
            "scenario 1, step 3: set scratch.now = 255",
        ];
        ensure(texts == expected, &texts)?;
        let first = marks[0].0;
        let gap = marks[1].0 - first;
        ensure((100_000_000..1_000_000_000).contains(&gap), gap)?;
        let records = trace.records().collect::<Result<Vec<_>, _>>()?;
        let before = records
            .iter()
            .filter(|record| record.time < first && record.kind == Kind::Read);
        ensure(before.count() >= 100, "it did not wait for the accesses")?;
        ensure(
            records
                .iter()
                .any(|record| record.value == 5 && record.kind == Kind::Read),
            "5",
        )?;
        let last = records.last().ok_or("no records")?;
        ensure(last.value == 0xff, last)?;
        ensure(
            outcome.stderr.contains("WARN") && outcome.stderr.contains("INFO"),
            &outcome.stderr,
        )?;
    }
    Ok(())
}

fn scenarios_begin_while_the_guest_runs_and_wrong_ones_do_not() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let socket = folder.path("socket");
    let mut running = reading("")?
        .option("--control", &socket)
        .option("--log", "info")
        .start()?;
    running.wait_for("up")?;
    let refused = |text: &str, words: &str| -> Result<(), Failed> {
        let file = folder.file("wrong.toml", text)?;
        let output = ctl(&socket, &["scenario", path(&file)?])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let place = format!("{}:", file.display());
        ensure(
            output.status.code() == Some(2) && said.contains(words) && said.contains(&place),
            (words, said),
        )
    };
    let scenario = |name: &str, step: &str| {
        format!("[[msr.scenario]]\nname = '{name}'\nrepeat = 0\n[[msr.scenario.step]]\n{step}\n")
    };
    refused(
        &scenario("a", "wait = '1ms'\nset.thermal.celsius = 1"),
        "there is no MSR device `thermal`",
    )?;
    refused(
        &scenario("a", "wait = '1ms'\nset.scratch.now = -1"),
        "expected a 64-bit value",
    )?;
    refused("[vm]\ncpus = 2\n", "vm")?;
    refused("no TOML", "")?;
    // A good one with a bad one: neither begins.
    let good = scenario("good", "wait = '1ms'\nwrite = { msr = 0x3f00, value = 2 }");
    refused(
        &(good.clone() + &scenario("a", "do = 'pause'")),
        "none of its steps waits",
    )?;
    ensure(
        said(&socket, &["read", "0x3f00"])?.contains("0x0000000000000000"),
        "it began",
    )?;
    // One that goes on without end, as quick as it can, and one that ends the guest meanwhile.
    let file = folder.file("good.toml", &good)?;
    said(&socket, &["scenario", path(&file)?])?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure(said(&socket, &["status"])?.contains("running"), "status")?;
    ensure(
        said(&socket, &["read", "0x3f00"])?.contains("0x0000000000000002"),
        "2",
    )?;
    let last = "[[msr.scenario]]\n[[msr.scenario.step]]\nwait = '1s'\ndo = 'stop'\n";
    let file = folder.file("last.toml", last)?;
    said(&socket, &["scenario", path(&file)?])?;
    let outcome = running.wait()?;
    ensure(outcome.status.code() == Some(1), outcome.status)?;
    let rounds = outcome.stderr.matches("scenario good, round ").count();
    println!("scenario: {rounds} rounds");
    ensure(rounds > 10, rounds)
}

fn path(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| "no UTF-8".into())
}
