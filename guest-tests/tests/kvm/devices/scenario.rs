//! A scenario that Debian's full kernel lives through.

use std::process::{Command, Output};

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_trace::Trace;

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "devices::scenario::debian_is_heated_after_its_console_printed_a_line_and_the_power_button_ends_it",
        hot_afternoon,
    )]
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

fn hot_afternoon() -> Result<(), Failed> {
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
    let folder = Folder::new()?;
    let trace = folder.path("trace");
    let outcome = guest
        .option("--trace", &trace)
        .option("--log", "info")
        .run()?;
    ensure(outcome.status.success(), (outcome.status, &outcome.stderr))?;
    let report = outcome.report()?;
    let text = |step| report.text(step).map(str::trim);
    ensure(text(3) == Some("45000"), report.answer(3))?;
    // No sensor shows more than TjMax, which is 92 C in this model.
    ensure(text(5) == Some("92000"), report.answer(5))?;
    // The governor may ask for less than the limit.
    let ratio = report.value(6).map(|status| status >> 8);
    ensure(
        ratio.is_some_and(|ratio| (1..=12).contains(&ratio)),
        report.answer(6),
    )?;
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

fn ensure(holds: bool, what: impl std::fmt::Debug) -> Result<(), Failed> {
    if holds {
        Ok(())
    } else {
        Err(format!("{what:?}").into())
    }
}
