//! Configuration files: what is read is printed in a form that means the same, and its MSR part becomes a plan or a
//! refusal.

use std::sync::Arc;

use msr_bus::DeviceModel;
use msr_bus::testing::FakeClock;
use msr_kvm::{MsrPlan, MsrPlanBuilder};
use msr_vmm::Config;

/// Models that read what the host has; what they find is not the input's.
const HOST_MODELS: [&str; 3] = ["passthrough", "rapl", "thermal"];

/// Whether making what a configuration says depends on files of this machine.
pub(crate) fn reads_the_host(config: &Config) -> bool {
    let of_the_host = |model: &str| HOST_MODELS.contains(&model);
    config.msr.devices.iter().any(|d| of_the_host(&d.model)) || config.msr.profile.is_some()
}

/// Reads `data` as a configuration file.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let config: Config = match toml::from_str(text) {
        Ok(config) => config,
        Err(error) => return drop(error.to_string()),
    };
    let printed = toml::to_string(&config).expect("a configuration can be printed");
    let again = toml::from_str::<Config>(&printed);
    let again = again.unwrap_or_else(|error| panic!("{text}\nis printed as\n{printed}\n{error}"));
    // Not compared as values: NaN, which the keys of a device may hold, equals nothing.
    assert_eq!(printed, toml::to_string(&again).unwrap(), "{text}");

    let (Ok(topology), Ok(cpu)) = (config.vm.topology(), config.cpu.cpu_identity()) else {
        return;
    };
    if reads_the_host(&config) {
        return;
    }
    let plan = MsrPlan::builder(topology, cpu)
        .device_clock(Arc::new(FakeClock::default()))
        .config(&config.msr, DeviceModel::all());
    match plan.and_then(MsrPlanBuilder::build) {
        Ok(_) => {}
        Err(error) => drop(error.to_string()),
    }
}
