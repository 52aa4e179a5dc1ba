//! Saving the devices of a model in the middle of a run, and restoring them into a fresh bus.

use std::time::Duration;

use msr_bus::testing::FakeVcpu;
use msr_bus::{BusState, ExitReason, GeneralProtection, MsrAccess, MsrBus, RestoreError, VcpuId};

use super::*;

const TOPOLOGY: Topology = Topology::flat(2);

/// The bus of a model, some time after its start.
fn bus(model: &BuiltIn, seconds: u64) -> std::sync::Arc<MsrBus> {
    plan_at(&built_in(model), TOPOLOGY, Duration::from_secs(seconds)).bus
}

/// Every register that a device claims, on every vCPU.
fn registers(bus: &MsrBus) -> Vec<(u32, u32)> {
    let claims = bus
        .claims()
        .flat_map(|(range, _)| range.first()..=range.last());
    claims
        .flat_map(|index| (0..TOPOLOGY.vcpus()).map(move |vcpu| (index, vcpu)))
        .collect()
}

fn access<T>(index: u32, vcpu: u32, act: impl FnOnce(&MsrAccess<'_>) -> T) -> T {
    let cpu = FakeVcpu::new(VcpuId(vcpu), TOPOLOGY);
    act(&MsrAccess {
        index,
        reason: ExitReason::Filter,
        cpu: &cpu,
    })
}

fn read(bus: &MsrBus, (index, vcpu): (u32, u32)) -> Result<u64, GeneralProtection> {
    access(index, vcpu, |access| bus.read(access))
}

/// Writes to every register, as a guest might. Returns how many took another value.
fn disturb(bus: &MsrBus) -> usize {
    let mut changed = 0;
    for (index, vcpu) in registers(bus) {
        let before = read(bus, (index, vcpu));
        // Which bits a register has differs. The values differ by vCPU, and lock nothing that matters later.
        for value in [1, 2, 4, 0x100, 0x8_0000].map(|value| value << vcpu) {
            // Most of these are #GP, as they are to a guest.
            let _ = access(index, vcpu, |access| bus.write(access, value));
        }
        changed += usize::from(read(bus, (index, vcpu)) != before);
    }
    changed
}

#[test]
fn a_restored_bus_of_each_model_answers_as_the_saved_one() {
    for model in BuiltIn::all() {
        // The saved machine has run for 1000 s, the fresh one for 3 s.
        let (saved, fresh) = (bus(model, 1000), bus(model, 3));
        assert!(disturb(&saved) > 4, "{}", model.name);
        let differing = |a: &MsrBus, b: &MsrBus| {
            let all = registers(a).into_iter();
            all.filter(|register| read(a, *register) != read(b, *register))
                .collect::<Vec<_>>()
        };
        assert!(!differing(&saved, &fresh).is_empty(), "{}", model.name);
        let state = BusState::from_json(&saved.save().to_json()).unwrap();
        fresh.restore(&state).unwrap();
        assert_eq!(differing(&saved, &fresh), [], "{}", model.name);
        assert_eq!(fresh.save(), saved.save(), "{}", model.name);
    }
}

#[test]
fn a_state_of_another_version_is_refused_and_named() {
    let model = &BuiltIn::all()[0];
    let saved = bus(model, 10).save().to_json();
    let mut json: serde_json::Value = serde_json::from_str(&saved).unwrap();
    json["version"] = 2.into();
    let error = BusState::from_json(&json.to_string()).unwrap_err();
    assert!(matches!(error, RestoreError::Version { found: 2, .. }));

    let devices = json["devices"].as_array().unwrap().len();
    for number in 0..devices {
        let mut json: serde_json::Value = serde_json::from_str(&saved).unwrap();
        json["devices"][number]["state"]["version"] = 99.into();
        let name = json["devices"][number]["device"]
            .as_str()
            .unwrap()
            .to_owned();
        let state = BusState::from_json(&json.to_string()).unwrap();
        let error = bus(model, 0).restore(&state).unwrap_err().to_string();
        assert!(
            error.contains(&name) && error.contains("version 99"),
            "{error}"
        );
    }
}

#[test]
fn a_corrupted_state_is_refused() {
    for model in BuiltIn::all() {
        let saved = bus(model, 10).save().to_json();
        assert!(BusState::from_json(&saved[..saved.len() / 2]).is_err());
        let json: serde_json::Value = serde_json::from_str(&saved).unwrap();
        for number in 0..json["devices"].as_array().unwrap().len() {
            let mut json = json.clone();
            json["devices"][number]["state"]["data"] = "damaged".into();
            let state = BusState::from_json(&json.to_string()).unwrap();
            assert!(matches!(
                bus(model, 0).restore(&state),
                Err(RestoreError::Device { source, .. }) if matches!(*source, RestoreError::Data(_))
            ));
        }
    }
}

#[test]
fn the_state_of_another_model_is_refused() {
    let [a, b] = ["icelake-server", "zen3-server"]
        .map(|name| BuiltIn::all().iter().find(|m| m.name == name).unwrap());
    assert!(bus(b, 0).restore(&bus(a, 10).save()).is_err());
    assert!(bus(a, 0).restore(&bus(b, 10).save()).is_err());
}
