//! Saved state from an untrusted file: a bus's, or one device's.
//!
//! It is refused or taken. What was taken is what the next one of its kind takes too; a device that refuses a state keeps
//! the one it has.

use std::sync::Arc;

use msr_bus::testing::FakeClock;
use msr_bus::{BusState, DeviceState, RestoreError};
use msr_vmm::Config;

use crate::devices::{Machine, configurations};

thread_local! {
    static CONFIGURATIONS: Vec<Config> = configurations();
}

/// The first byte of `data` chooses the configuration; the rest is the file.
pub fn run(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    CONFIGURATIONS.with(|all| {
        let config = &all[usize::from(*choice) % all.len()];
        of_a_bus(config, text);
        of_a_device(config, text);
    });
}

fn machine(config: &Config) -> Machine {
    Machine::new(config, &Arc::new(FakeClock::default()))
}

fn of_a_bus(config: &Config, text: &str) {
    let state = match BusState::from_json(text) {
        Ok(state) => state,
        Err(error) => return drop(error.to_string()),
    };
    let machine_of_file = machine(config);
    let before = machine_of_file.bus.save();
    match machine_of_file.bus.restore(&state) {
        Ok(()) => {
            let saved = machine_of_file.bus.save();
            let again = machine(config);
            let taken = again.bus.restore(&saved);
            taken.expect("a bus takes what its like has saved");
            assert_eq!(again.bus.save(), saved);
        }
        // The devices before that one have been restored already, as the documentation says.
        Err(error @ RestoreError::Device { .. }) => drop(error.to_string()),
        Err(error) => assert_eq!(machine_of_file.bus.save(), before, "{error}"),
    }
}

fn of_a_device(config: &Config, text: &str) {
    let Ok(state) = serde_json::from_str::<DeviceState>(text) else {
        return;
    };
    for device in &machine(config).devices {
        let before = device.save();
        match device.restore(&state) {
            Ok(()) => {
                let saved = device.save().expect("a device that takes state has some");
                device
                    .restore(&saved)
                    .expect("a device takes what it has saved");
                assert_eq!(device.save(), Some(saved));
            }
            Err(error) => assert_eq!(device.save(), before, "{}: {error}", device.name()),
        }
    }
}
