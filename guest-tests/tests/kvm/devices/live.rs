//! Devices that change while Debian's full kernel runs: its thermal driver follows.

use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Guest, Plan, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, DeviceDetails, DeviceSetParams, Method};
use serde_json::json;

use super::shared::expect;

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "devices::live::linux_sees_the_temperature_that_is_set_and_the_throttling_after_it",
        temperature,
    )]
}

const CONFIG: &str = r#"
    model = "icelake-server"
    [[msr.device]]
    type = "thermal"
    source = "constant"
    celsius = 47.0
    tjmax = 100
"#;

const PACKAGE_THERM_STATUS: u32 = 0x1b1;
/// The log of the thermal status: the package has been at TjMax.
const THROTTLED: u64 = 1 << 1;
/// The thermal status: it is at TjMax.
const THROTTLES: u64 = 1 << 0;

fn temperature() -> Result<(), Failed> {
    const TEMPERATURE: &str = "/sys/class/thermal/thermal_zone0/temp";
    let changed = || Step::AwaitChange {
        path: TEMPERATURE.to_owned(),
        milliseconds: 60_000,
    };
    let plan = Plan::new([
        Step::load_module("x86_pkg_temp_thermal"),
        Step::load_module("msr"),
        Step::read_file(TEMPERATURE),
        changed(),
        changed(),
        changed(),
        Step::read_msr(0, PACKAGE_THERM_STATUS),
    ]);
    let kernel = assets::kernel_of(Release::Bookworm, Flavour::Full)?;
    let guest = Guest::with_kernel(&kernel, CONFIG, plan)?;
    let socket = guest.folder().path("socket");
    let mut running = guest.option("--control", &socket).start()?;
    running.wait_for("@ {\"Answer\":[2,")?;
    let mut client = Client::connect(&socket)?;
    // Each once the guest waits for a change: it looks at the file first. No sensor shows more than TjMax.
    for (step, celsius) in [(3, 95), (4, 105), (5, 60)] {
        std::thread::sleep(Duration::from_secs(1));
        let keys = json!({ "celsius": celsius });
        let params = DeviceSetParams {
            name: "thermal".to_owned(),
            keys: keys.as_object().cloned().unwrap_or_default(),
        };
        let set = Instant::now();
        let details: DeviceDetails = client.ask(&Method::DeviceSet(params))?;
        expect("celsius", &details.keys["celsius"], &json!(celsius))?;
        running.wait_for(&format!("@ {{\"Answer\":[{step},"))?;
        let took = set.elapsed();
        println!("thermal: Linux shows {celsius} C {took:?} after it was set");
        if took > Duration::from_secs(1) {
            return Err(format!("Linux shows {celsius} C after {took:?}").into());
        }
    }
    let report = running.wait()?.report()?;
    for (step, millidegrees) in [(2, "47000"), (3, "95000"), (4, "100000"), (5, "60000")] {
        expect(
            "millidegrees",
            report.text(step).map(str::trim),
            Some(millidegrees),
        )?;
    }
    let status = report.value(6).ok_or("no status")?;
    expect("status", status & (THROTTLES | THROTTLED), THROTTLED)
}
