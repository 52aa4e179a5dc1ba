use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::testing::FakeVcpu;
use crate::{ExitReason, MsrBus, MsrDevice, MsrEvent, MsrObserver, MsrRange, U64, VcpuId};

/// MSR 0x10 to 0x1f; a read gives how often there was one, and a write is noted.
#[derive(Default)]
struct Counter {
    reads: Mutex<u64>,
    written: Mutex<Vec<u64>>,
}

impl MsrDevice for Counter {
    fn name(&self) -> &str {
        "counter"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![MsrRange::new(0x10, 0x1f).unwrap()]
    }

    fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let mut reads = self.reads.lock().unwrap();
        *reads += 1;
        Ok(*reads)
    }

    fn write(&self, _: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        self.written.lock().unwrap().push(value);
        Ok(())
    }
}

/// Which accesses went wrong.
#[derive(Default)]
struct Injected(Mutex<Vec<Option<FaultKind>>>);

impl MsrObserver for Injected {
    fn observe(&self, event: &MsrEvent<'_>) {
        self.0.lock().unwrap().push(event.injected);
    }
}

struct Bench {
    bus: MsrBus,
    device: Arc<Counter>,
    injected: Arc<Injected>,
}

const VCPUS: u32 = 4;

fn rule(kind: FaultKind) -> FaultConfig {
    FaultConfig {
        msrs: vec![MsrRange::new(0x10, 0x1f).unwrap()],
        access: Access::all(),
        kind,
        probability: None,
        interval: Some(3),
        times: None,
        space: 0,
        bits: None,
        delay_us: (kind == FaultKind::Delay).then_some(1),
        vcpus: None,
        seed: U64(0),
    }
}

impl Bench {
    fn new(rules: &[FaultConfig]) -> Self {
        let (device, injected) = (Arc::new(Counter::default()), Arc::new(Injected::default()));
        let bus = MsrBus::builder()
            .device(device.clone())
            .observer(injected.clone())
            .faults(rules.to_vec(), VCPUS);
        Self {
            bus: bus.build().unwrap(),
            device,
            injected,
        }
    }

    fn read(&self, vcpu: u32, index: u32) -> Result<u64, GeneralProtection> {
        let cpu = FakeVcpu {
            id: VcpuId(vcpu),
            ..FakeVcpu::default()
        };
        self.bus.read(&MsrAccess {
            index,
            reason: ExitReason::Filter,
            cpu: &cpu,
        })
    }

    fn write(&self, value: u64) -> Result<(), GeneralProtection> {
        let cpu = FakeVcpu::default();
        let access = MsrAccess {
            index: 0x10,
            reason: ExitReason::Filter,
            cpu: &cpu,
        };
        self.bus.write(&access, value)
    }

    /// Which of the next `count` reads of a vCPU go wrong, from 1.
    fn wrong(&self, vcpu: u32, count: usize) -> Vec<usize> {
        let went_wrong = |number: &usize| {
            let _ = self.read(vcpu, 0x10);
            let injected = self.injected.0.lock().unwrap().last().copied();
            assert!(*number > 0);
            injected.flatten().is_some()
        };
        (1..=count).filter(went_wrong).collect()
    }
}

fn refused(rule: FaultConfig) -> String {
    let built = MsrBus::builder()
        .device(Arc::new(Counter::default()))
        .faults(vec![rule], VCPUS)
        .build();
    built.unwrap_err().to_string()
}

#[test]
fn each_nth_access_goes_wrong_after_a_space_and_so_often_only() {
    let nth = Bench::new(&[rule(FaultKind::Gp)]);
    assert_eq!(nth.wrong(0, 10), [3, 6, 9]);
    // Each vCPU counts for itself.
    assert_eq!(nth.wrong(1, 3), [3]);
    let bounded = Bench::new(&[FaultConfig {
        space: 4,
        times: Some(2),
        ..rule(FaultKind::Gp)
    }]);
    assert_eq!(bounded.wrong(0, 30), [7, 10]);
    assert_eq!(bounded.bus.faults().unwrap().injected(), 2);
}

#[test]
fn only_the_accesses_that_a_rule_names_go_wrong() {
    let always = FaultConfig {
        interval: Some(1),
        ..rule(FaultKind::Gp)
    };
    let bench = Bench::new(&[FaultConfig {
        msrs: vec![MsrRange::single(0x12), MsrRange::single(0x15)],
        vcpus: Some(vec![1]),
        access: Access::READ,
        ..always.clone()
    }]);
    for vcpu in 0..VCPUS {
        for index in 0x10..=0x1f {
            let wrong = vcpu == 1 && [0x12, 0x15].contains(&index);
            assert_eq!(bench.read(vcpu, index).is_err(), wrong, "{vcpu} {index:#x}");
        }
    }
    let writes = Bench::new(&[FaultConfig {
        access: Access::WRITE,
        ..always
    }]);
    assert_eq!(writes.read(0, 0x10), Ok(1));
    assert_eq!(writes.write(7), Err(GeneralProtection));
    assert!(writes.device.written.lock().unwrap().is_empty());
}

#[test]
fn each_kind_does_what_it_says() {
    let of = |kind| {
        Bench::new(&[FaultConfig {
            interval: Some(2),
            bits: matches!(kind, FaultKind::Flip | FaultKind::Random).then_some(U64(0xff00)),
            ..rule(kind)
        }])
    };
    let reads = |bench: &Bench| [(); 4].map(|()| bench.read(0, 0x10));
    let writes = |bench: &Bench| {
        let outcomes = [1, 2, 3, 4].map(|value| bench.write(value).is_ok());
        (outcomes, bench.device.written.lock().unwrap().clone())
    };

    let gp = of(FaultKind::Gp);
    // The device is not asked where the guest gets #GP.
    assert_eq!(
        reads(&gp),
        [Ok(1), Err(GeneralProtection), Ok(2), Err(GeneralProtection)]
    );
    assert_eq!(writes(&gp), ([true, false, true, false], vec![1, 3]));

    let stale = of(FaultKind::Stale);
    assert_eq!(reads(&stale), [Ok(1), Ok(1), Ok(2), Ok(2)]);
    assert_eq!(writes(&stale), ([true; 4], vec![1, 3]));

    let flip = of(FaultKind::Flip);
    for (read, value) in reads(&flip).into_iter().zip(1..) {
        let changed = read.unwrap() ^ value;
        assert_eq!(changed.count_ones(), u32::from(value % 2 == 0));
        assert_eq!(changed & !0xff00, 0);
    }
    let (outcomes, written) = writes(&flip);
    assert_eq!(outcomes, [true; 4]);
    let changed: Vec<u32> = written
        .iter()
        .zip(1..)
        .map(|(w, v)| (w ^ v).count_ones())
        .collect();
    assert_eq!(changed, [0, 1, 0, 1]);

    let random = of(FaultKind::Random);
    let values = [(); 200].map(|()| random.read(0, 0x10).unwrap());
    let high: BTreeSet<u64> = values
        .iter()
        .skip(1)
        .step_by(2)
        .map(|value| value & 0xff00)
        .collect();
    // A hundred draws of 256 values: fewer than 60 different ones have a chance below one in a million.
    assert!(high.len() > 60, "{}", high.len());
    assert!(
        values
            .iter()
            .zip(1..)
            .all(|(value, read)| value & 0xff == read & 0xff)
    );

    let delay = Bench::new(&[FaultConfig {
        interval: Some(2),
        delay_us: Some(20_000),
        ..rule(FaultKind::Delay)
    }]);
    let start = std::time::Instant::now();
    assert_eq!(reads(&delay), [Ok(1), Ok(2), Ok(3), Ok(4)]);
    assert!(start.elapsed() >= std::time::Duration::from_millis(40));
}

#[test]
fn a_stale_value_is_the_msrs_own_and_the_vcpus_own() {
    let bench = Bench::new(&[FaultConfig {
        interval: Some(1),
        ..rule(FaultKind::Stale)
    }]);
    // The first read of each has nothing to repeat.
    assert_eq!(
        [
            bench.read(0, 0x10),
            bench.read(0, 0x11),
            bench.read(1, 0x10)
        ],
        [Ok(1), Ok(2), Ok(3)]
    );
    assert_eq!(
        [
            bench.read(0, 0x10),
            bench.read(0, 0x11),
            bench.read(1, 0x10)
        ],
        [Ok(1), Ok(2), Ok(3)]
    );
}

#[test]
fn of_several_rules_the_first_has_its_way_and_all_count() {
    let bench = Bench::new(&[
        FaultConfig {
            interval: Some(2),
            ..rule(FaultKind::Gp)
        },
        FaultConfig {
            interval: Some(3),
            ..rule(FaultKind::Delay)
        },
    ]);
    for _ in 0..6 {
        let _ = bench.read(0, 0x10);
    }
    let (gp, delay) = (Some(FaultKind::Gp), Some(FaultKind::Delay));
    assert_eq!(
        *bench.injected.0.lock().unwrap(),
        [None, gp, delay, gp, None, gp]
    );
}

#[test]
fn a_rule_that_cannot_be_carried_out_is_refused_in_words() {
    let base = rule(FaultKind::Gp);
    for (rule, words) in [
        (
            FaultConfig {
                msrs: vec![],
                ..base.clone()
            },
            "fault 1: msrs: a rule needs at least one MSR",
        ),
        (
            FaultConfig {
                access: Access::empty(),
                ..base.clone()
            },
            "access: ",
        ),
        (
            FaultConfig {
                interval: None,
                ..base.clone()
            },
            "and this has neither",
        ),
        (
            FaultConfig {
                probability: Some(0.5),
                ..base.clone()
            },
            "and this has both",
        ),
        (
            FaultConfig {
                interval: None,
                probability: Some(1.5),
                ..base.clone()
            },
            "probability: 1.5 is not from 0 to 1",
        ),
        (
            FaultConfig {
                interval: None,
                probability: Some(f64::NAN),
                ..base.clone()
            },
            "probability: NaN",
        ),
        (
            FaultConfig {
                interval: Some(0),
                ..base.clone()
            },
            "interval: 0 is no interval",
        ),
        (
            FaultConfig {
                bits: Some(U64(1)),
                ..base.clone()
            },
            "bits: means nothing for kind = \"gp\"",
        ),
        (
            FaultConfig {
                bits: Some(U64(0)),
                ..rule(FaultKind::Flip)
            },
            "bits: there is no bit",
        ),
        (
            FaultConfig {
                delay_us: Some(5),
                ..base.clone()
            },
            "delay_us: means nothing for kind = \"gp\"",
        ),
        (
            FaultConfig {
                delay_us: None,
                ..rule(FaultKind::Delay)
            },
            "takes from 1 to 100000 microseconds",
        ),
        (
            FaultConfig {
                delay_us: Some(100_001),
                ..rule(FaultKind::Delay)
            },
            "not 100001",
        ),
        (
            FaultConfig {
                msrs: vec![MsrRange::new(0, 256).unwrap()],
                ..rule(FaultKind::Stale)
            },
            "256 at most, and these are 257",
        ),
        (
            FaultConfig {
                vcpus: Some(vec![0, 4]),
                ..base.clone()
            },
            "there is no vCPU 4: the guest has 4",
        ),
        (
            FaultConfig {
                msrs: vec![MsrRange::new(0x1e, 0x21).unwrap()],
                ..base.clone()
            },
            "no device claims 0x20-0x21",
        ),
        (
            FaultConfig {
                msrs: vec![MsrRange::new(0xf, 0x12).unwrap()],
                ..base
            },
            "no device claims 0xf,",
        ),
    ] {
        let error = refused(rule);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_state_that_no_rule_could_have_counted_is_refused() {
    let rules = [FaultConfig {
        vcpus: Some(vec![0, 1]),
        times: Some(5),
        space: 1,
        ..rule(FaultKind::Stale)
    }];
    let bench = Bench::new(&rules);
    bench.wrong(0, 20);
    let good: serde_json::Value = serde_json::from_str(&bench.bus.save().to_json()).unwrap();
    let restore = |state: &serde_json::Value| {
        let state = crate::BusState::from_json(&state.to_string()).unwrap();
        Bench::new(&rules)
            .bus
            .restore(&state)
            .map_err(|error| error.to_string())
    };
    restore(&good).unwrap();
    let vcpu = |number: usize, key: &str| format!("/faults/0/vcpus/{number}/{key}");
    for (place, value, words) in [
        (
            vcpu(0, "injected"),
            serde_json::json!(6),
            "cannot have met 6 faults in 20 accesses",
        ),
        (
            vcpu(1, "injected"),
            serde_json::json!(1),
            "cannot have met 1 faults in 0 accesses",
        ),
        (
            vcpu(2, "accesses"),
            serde_json::json!(1),
            "cannot have met 0 faults in 1 accesses",
        ),
        (
            vcpu(0, "last"),
            serde_json::json!([]),
            "has 0 last values, and the rule keeps 16",
        ),
        (
            "/faults/0/vcpus".into(),
            serde_json::json!([]),
            "it counts for 0 vCPUs, and there are 4",
        ),
        (
            "/faults".into(),
            serde_json::json!([]),
            "it counts for 0 fault rules, and there are 1",
        ),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(&place).unwrap() = value;
        let error = restore(&state).unwrap_err();
        assert!(error.contains(words), "{place}: {error}");
    }
    let state = crate::BusState::from_json(&good.to_string()).unwrap();
    let error = Bench::new(&[]).bus.restore(&state).unwrap_err().to_string();
    assert!(error.contains("there are none"), "{error}");
}

fn by_chance(probability: f64, seed: u64) -> FaultConfig {
    FaultConfig {
        interval: None,
        probability: Some(probability),
        seed: U64(seed),
        ..rule(FaultKind::Gp)
    }
}

#[test]
fn certain_and_impossible_faults_are_both() {
    assert_eq!(Bench::new(&[by_chance(1.0, 1)]).wrong(0, 100).len(), 100);
    assert_eq!(Bench::new(&[by_chance(0.0, 1)]).wrong(0, 100).len(), 0);
}

proptest! {
    #[test]
    fn faults_are_as_frequent_as_they_are_likely(seed: u64, probability in 0.01..0.99f64) {
        let count = 10_000.0;
        let wrong = Bench::new(&[by_chance(probability, seed)]).wrong(0, count as usize).len() as f64;
        // Six standard deviations of a binomial distribution: one in 500 million is farther off.
        let deviation = (count * probability * (1.0 - probability)).sqrt();
        prop_assert!((wrong - count * probability).abs() < 6.0 * deviation, "{wrong} of {count} at {probability}");
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_in_whatever_order_vcpus_run(
        seed: u64,
        order in prop::collection::vec(0..VCPUS, 400),
    ) {
        let rules = [by_chance(0.3, seed)];
        let (one, other) = (Bench::new(&rules), Bench::new(&rules));
        let mut met: [Vec<bool>; VCPUS as usize] = Default::default();
        for vcpu in &order {
            met[*vcpu as usize].push(one.read(*vcpu, 0x10).is_err());
        }
        for (vcpu, met) in (0..).zip(&met) {
            let alone: Vec<bool> = met.iter().map(|_| other.read(vcpu, 0x10).is_err()).collect();
            prop_assert_eq!(&alone, met);
        }
    }

    #[test]
    fn another_seed_another_rule_and_another_vcpu_give_other_faults(seed in 0..u64::MAX) {
        let first = Bench::new(&[by_chance(0.5, seed)]).wrong(0, 128);
        prop_assert_ne!(&first, &Bench::new(&[by_chance(0.5, seed + 1)]).wrong(0, 128));
        prop_assert_ne!(&first, &Bench::new(&[by_chance(0.5, seed)]).wrong(1, 128));
        let second = Bench::new(&[by_chance(0.0, seed), by_chance(0.5, seed)]).wrong(0, 128);
        prop_assert_ne!(&first, &second);
    }

    #[test]
    fn a_restored_bus_goes_on_where_the_saved_one_was(
        seed: u64,
        before in 0..200usize,
        kind in prop::sample::select(vec![FaultKind::Gp, FaultKind::Flip, FaultKind::Random, FaultKind::Stale]),
    ) {
        let rules = [FaultConfig { kind, ..by_chance(0.3, seed) }];
        let saved = Bench::new(&rules);
        saved.wrong(0, before);
        let state = crate::BusState::from_json(&saved.bus.save().to_json()).unwrap();
        let restored = Bench::new(&rules);
        restored.bus.restore(&state).unwrap();
        *restored.device.reads.lock().unwrap() = *saved.device.reads.lock().unwrap();
        for _ in 0..100 {
            prop_assert_eq!(restored.read(0, 0x11), saved.read(0, 0x11));
        }
    }
}
