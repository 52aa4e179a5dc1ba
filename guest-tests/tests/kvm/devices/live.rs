//! Devices that change while Debian's full kernel runs: its thermal driver follows, and is interrupted.

use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Guest, Plan, Report, RunningGuest, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, DeviceDetails, DeviceSetParams, Method};
use serde_json::{Value, json};

use super::shared::expect;

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "devices::live::linux_sees_what_is_set_and_takes_the_interrupts_of_heat",
        live,
    )]
}

const CONFIG: &str = r#"
    model = "icelake-server"
    [[msr.device]]
    type = "thermal"
    source = "constant"
    celsius = 47.0
    tjmax = 100
    [[msr.device]]
    type = "scratch"
    msr = "0x3f00"
    reset = 7
    [[msr.device]]
    type = "table"
    [[msr.device.register]]
    msr = "0x3f01"
    value = 0x11
    [[msr.device.register]]
    msr = "0x3f02"
    write = "store"
"#;

const SCRATCH: u32 = 0x3f00;
const CONSTANT: u32 = 0x3f01;
const STORED: u32 = 0x3f02;
const PERF_STATUS: u32 = 0x198;
const PACKAGE_THERM_STATUS: u32 = 0x1b1;
/// The log of the thermal status: the package has been at TjMax.
const THROTTLED: u64 = 1 << 1;
/// The thermal status: it is at TjMax.
const THROTTLES: u64 = 1 << 0;

const TEMPERATURE: &str = "/sys/class/thermal/thermal_zone0/temp";
const TRIP: &str = "/sys/class/thermal/thermal_zone0/trip_point_0_temp";
const INTERRUPTS: &str = "/proc/interrupts";
const THROTTLING: &str = "/sys/devices/system/cpu/cpu0/thermal_throttle";

/// What the guest waits for, in the order in which it happens, with what is set then.
const CHANGES: [(&str, i32); 3] = [
    ("the temperature", 95),
    ("the count of throttling", 105),
    ("the time of throttling", 60),
];
/// The steps' numbers: the first change, and what is read last.
const FIRST: usize = 7;
const LAST: usize = FIRST + CHANGES.len();

fn plan() -> Plan {
    let changed = |path: String| Step::AwaitChange {
        path,
        milliseconds: 60_000,
    };
    Plan::new([
        Step::load_module("x86_pkg_temp_thermal"),
        Step::load_module("msr"),
        Step::read_file(TEMPERATURE),
        // The driver sets a threshold of the package there, and enables its interrupt.
        Step::write_file(TRIP, "90000"),
        Step::write_msr(0, STORED, 0x22),
        Step::read_msr(0, PERF_STATUS),
        Step::read_file(INTERRUPTS),
        changed(TEMPERATURE.into()),
        changed(format!("{THROTTLING}/core_throttle_count")),
        changed(format!("{THROTTLING}/core_throttle_total_time_ms")),
        Step::read_file(TEMPERATURE),
        Step::read_file(INTERRUPTS),
        Step::read_file(&format!("{THROTTLING}/package_throttle_count")),
        Step::read_msr(0, PACKAGE_THERM_STATUS),
        Step::read_msr(0, PERF_STATUS),
        Step::read_msr(0, SCRATCH),
        Step::read_msr(0, CONSTANT),
        Step::read_msr(0, STORED),
        Step::KernelLog,
    ])
}

fn live() -> Result<(), Failed> {
    let kernel = assets::kernel_of(Release::Bookworm, Flavour::Full)?;
    let guest = Guest::with_kernel(&kernel, CONFIG, plan())?;
    let socket = guest.folder().path("socket");
    let mut running = guest.option("--control", &socket).start()?;
    running.wait_for(&format!("@ {{\"Answer\":[{},", FIRST - 1))?;
    let mut client = Client::connect(&socket)?;
    for (device, keys) in [
        ("platform", json!({ "limit_mhz": 1500 })),
        ("scratch", json!({ "now": "0xffff000000000000" })),
        (
            "table",
            json!({ "now": { "0x3f01": 0x33, "0x3f02": [0x44] } }),
        ),
    ] {
        set(&mut client, device, &keys)?;
    }
    for (step, (what, celsius)) in (FIRST..).zip(CHANGES) {
        heat(&mut client, &mut running, step, what, celsius)?;
    }
    let report = running.wait()?.report()?;
    check(&report)
}

fn set(client: &mut Client, device: &str, keys: &Value) -> Result<DeviceDetails, Failed> {
    let params = DeviceSetParams {
        name: device.to_owned(),
        keys: keys.as_object().cloned().unwrap_or_default(),
    };
    let details: DeviceDetails = client.ask(&Method::DeviceSet(params))?;
    for (key, value) in keys.as_object().into_iter().flatten() {
        expect(key, details.keys.get(key), Some(value))?;
    }
    Ok(details)
}

/// Sets the temperature once the guest waits for a change, and waits until it has seen it.
fn heat(
    client: &mut Client,
    running: &mut RunningGuest,
    step: usize,
    what: &str,
    celsius: i32,
) -> Result<(), Failed> {
    // It looks at the file first.
    std::thread::sleep(Duration::from_secs(1));
    let at = Instant::now();
    set(client, "thermal", &json!({ "celsius": celsius }))?;
    running.wait_for(&format!("@ {{\"Answer\":[{step},"))?;
    let took = at.elapsed();
    println!("thermal: Linux shows {what} {took:?} after {celsius} C was set");
    if took > Duration::from_secs(1) {
        return Err(format!("Linux shows {what} {took:?} after {celsius} C was set").into());
    }
    Ok(())
}

fn check(report: &Report) -> Result<(), Failed> {
    let text = |step| report.text(step).map(str::trim);
    expect(
        "the trip point",
        report.answer(3),
        Some(&guest_tests::guest::Answer::Done),
    )?;
    for (step, millidegrees) in [(2, "47000"), (FIRST, "95000"), (LAST, "60000")] {
        expect("millidegrees", text(step), Some(millidegrees))?;
    }
    // 90 C, TjMax, and both on the way back, which is one interrupt: the temperature crosses them at once.
    let before = thermal_interrupts(text(FIRST - 1).unwrap_or_default())?;
    let after = thermal_interrupts(text(LAST + 1).unwrap_or_default())?;
    println!("thermal: interrupts {before} before, {after} after");
    expect("thermal interrupts", after - before, 3)?;
    expect("core_throttle_count", text(FIRST + 1), Some("1"))?;
    expect("package_throttle_count", text(LAST + 2), Some("1"))?;
    let milliseconds: u64 = text(FIRST + 2).unwrap_or_default().parse()?;
    // A second passes before it is cooled, and at most one more.
    if !(900..3000).contains(&milliseconds) {
        return Err(format!("Linux was throttled for {milliseconds} ms").into());
    }
    let status = report.value(LAST + 3).ok_or("no status")?;
    expect("status", status & (THROTTLES | THROTTLED), THROTTLED)?;
    // intel_pstate asks for the highest turbo frequency of the model.
    expect("ratio before", report.value(5), Some(34 << 8))?;
    for (step, what, value) in [
        (LAST + 4, "ratio", 15 << 8),
        (LAST + 5, "scratch", 0xffff_0000_0000_0000),
        (LAST + 6, "constant", 0x33),
        (LAST + 7, "stored", 0x44),
    ] {
        expect(what, report.value(step), Some(value))?;
    }
    let log = text(LAST + 8).ok_or("no log")?;
    let of_heat = log.lines().filter(|line| line.contains("temperature"));
    of_heat.for_each(|line| println!("thermal: {line}"));
    Ok(())
}

/// How many thermal interrupts the only CPU has had.
fn thermal_interrupts(interrupts: &str) -> Result<u64, Failed> {
    let line = interrupts
        .lines()
        .find_map(|line| line.trim().strip_prefix("TRM:"));
    let count = line.and_then(|line| line.split_whitespace().next());
    Ok(count
        .ok_or("no thermal interrupts in /proc/interrupts")?
        .parse()?)
}
