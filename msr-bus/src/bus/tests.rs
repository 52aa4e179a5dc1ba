use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::FakeVcpu;
use crate::{ExitReason, Unclaimed};

/// Answers reads with its value and takes writes of even ones; odd ones fault.
struct Even {
    name: &'static str,
    claims: Vec<MsrRange>,
    value: AtomicU64,
    stateful: bool,
}

impl Even {
    fn new(name: &'static str, claims: &[(u32, u32)]) -> Arc<Self> {
        Arc::new(Self {
            name,
            claims: claims
                .iter()
                .map(|(first, last)| MsrRange::new(*first, *last).unwrap())
                .collect(),
            value: AtomicU64::new(0),
            stateful: true,
        })
    }
}

impl MsrDevice for Even {
    fn name(&self) -> &str {
        self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        self.claims.clone()
    }

    fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        Ok(self.value.load(Ordering::Relaxed))
    }

    fn write(&self, _: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        if value & 1 != 0 {
            return Err(GeneralProtection);
        }
        self.value.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn save(&self) -> Option<DeviceState> {
        self.stateful
            .then(|| DeviceState::encode(1, &self.value.load(Ordering::Relaxed)))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        if !self.stateful {
            return Err(RestoreError::Stateless);
        }
        self.value.store(state.decode(1)?, Ordering::Relaxed);
        Ok(())
    }
}

fn bus(devices: &[&Arc<Even>]) -> Result<MsrBus, BuildError> {
    let add = |builder: BusBuilder, device: &&Arc<Even>| builder.device(Arc::clone(device) as _);
    devices.iter().fold(MsrBus::builder(), add).build()
}

fn refusal(devices: &[&Arc<Even>]) -> BuildError {
    bus(devices).expect_err("the devices cannot share a bus")
}

fn access(cpu: &FakeVcpu, index: u32, reason: ExitReason) -> MsrAccess<'_> {
    MsrAccess { index, reason, cpu }
}

#[test]
fn an_overlap_names_both_devices_in_their_order_and_what_both_claim() {
    for (first, second, range) in [
        ((0x10, 0x20), (0x20, 0x30), MsrRange::single(0x20)),
        ((0x20, 0x30), (0x10, 0x20), MsrRange::single(0x20)),
        ((0, 0x7ff), (0x5, 0x7), MsrRange::new(5, 7).unwrap()),
        (
            (u32::MAX, u32::MAX),
            (u32::MAX - 1, u32::MAX),
            MsrRange::single(u32::MAX),
        ),
    ] {
        let (a, b) = (Even::new("a", &[first]), Even::new("b", &[second]));
        let expected = BuildError::Overlap {
            first: "a".into(),
            second: "b".into(),
            range,
        };
        assert_eq!(refusal(&[&a, &b]), expected);
    }
    let a = Even::new("a", &[(0x610, 0x611)]);
    let b = Even::new("b", &[(0x611, 0x613)]);
    assert_eq!(
        refusal(&[&a, &b]).to_string(),
        "devices `a` and `b` both claim MSR 0x611"
    );
}

#[test]
fn an_overlap_with_a_claim_that_is_not_the_neighbour_is_found() {
    let a = Even::new("a", &[(0, 0x7ff)]);
    let b = Even::new("b", &[(0x900, 0x901), (0x700, 0x701)]);
    let c = Even::new("c", &[(0xa00, 0xa00)]);
    assert!(matches!(
        refusal(&[&c, &b, &a]),
        BuildError::Overlap { first, second, .. } if first == "b" && second == "a"
    ));
}

#[test]
fn a_device_that_claims_an_index_twice_is_named_twice() {
    let a = Even::new("a", &[(1, 2), (2, 3)]);
    assert_eq!(
        refusal(&[&a]).to_string(),
        "devices `a` and `a` both claim MSR 0x2"
    );
}

#[test]
fn a_claim_of_x2apic_indices_is_refused_and_its_neighbours_are_not() {
    for (claim, range) in [
        ((0x800, 0x800), MsrRange::single(0x800)),
        ((0x8ff, 0x900), MsrRange::single(0x8ff)),
        ((0, u32::MAX), MsrRange::X2APIC),
    ] {
        let expected = BuildError::X2apic {
            device: "a".into(),
            range,
        };
        assert_eq!(refusal(&[&Even::new("a", &[claim])]), expected);
    }
    let a = Even::new("a", &[(0x7ff, 0x7ff), (0x900, 0x900)]);
    assert!(bus(&[&a]).is_ok());
}

#[test]
fn two_devices_of_one_name_are_refused_with_the_way_out() {
    let (a, b) = (Even::new("a", &[(1, 1)]), Even::new("a", &[(2, 2)]));
    assert_eq!(
        refusal(&[&a, &b]).to_string(),
        "two devices are called `a`: give one of them another `name`"
    );
}

#[test]
fn an_access_goes_to_the_device_that_claims_the_index() {
    let (a, b) = (Even::new("a", &[(0, 1)]), Even::new("b", &[(2, 2)]));
    let bus = bus(&[&a, &b]).unwrap();
    let cpu = FakeVcpu::default();
    assert_eq!(bus.write(&access(&cpu, 1, ExitReason::Filter), 10), Ok(()));
    assert_eq!(bus.write(&access(&cpu, 2, ExitReason::Unknown), 20), Ok(()));
    assert_eq!(bus.read(&access(&cpu, 0, ExitReason::Filter)), Ok(10));
    assert_eq!(bus.read(&access(&cpu, 2, ExitReason::Filter)), Ok(20));
    let claims: Vec<_> = bus
        .claims()
        .map(|(range, device)| (range.to_string(), device.name().to_owned()))
        .collect();
    assert_eq!(
        claims,
        [
            ("0x0-0x1".into(), "a".into()),
            ("0x2".into(), "b".to_owned())
        ]
    );
}

#[test]
fn an_unclaimed_access_gets_the_answer_for_its_reason() {
    let fallback = Fallback {
        filter: Unclaimed::Fault,
        unknown: Unclaimed::Ignore,
        invalid: Unclaimed::Fault,
    };
    let bus = MsrBus::builder().fallback(fallback).build().unwrap();
    let cpu = FakeVcpu::default();
    for (reason, read, write) in [
        (
            ExitReason::Filter,
            Err(GeneralProtection),
            Err(GeneralProtection),
        ),
        (ExitReason::Unknown, Ok(0), Ok(())),
        (
            ExitReason::Invalid,
            Err(GeneralProtection),
            Err(GeneralProtection),
        ),
    ] {
        assert_eq!(bus.read(&access(&cpu, 5, reason)), read, "{reason}");
        assert_eq!(bus.write(&access(&cpu, 5, reason), 9), write, "{reason}");
    }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl MsrObserver for Recorder {
    fn observe(&self, event: &MsrEvent<'_>) {
        let answered_by = match event.answered_by {
            AnsweredBy::Device(device) => device.name().to_owned(),
            AnsweredBy::Fallback => "fallback".to_owned(),
        };
        let outcome = event
            .outcome
            .map_or("#GP".into(), |value| format!("{value:#x}"));
        let MsrEvent { access, kind, .. } = event;
        self.0.lock().unwrap().push(format!(
            "{} {kind} {:#x} {} {outcome} {answered_by}",
            access.cpu.id(),
            access.index,
            access.reason
        ));
    }
}

#[test]
fn the_observer_sees_each_access_once_with_its_outcome_and_who_answered() {
    let recorder = Arc::new(Recorder::default());
    let bus = MsrBus::builder()
        .device(Even::new("even", &[(0x10, 0x1f)]))
        .fallback(Fallback {
            unknown: Unclaimed::Ignore,
            ..Fallback::default()
        })
        .observer(Arc::clone(&recorder) as _)
        .build()
        .unwrap();
    let cpu = FakeVcpu::default();
    let _ = bus.write(&access(&cpu, 0x10, ExitReason::Filter), 0x42);
    let _ = bus.write(&access(&cpu, 0x10, ExitReason::Filter), 0x43);
    let _ = bus.read(&access(&cpu, 0x1f, ExitReason::Invalid));
    let _ = bus.read(&access(&cpu, 0x20, ExitReason::Unknown));
    let _ = bus.write(&access(&cpu, 0x20, ExitReason::Unknown), 0x44);
    let _ = bus.read(&access(&cpu, 0x20, ExitReason::Filter));
    assert_eq!(
        *recorder.0.lock().unwrap(),
        [
            "vCPU 0 w 0x10 filter 0x42 even",
            "vCPU 0 w 0x10 filter #GP even",
            "vCPU 0 r 0x1f invalid 0x42 even",
            "vCPU 0 r 0x20 unknown 0x0 fallback",
            "vCPU 0 w 0x20 unknown 0x44 fallback",
            "vCPU 0 r 0x20 filter #GP fallback",
        ]
    );
}

fn stateless(name: &'static str, claim: (u32, u32)) -> Arc<Even> {
    let mut device = Even::new(name, &[claim]);
    Arc::get_mut(&mut device).unwrap().stateful = false;
    device
}

#[test]
fn a_restored_bus_answers_as_the_saved_one() {
    let devices = || {
        let (a, b) = (Even::new("a", &[(1, 1)]), Even::new("b", &[(2, 2)]));
        bus(&[&a, &b, &stateless("c", (3, 3))]).unwrap()
    };
    let (saved, restored) = (devices(), devices());
    let cpu = FakeVcpu::default();
    saved
        .write(&access(&cpu, 1, ExitReason::Filter), 10)
        .unwrap();
    saved
        .write(&access(&cpu, 2, ExitReason::Filter), 20)
        .unwrap();
    let state = BusState::from_json(&saved.save().to_json()).unwrap();
    restored.restore(&state).unwrap();
    for (index, value) in [(1, 10), (2, 20), (3, 0)] {
        assert_eq!(
            restored.read(&access(&cpu, index, ExitReason::Filter)),
            Ok(value)
        );
    }
}

#[test]
fn a_state_that_does_not_fit_the_bus_is_refused_and_says_why() {
    let cases = [
        (
            "{\"version\": 1, \"devices\": []}",
            "there is no state for device `a`",
        ),
        (
            "{\"version\": 1, \"devices\": [
                {\"device\": \"a\", \"state\": {\"version\": 1, \"data\": 2}},
                {\"device\": \"x\", \"state\": {\"version\": 1, \"data\": 2}}]}",
            "there is state for device `x`, which this bus lacks",
        ),
        (
            "{\"version\": 1, \"devices\": [
                {\"device\": \"a\", \"state\": {\"version\": 1, \"data\": 2}},
                {\"device\": \"a\", \"state\": {\"version\": 1, \"data\": 4}}]}",
            "there are two states for device `a`",
        ),
        (
            "{\"version\": 1, \"devices\": [
                {\"device\": \"a\", \"state\": {\"version\": 9, \"data\": 2}}]}",
            "device `a`: the state has version 9, this program reads version 1",
        ),
        (
            "{\"version\": 1, \"devices\": [
                {\"device\": \"a\", \"state\": {\"version\": 1, \"data\": 2}},
                {\"device\": \"c\", \"state\": {\"version\": 1, \"data\": 2}}]}",
            "device `c`: the device keeps no state, yet the file has some for it",
        ),
    ];
    for (json, message) in cases {
        let bus = bus(&[&Even::new("a", &[(1, 1)]), &stateless("c", (3, 3))]).unwrap();
        let state = BusState::from_json(json).unwrap();
        assert_eq!(bus.restore(&state).unwrap_err().to_string(), message);
    }
    let bus = bus(&[&Even::new("a", &[(1, 1)])]).unwrap();
    let json = "{\"version\": 1, \"devices\": [
        {\"device\": \"a\", \"state\": {\"version\": 1, \"data\": \"two\"}}]}";
    let error = bus
        .restore(&BusState::from_json(json).unwrap())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("device `a`: the state's data is damaged: "),
        "{error}"
    );
}
