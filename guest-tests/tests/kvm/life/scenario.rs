//! Scenarios: what happens to a guest step by step.

use std::path::Path;
use std::process::{Command, Output};

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Step, TinyKernel};
use guest_tests::kernel::{Flavour, Release};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_trace::{Kind, Trace};

use super::control::{ctl, ensure, said};
use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("scenario":
        debian_is_heated_after_its_console_printed_a_line_and_the_power_button_ends_it,
        accesses_and_times_lead_to_steps_and_the_trace_has_them,
        scenarios_begin_while_the_guest_runs_and_wrong_ones_do_not,
    )
}

const HOT: &str = r#"
    model = "icelake-server"
    [[msr.device]]
    type = "thermal"
    source = "constant"
    celsius = 45.0
    [[msr.device]]
    type = "scratch"
    msr = "0x3f00"
    [[msr.scenario]]
    name = "hot afternoon"
    [[msr.scenario.step]]
    after = "the desk is ready"
    wait = "3s"
    set.thermal.celsius = 105.0
    set.platform.limit_mhz = 1200
    [[msr.scenario.step]]
    accesses = { msr = "0x3f00" }
    set.thermal.celsius = 60.0
    [[msr.scenario.step]]
    wait = "2s"
    do = "power-button"
"#;
const PERF_STATUS: u32 = 0x198;
const ACCESSED: u32 = 0x3f00;

fn debian_is_heated_after_its_console_printed_a_line_and_the_power_button_ends_it()
-> Result<(), Failed> {
    const TEMPERATURE: &str = "/sys/class/thermal/thermal_zone0/temp";
    const COUNT: &str = "/sys/firmware/acpi/interrupts/ff_pwr_btn";
    let changed = |path: &str| Step::AwaitChange {
        path: path.to_owned(),
        milliseconds: 60_000,
    };
    let plan = Plan::new([
        Step::load_module("x86_pkg_temp_thermal"),
        Step::load_module("msr"),
        Step::load_module("button"),
        Step::read_file(TEMPERATURE),
        Step::Print {
            text: "the desk is ready".to_owned(),
        },
        changed(TEMPERATURE),
        Step::read_msr(0, PERF_STATUS),
        Step::read_msr(0, ACCESSED),
        changed(COUNT),
        Step::read_file(TEMPERATURE),
    ]);
    let kernel = assets::kernel_of(Release::Bookworm, Flavour::Full)?;
    let guest = Guest::with_kernel(&kernel, HOT, plan)?;
    let trace = guest.folder().path("trace");
    let outcome = guest
        .option("--trace", &trace)
        .option("--log", "info")
        .run()?;
    ensure(outcome.status.success(), (outcome.status, &outcome.stderr))?;
    let report = outcome.report()?;
    let text = |step| report.text(step).map(str::trim);
    ensure(text(3) == Some("45000"), report.answer(3))?;
    // No sensor shows more than TjMax.
    ensure(text(5) == Some("100000"), report.answer(5))?;
    ensure(report.value(6) == Some(12 << 8), report.answer(6))?;
    ensure(text(9) == Some("60000"), report.answer(9))?;
    let steps = [
        "scenario hot afternoon, step 1: set platform.limit_mhz = 1200; set thermal.celsius = 105.0",
        "scenario hot afternoon, step 2: set thermal.celsius = 60.0",
        "scenario hot afternoon, step 3: power-button",
    ];
    for step in steps {
        ensure(outcome.stderr.contains(step), (step, &outcome.stderr))?;
    }
    let mut recorded = Trace::open(&trace)?;
    let marks = recorded.marks();
    ensure(marks.iter().map(|(_, text)| *text).eq(steps), &marks)?;
    let times: Vec<u64> = marks.iter().map(|(time, _)| *time).collect();
    // The second follows the access that it waited for, and the third comes two seconds later.
    let mut reads = recorded.records().filter_map(Result::ok);
    let read = reads.find(|record| record.index == ACCESSED && record.time > times[0]);
    let read = read.ok_or("no access")?.time;
    let (follows, later) = (times[1].saturating_sub(read), times[2] - times[1]);
    println!("scenario: {follows} ns after the access, and {later} ns later");
    ensure(
        read < times[1] && (2_000_000_000..3_000_000_000).contains(&later),
        (read, &times),
    )?;
    let shown = msr_vmm(&["trace", "show", trace.to_str().ok_or("no UTF-8")?])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for step in steps {
        ensure(shown.contains(&format!(" ------ {step}\n")), step)?;
    }
    let exported = trace.with_extension("pftrace");
    let export = [
        "trace",
        "export",
        trace.to_str().ok_or("no UTF-8")?,
        "-o",
        exported.to_str().ok_or("no UTF-8")?,
    ];
    let output = msr_vmm(&export)?;
    ensure(output.status.success(), &output)?;
    let bytes = std::fs::read(&exported)?;
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    ensure(steps.iter().all(|step| has(step)), "no marks for Perfetto")
}

fn msr_vmm(arguments: &[&str]) -> Result<Output, Failed> {
    Ok(Command::new(assets::msr_vmm()?).args(arguments).output()?)
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
        &scenario("a", "set.thermal.celsius = 1"),
        "there is no MSR device `thermal`",
    )?;
    refused(
        &scenario("a", "set.scratch.now = -1"),
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
