//! The control socket of a Debian guest with two CPUs: every command of `msr-vmm ctl`, and the guest sees what they did.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use guest_tests::assets;
use guest_tests::guest::{Guest, Plan, RestoredGuest, Step, complaint};
use libtest_mimic::{Failed, Trial};
use msr_trace::{Ending, Trace};

use super::control::{ctl, ensure, json, said};
use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("control_debian": every_command_steers_debian)
}

const CONFIG: &str = r#"
    vm.cpus = 2
    [[msr.device]]
    type = "scratch"
    msr = "0x3f00"
    [[msr.device]]
    type = "aperfmperf"
"#;
const SCRATCH: u32 = 0x3f00;
/// EFER.LMA and LME: a kernel in long mode.
const LONG_MODE: u64 = 1 << 10 | 1 << 8;

/// Waits for the power button, and then looks at what was written to an MSR of its second CPU.
fn plan() -> Plan {
    /// How often the button was pressed.
    const COUNT: &str = "/sys/firmware/acpi/interrupts/ff_pwr_btn";
    Plan::new([
        Step::load_module("button"),
        Step::load_module("msr"),
        Step::write_msr(1, SCRATCH, 0x77),
        Step::AwaitChange {
            path: COUNT.to_owned(),
            milliseconds: 120_000,
        },
        Step::read_msr(1, SCRATCH),
        Step::KernelLog,
    ])
}

fn every_command_steers_debian() -> Result<(), Failed> {
    let guest = Guest::new(CONFIG, plan())?;
    let socket = guest.folder().path("socket");
    let copy = guest.folder().path("copy.socket");
    let snapshot = guest.folder().path("snapshot");
    let filter = guest.folder().file(
        "filter.toml",
        "[[rule]]\nmsrs = [\"IA32_FEAT_CTL\"]\naccess = \"w\"\nverdict = \"deny\"\n",
    )?;
    let scenario = guest.folder().file(
        "scenario.toml",
        "[[msr.scenario]]\n[[msr.scenario.step]]\nwait = '100ms'\ndo = 'power-button'\n",
    )?;
    let guest_trace = guest.folder().path("trace");
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("no UTF-8");
    // Within the sandbox no trace can begin.
    let guest = guest.option("--sandbox", "off");
    let mut running = guest.option("--control", &socket).start()?;
    running.wait_for("@ {\"Answer\":[2,")?;
    // The guest looks at the button's count first.
    thread::sleep(Duration::from_secs(1));

    let status = json(&socket, &["status"])?;
    ensure(
        status["vcpus"] == 2 && status["state"] == "running",
        &status,
    )?;
    ensure(status["handles_power_button"] == true, &status)?;
    let waiting = in_background(&socket, &["wait"])?;
    let watching = in_background(&socket, &["stats", "--watch"])?;

    // What the guest's second CPU wrote, and what it will read.
    ensure(value(&socket, "0x3f00", 1)? == 0x77, "the guest's write")?;
    ensure(value(&socket, "0x3f00", 0)? == 0, "the other CPU")?;
    said(&socket, &["write", "0x3f00", "0x99", "--vcpu", "1"])?;
    for vcpu in [0, 1] {
        let efer = value(&socket, "IA32_EFER", vcpu)?;
        ensure(efer & LONG_MODE == LONG_MODE, (vcpu, efer))?;
        let before = value(&socket, "IA32_TIME_STAMP_COUNTER", vcpu)?;
        let after = value(&socket, "IA32_TIME_STAMP_COUNTER", vcpu)?;
        ensure(after > before, (vcpu, before, after))?;
    }

    ensure(said(&socket, &["pause"])? == "paused\n", "pause")?;
    thread::sleep(Duration::from_secs(3));
    ensure(json(&socket, &["status"])?["state"] == "paused", "status")?;
    ensure(said(&socket, &["resume"])? == "running\n", "resume")?;

    let stats = said(&socket, &["stats"])?;
    ensure(stats.contains("0x3f00"), &stats)?;
    let devices = said(&socket, &["device", "list"])?;
    ensure(
        devices.contains("scratch") && devices.contains("aperfmperf"),
        &devices,
    )?;
    said(&socket, &["device", "set", "aperfmperf", "ratio=1.5"])?;
    let shown = json(&socket, &["device", "show", "aperfmperf"])?;
    ensure(shown["keys"]["ratio"] == 1.5, &shown)?;
    let refused = ctl(&socket, &["device", "set", "scratch", "reset=1"])?;
    ensure(refused.status.code() == Some(2), &refused)?;
    said(&socket, &["filter", "set", &text(&filter)?])?;
    let rules = said(&socket, &["filter", "show"])?;
    ensure(rules.contains("0x3a"), &rules)?;

    // The kernel's functions have names in a trace that begins late.
    let trace = guest_trace.as_path();
    said(&socket, &["trace", "start", &text(trace)?])?;
    value(&socket, "0x3f00", 0)?;
    let stopped = json(&socket, &["trace", "stop"])?;
    let recorded = Trace::open(trace)?;
    ensure(
        recorded.ending() == Ending::Whole && !recorded.is_empty(),
        (recorded.ending(), &stopped),
    )?;
    ensure(recorded.lstar().is_some(), "no IA32_LSTAR")?;
    ensure(recorded.header().kernel.build_id.is_some(), "no build ID")?;

    // A copy goes its own way; this guest goes on.
    said(&socket, &["snapshot", &text(&snapshot)?])?;
    let mut copied = RestoredGuest::start(&snapshot, copy.clone())?;
    copied.client()?;
    ensure(value(&copy, "0x3f00", 1)? == 0x99, "the copy's register")?;
    let shown = json(&copy, &["device", "show", "aperfmperf"])?;
    ensure(shown["keys"]["ratio"] == 1.5, &shown)?;
    ensure(said(&copy, &["filter", "show"])? == rules, "its filter")?;
    said(&copy, &["power-button"])?;
    let (status, console) = copied.wait()?;
    ensure(
        status.success() && console.contains("@ {\"Answer\":[4,{\"Value\":153}]}"),
        (status, &console),
    )?;

    // Another copy ends at once.
    let mut ended = RestoredGuest::start(&snapshot, copy.clone())?;
    ended.client()?;
    said(&copy, &["stop"])?;
    let (status, _) = ended.wait()?;
    ensure(status.code() == Some(1), status)?;

    said(&socket, &["scenario", &text(&scenario)?])?;
    let outcome = running.wait()?;
    ensure(outcome.status.success(), outcome.status)?;
    let report = outcome.report()?;
    ensure(report.value(4) == Some(0x99), report.answer(4))?;
    let log = report.text(5).ok_or("no log")?;
    ensure(complaint(log).is_none(), complaint(log))?;
    let waiting = waiting.wait_with_output()?;
    ensure(
        waiting.status.success() && waiting.stdout == b"power-off\n",
        &waiting,
    )?;
    let watching = watching.wait_with_output()?;
    let tables = String::from_utf8_lossy(&watching.stdout).into_owned();
    ensure(
        watching.status.success() && tables.matches("answered by").count() > 2,
        &tables,
    )
}

/// The value of an MSR as `ctl read` gives it.
fn value(socket: &Path, msr: &str, vcpu: u32) -> Result<u64, Failed> {
    let answer = json(socket, &["read", msr, "--vcpu", &vcpu.to_string()])?;
    let value = answer["value"].as_str().ok_or("no value")?;
    Ok(u64::from_str_radix(value.trim_start_matches("0x"), 16)?)
}

fn in_background(socket: &Path, arguments: &[&str]) -> Result<Child, Failed> {
    let mut command = Command::new(assets::msr_vmm()?);
    command.arg("ctl").arg(socket).args(arguments);
    Ok(command.stdout(Stdio::piped()).spawn()?)
}
