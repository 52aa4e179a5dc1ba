//! The law of restored state, for every device model: what a guest could not have brought about is refused, and a
//! refused state changes nothing.
//!
//! A saved state is damaged in one place and restored. If the device takes it, each register must read as on a new
//! device, or as on a new device to which the guest has written just that. Registers that show time, temperature or
//! what other registers hold are left out by their indices.

use proptest::prelude::*;
use serde_json::Value;

use crate::devices::fixture::Fixture;
use crate::testing::{ICE_LAKE, ZEN_3};
use crate::{CpuIdentity, DeviceConfig, DeviceModel, DeviceState, MsrDevice, Topology};

const TOPOLOGY: Topology = Topology {
    packages: 2,
    cores: 1,
    threads: 2,
};

/// A device's configuration, its CPU, and the registers of it that the law does not speak of.
type Case = (&'static str, CpuIdentity, &'static [u32]);

const CASES: &[Case] = &[
    ("type = 'aperfmperf'", ICE_LAKE, &[]),
    ("type = 'aperfmperf'", ZEN_3, &[0xc000_00e7, 0xc000_00e8]),
    ("type = 'microcode'\nrevision = 7", ICE_LAKE, &[0x8b]),
    ("type = 'microcode'", ICE_LAKE, &[]),
    ("type = 'microcode'\nrevision = 7", ZEN_3, &[0x8b]),
    // IA32_PERF_STATUS follows IA32_PERF_CTL.
    ("type = 'platform'\nbase_mhz = 2000", ICE_LAKE, &[0x198]),
    (
        "type = 'platform'\nbase_mhz = 2000\nconfig_tdp = false",
        ICE_LAKE,
        &[0x198],
    ),
    // PStateStat follows PStateCtl.
    ("type = 'platform'\nbase_mhz = 2000", ZEN_3, &[0xc001_0063]),
    // The number shows where the control register says so.
    ("type = 'ppin'\nppin = [1, 2]", ICE_LAKE, &[0x4f]),
    ("type = 'ppin'\nppin = [1, 2]\nlocked = true", ICE_LAKE, &[]),
    (
        "type = 'ppin'\nppin = [1, 2]\nenabled = true",
        ZEN_3,
        &[0xc001_02f1],
    ),
    (
        "type = 'rapl'\ndomains = ['package', 'dram', 'pp0', 'pp1']",
        ICE_LAKE,
        &[0x611, 0x619, 0x639, 0x641],
    ),
    ("type = 'rapl'\ndomains = ['package']", ICE_LAKE, &[0x611]),
    ("type = 'rapl'", ZEN_3, &[0xc001_029a, 0xc001_029b]),
    ("type = 'scratch'\nmsr = 0x400", ICE_LAKE, &[]),
    // The status registers follow the temperature and the thresholds.
    ("type = 'thermal'", ICE_LAKE, &[0x19c, 0x1b1]),
    (
        "type = 'table'
         register = [
             { msr = 1, value = 5 },
             { msr = 2, value = 5, write = 'ignore' },
             { msr = 3, value = 0x15, write = 'store', reserved = 0xf0, ignored = 0xf },
             { msr = 4, value = 0x100, write = 'store', lock = 8 },
             { msr = 5, write = 'store', lock = 8 },
         ]",
        ICE_LAKE,
        &[],
    ),
];

fn build(fixture: &Fixture, keys: &str) -> std::sync::Arc<dyn MsrDevice> {
    let config: DeviceConfig = toml::from_str(keys).unwrap();
    config.build(DeviceModel::all(), &fixture.context).unwrap()
}

/// Every number in `value`.
fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Number(_) => found.push(value),
        Value::Array(values) => values.iter_mut().for_each(|v| numbers(v, found)),
        Value::Object(values) => values.values_mut().for_each(|v| numbers(v, found)),
        _ => {}
    }
}

fn damaged(state: &DeviceState, place: usize, number: u64) -> Option<DeviceState> {
    let mut value = serde_json::to_value(state).unwrap();
    let mut found = Vec::new();
    numbers(value.get_mut("data").unwrap(), &mut found);
    if found.is_empty() {
        return None;
    }
    let place = place % found.len();
    *found[place] = number.into();
    Some(serde_json::from_value(value).unwrap())
}

/// Numbers where mistakes hide: single bits, small ones, all.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u32..64).prop_map(|bit| 1 << bit),
        0u64..0x400,
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
    ]
}

#[test]
fn every_model_that_keeps_state_is_here() {
    // They are KVM's or the host's, and nothing of them is kept.
    const STATELESS: [&str; 2] = ["forward", "passthrough"];
    for model in DeviceModel::all() {
        let line = format!("type = '{}'", model.name());
        let here = CASES.iter().any(|(keys, ..)| keys.starts_with(&line));
        assert_ne!(here, STATELESS.contains(&model.name()), "{line}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_no_guest_could_have_brought_about_is_refused(
        case in 0..CASES.len(),
        place in any::<usize>(),
        number in number(),
    ) {
        let (keys, cpu, left_out) = CASES[case];
        let fixture = Fixture::new(cpu, TOPOLOGY);
        let device = build(&fixture, keys);
        let saved = device.save().expect("it keeps state");
        let Some(state) = damaged(&saved, place, number) else {
            return Ok(());
        };
        if device.restore(&state).is_err() {
            prop_assert_eq!(device.save(), Some(saved), "a refused state changed something");
            return Ok(());
        }
        let registers = device.claims().into_iter().flat_map(|r| r.first()..=r.last());
        for index in registers.filter(|index| !left_out.contains(index)) {
            for vcpu in 0..TOPOLOGY.vcpus() {
                let restored = fixture.read(&*device, vcpu, index);
                let new = build(&fixture, keys);
                if restored == fixture.read(&*new, vcpu, index) {
                    continue;
                }
                let value = restored.expect("a readable register is readable from reset on");
                let written = fixture.write(&*new, vcpu, index, value);
                prop_assert!(written.is_ok(), "{keys}: MSR {index:#x} holds {value:#x}");
                prop_assert_eq!(fixture.read(&*new, vcpu, index), restored, "{}: MSR {:#x}", keys, index);
            }
        }
    }
}
