//! The device, driven as a guest would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use proptest::prelude::*;

use super::energy::counter;
use super::meter::Meter;
use super::powercap::{self, Counter, Powercap, Zone};
use super::*;
use crate::devices::fixture::{Fixture, config};
use crate::testing::{ICE_LAKE, ZEN_3};
use crate::{DeviceConfig, DeviceModel};

const TWO_PACKAGES: Topology = Topology {
    packages: 2,
    cores: 2,
    threads: 2,
};
const SECOND: Duration = Duration::from_secs(1);

fn rapl(fixture: &Fixture, keys: &str) -> Result<Rapl, String> {
    Rapl::build("rapl".into(), config(keys), &fixture.context)
}

/// An Ice Lake server with these keys.
fn ice_lake(keys: &str, topology: Topology) -> (Fixture, Rapl) {
    let fixture = Fixture::new(ICE_LAKE, topology);
    let device = rapl(&fixture, keys).unwrap();
    (fixture, device)
}

#[test]
fn the_unit_register_reads_as_on_ice_lake_and_zen() {
    let (fixture, intel) = ice_lake("", Topology::flat(1));
    assert_eq!(fixture.read(&intel, 0, 0x606), Ok(0xa0e03));
    let fixture = Fixture::new(ZEN_3, Topology::flat(1));
    let amd = rapl(&fixture, "").unwrap();
    assert_eq!(fixture.read(&amd, 0, 0xc001_0299), Ok(0xa1003));
}

#[test]
fn energy_is_watts_times_time_in_the_unit_of_the_domain() {
    let keys = "domains = ['package', 'dram', 'pp0', 'pp1']
        idle_watts = 1\nbusy_watts = 5\npackage_watts = 10\ndram_watts = 3\npp1_watts = 2";
    let (fixture, device) = ice_lake(keys, TWO_PACKAGES);
    // Ten seconds; vCPUs 0 and 5 work for 4 and 2 of them.
    let idle = Duration::ZERO;
    let cpu = [SECOND * 4, idle, idle, idle, idle, SECOND * 2];
    fixture.pass(SECOND * 10, &cpu);
    for (vcpu, index, joules, exponent) in [
        (0, 0x639, 4 * 10 + 4 * 4, 14),
        (7, 0x639, 4 * 10 + 4 * 2, 14),
        (3, 0x641, 20, 14),
        (3, 0x611, 100 + 20 + 56, 14),
        (4, 0x611, 100 + 20 + 48, 14),
        (4, 0x619, 30, 16),
    ] {
        let units = joules << exponent;
        assert_eq!(fixture.read(&device, vcpu, index), Ok(units), "{index:#x}");
    }
}

#[test]
fn amd_counts_each_core_and_each_package() {
    let fixture = Fixture::new(ZEN_3, TWO_PACKAGES);
    let keys = "idle_watts = 0\nbusy_watts = 4\npackage_watts = 1";
    let device = rapl(&fixture, keys).unwrap();
    // Both threads of core 1, and one of core 3.
    let idle = Duration::ZERO;
    let cpu = [idle, idle, SECOND, SECOND, idle, idle, idle, SECOND];
    fixture.pass(SECOND, &cpu);
    for (vcpu, index, joules) in [
        (0, 0xc001_029a, 0),
        (2, 0xc001_029a, 8),
        (3, 0xc001_029a, 8),
        (6, 0xc001_029a, 4),
        (1, 0xc001_029b, 9),
        (5, 0xc001_029b, 5),
    ] {
        assert_eq!(
            fixture.read(&device, vcpu, index),
            Ok(joules << 16),
            "{index:#x}"
        );
    }
    for index in [0xc001_0299, 0xc001_029a, 0xc001_029b] {
        assert_eq!(fixture.write(&device, 0, index, 0), Err(GeneralProtection));
    }
}

#[test]
fn a_counter_wraps_around_after_32_bits() {
    let (fixture, device) = ice_lake(
        "idle_watts = 0\nbusy_watts = 0\npackage_watts = 64",
        Topology::flat(1),
    );
    // 2^32 units of 1/2^14 J are 2^18 J: at 64 W, 2^12 s.
    fixture.pass(SECOND * 4095, &[]);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok((1 << 32) - (64 << 14)));
    fixture.pass(SECOND * 2, &[]);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok(64 << 14));
}

#[test]
fn the_largest_times_and_watts_overflow_nothing() {
    let topology = Topology::flat(512);
    let keys = "idle_watts = 10000\nbusy_watts = 10000\npackage_watts = 10000\nenergy_unit = 31";
    let (fixture, device) = ice_lake(keys, topology);
    fixture.pass(Duration::MAX, &[Duration::MAX; 512]);
    fixture.read(&device, 0, 0x611).unwrap();
    fixture.read(&device, 0, 0x614).unwrap();
}

#[test]
fn the_power_limits_reset_to_the_thermal_design_power() {
    let (fixture, device) = ice_lake("tdp_watts = 200", Topology::flat(1));
    // 200 W over 2^10 units of time and 240 W over 2^2, both enabled.
    let long = 200 << 3 | 1 << 15 | 10 << 17;
    let short = 240 << 3 | 1 << 15 | 2 << 17;
    assert_eq!(fixture.read(&device, 0, 0x610), Ok(long | short << 32));
    assert_eq!(fixture.read(&device, 0, 0x618), Ok(0));
    // Idle CPU and package 11 W, and a window of 2^15 units of time.
    let info = 200 << 3 | 11 << 19 | 200 << 35 | 15 << 48;
    assert_eq!(fixture.read(&device, 0, 0x614), Ok(info));
}

#[test]
fn a_limit_reads_back_on_its_package_and_reserved_bits_fault() {
    let keys = "domains = ['package', 'dram', 'pp0', 'pp1']";
    let (fixture, device) = ice_lake(keys, TWO_PACKAGES);
    let package_0 = fixture.read(&device, 0, 0x610);
    let value = 0x00ff_ffff_00ff_ffff;
    fixture.write(&device, 4, 0x610, value).unwrap();
    assert_eq!(fixture.read(&device, 7, 0x610), Ok(value));
    assert_eq!(fixture.read(&device, 0, 0x610), package_0);
    for bit in (24..32).chain(56..63) {
        let written = fixture.write(&device, 4, 0x610, 1 << bit);
        assert_eq!(written, Err(GeneralProtection), "bit {bit}");
    }
    for index in [0x618, 0x638, 0x640] {
        fixture.write(&device, 0, index, 0x00ff_ffff).unwrap();
        assert_eq!(fixture.read(&device, 0, index), Ok(0x00ff_ffff));
        for bit in (24..31).chain(32..64) {
            let written = fixture.write(&device, 0, index, 1 << bit);
            assert_eq!(written, Err(GeneralProtection), "{index:#x} bit {bit}");
        }
    }
    assert_eq!(fixture.read(&device, 4, 0x610), Ok(value));
}

#[test]
fn writes_to_a_locked_limit_and_its_policy_are_ignored() {
    let keys = "domains = ['package', 'pp0']";
    let (fixture, device) = ice_lake(keys, Topology::flat(1));
    fixture.write(&device, 0, 0x63a, 9).unwrap();
    for (index, lock) in [(0x610, 1 << 63 | 7), (0x638, 1 << 31 | 7)] {
        fixture.write(&device, 0, index, lock).unwrap();
        fixture.write(&device, 0, index, 5).unwrap();
        assert_eq!(fixture.read(&device, 0, index), Ok(lock));
    }
    fixture.write(&device, 0, 0x63a, 3).unwrap();
    assert_eq!(fixture.read(&device, 0, 0x63a), Ok(9));
    assert_eq!(
        fixture.write(&device, 0, 0x63a, 0x20),
        Err(GeneralProtection)
    );
}

#[test]
fn only_limits_and_policies_are_writable_and_nothing_throttles() {
    let (fixture, device) = ice_lake("", Topology::flat(1));
    for index in [0x606, 0x611, 0x613, 0x614, 0x619, 0x61b, 0x61c] {
        assert_eq!(fixture.write(&device, 0, index, 0), Err(GeneralProtection));
    }
    fixture.pass(SECOND, &[SECOND]);
    assert_eq!(fixture.read(&device, 0, 0x613), Ok(0));
    assert_eq!(fixture.read(&device, 0, 0x61b), Ok(0));
}

#[test]
fn a_device_claims_the_registers_of_its_domains() {
    let claims = |keys: &str, cpu| {
        let fixture = Fixture::new(cpu, Topology::flat(1));
        let claims = rapl(&fixture, keys).unwrap().claims();
        claims.iter().map(|range| range.first()).collect::<Vec<_>>()
    };
    let package = [0x606, 0x610, 0x611, 0x613, 0x614];
    assert_eq!(claims("domains = ['package']", ICE_LAKE), package);
    let default = [package.as_slice(), &[0x618, 0x619, 0x61b, 0x61c]].concat();
    assert_eq!(claims("", ICE_LAKE), default);
    let planes = [0x606, 0x638, 0x639, 0x63a, 0x640, 0x641, 0x642];
    assert_eq!(claims("domains = ['pp1', 'pp0']", ICE_LAKE), planes);
    assert_eq!(claims("", ZEN_3), [0xc001_0299, 0xc001_029a, 0xc001_029b]);
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    let refused = |keys: &str| {
        let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
        rapl(&fixture, keys).err().unwrap()
    };
    for (keys, message) in [
        (
            "idle_watts = 5\nbusy_watts = 4.5",
            "busy_watts: 4.5 W is less than the 5 W of `idle_watts`",
        ),
        (
            "dram_watts = -1",
            "dram_watts: -1 W is not between 0 and 10000 W",
        ),
        (
            "package_watts = nan",
            "package_watts: NaN W is not between 0 and 10000 W",
        ),
        (
            "energy_unit = 32",
            "energy_unit: 1/2^32 does not fit the unit register; the exponent is at most 31",
        ),
        (
            "tdp_watts = 3500",
            "tdp_watts: 3500 W is too much for power limits in 1/2^3 W; they hold 3412 W",
        ),
        (
            "domains = ['core']",
            "domains: no Intel CPU has \"core\"; its domains are \"package\", \"dram\", \"pp0\", \"pp1\"",
        ),
        (
            "domains = []",
            "domains: name at least one, such as \"package\"",
        ),
    ] {
        assert_eq!(refused(keys), message);
    }
    let absent = refused("source = 'powercap'\npowercap = '/nonexistent'");
    assert!(
        absent.starts_with("source: cannot list /nonexistent: "),
        "{absent}"
    );
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let (fixture, saved) = ice_lake("", TWO_PACKAGES);
    fixture.pass(SECOND * 7, &[SECOND * 3]);
    fixture.write(&saved, 0, 0x610, 77).unwrap();
    let state = saved.save().unwrap();
    let (other, restored) = ice_lake("", TWO_PACKAGES);
    other.pass(SECOND * 1000, &[SECOND * 1000; 8]);
    restored.restore(&state).unwrap();
    for index in [0x610, 0x611, 0x619] {
        for vcpu in 0..8 {
            let (before, after) = (
                fixture.read(&saved, vcpu, index),
                other.read(&restored, vcpu, index),
            );
            assert_eq!(before, after, "{index:#x}");
        }
    }
}

#[test]
fn watts_that_are_set_count_from_then_on_and_outlive_a_restore() {
    const PACKAGE: u32 = 0x611;
    const DRAM: u32 = 0x619;
    const KEYS: &str = "idle_watts = 1.0\nbusy_watts = 9.0\npackage_watts = 10.0\ndram_watts = 2.0\n\
                        energy_unit = 0\ndram_energy_unit = 0";
    let table = |keys: &str| toml::from_str::<toml::Table>(keys).unwrap();
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(2));
    let build = |keys: &str| {
        let config = DeviceConfig {
            model: "rapl".into(),
            name: None,
            keys: table(keys),
        };
        let built = config.build_live(DeviceModel::all(), &fixture.context);
        built.unwrap()
    };
    let (device, live) = build(KEYS);
    let read = |device: &dyn MsrDevice, index| fixture.read(device, 0, index).unwrap();
    // 10 s: 10 W and twice 1 W, and 8 W more for 5 s of CPU time.
    fixture.pass(SECOND * 10, &[SECOND * 5]);
    let info = read(&*device, 0x614);
    assert_eq!((read(&*device, PACKAGE), read(&*device, DRAM)), (160, 20));
    live.set(&table(
        "busy_watts = 101.0\npackage_watts = 0.0\ndram_watts = 50.0",
    ))
    .unwrap();
    assert_eq!((read(&*device, PACKAGE), read(&*device, DRAM)), (160, 20));
    // Twice 1 W for 10 s, and 100 W more for 5 s.
    fixture.pass(SECOND * 10, &[SECOND * 5]);
    assert_eq!((read(&*device, PACKAGE), read(&*device, DRAM)), (680, 520));
    // Less than before: the counters still go on.
    live.set(&table("busy_watts = 1.0\ndram_watts = 0.0"))
        .unwrap();
    fixture.pass(SECOND * 10, &[SECOND * 5]);
    assert_eq!((read(&*device, PACKAGE), read(&*device, DRAM)), (700, 520));
    assert_eq!(read(&*device, 0x614), info);
    assert_eq!(
        live.set(&table("busy_watts = 0.5"))
            .unwrap_err()
            .to_string(),
        "device `rapl`: busy_watts: 0.5 W is less than the 1 W of `idle_watts`"
    );
    // As a snapshot does it: the keys of the configuration, what was set since, and then the state.
    let (restored, restored_live) = build(KEYS);
    restored_live.set(&live.changes()).unwrap();
    restored.restore(&device.save().unwrap()).unwrap();
    assert_eq!(
        (read(&*restored, PACKAGE), read(&*restored, DRAM)),
        (700, 520)
    );
    assert_eq!(read(&*restored, 0x614), info);
    fixture.pass(SECOND * 10, &[SECOND * 5]);
    assert_eq!(
        (read(&*restored, PACKAGE), read(&*restored, DRAM)),
        (720, 520)
    );
    assert_eq!(read(&*device, PACKAGE), 720);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let (fixture, device) = ice_lake("", Topology::flat(2));
    fixture.pass(SECOND, &[]);
    let before = device.save();
    let (_, other) = ice_lake("", Topology::flat(3));
    let reserved = serde_json::json!({
        "energy": { "model": { "clock": { "now": 0, "cpu_time": [0, 0] }, "before": vec![[0, 0]; 5] } },
        "limits": [[[1u64 << 24, 0], [0, 0], [0, 0], [0, 0]]],
    });
    for state in [
        other.save().unwrap(),
        DeviceState::encode(VERSION, &reserved),
    ] {
        let refused = device.restore(&state);
        assert!(matches!(refused, Err(RestoreError::Mismatch(_))));
        assert_eq!(device.save(), before);
    }
}

proptest! {
    #[test]
    fn energy_grows_with_time_and_in_proportion_to_work(
        steps in prop::collection::vec((0u64..10_000_000_000, 0u64..=100), 1..40)
    ) {
        let (fixture, device) = ice_lake(
            "domains = ['pp0']\nidle_watts = 2\nbusy_watts = 10", Topology::flat(1));
        let (mut idle, mut busy, mut last) = (0u128, 0u128, 0u64);
        for (time, percent) in steps {
            let work = time / 100 * percent;
            fixture.pass(Duration::from_nanos(time), &[Duration::from_nanos(work)]);
            busy += u128::from(work);
            idle += u128::from(time - work);
            let energy = fixture.read(&device, 0, 0x639).unwrap();
            prop_assert!(energy >= last);
            // 2 W idle and 10 W at work, in 1/2^14 J rounded down.
            let units = ((2 * idle + 10 * busy) << 14) / 1_000_000_000;
            prop_assert_eq!(u128::from(energy), units);
            last = energy;
        }
    }

    #[test]
    fn a_counter_shows_the_low_32_bits_of_the_energy(joules in any::<u32>(), exponent in 0u32..=31) {
        let picojoules = u128::from(joules) * 1_000_000_000_000;
        let shown = counter(picojoules, exponent);
        prop_assert_eq!(u128::from(shown), (u128::from(joules) << exponent) % (1 << 32));
    }
}

/// A host counter that a test sets; `u64::MAX` fails to read.
#[derive(Clone, Default)]
struct FakeCounter(Arc<AtomicU64>);

impl Counter for FakeCounter {
    fn microjoules(&self) -> io::Result<u64> {
        match self.0.load(Ordering::Relaxed) {
            u64::MAX => Err(io::ErrorKind::Other.into()),
            value => Ok(value),
        }
    }
}

/// A guest on a host with four CPUs, whose package counter wraps around at 1000 J.
fn on_powercap(topology: Topology) -> (Fixture, FakeCounter, Rapl) {
    let fixture = Fixture::new(ICE_LAKE, topology);
    let counter = FakeCounter::default();
    let zone = Zone {
        kind: powercap::Kind::Package,
        range: 1_000_000_000,
        counter: Box::new(counter.clone()),
    };
    let source = Powercap::new(
        vec![zone],
        4,
        1_000_000_000,
        &[Meter::Package(0)],
        &fixture.context,
    )
    .unwrap();
    let keys: Config = config("domains = ['package']\nsource = 'powercap'");
    let source = EnergySource::Powercap(source);
    let device = Rapl::with_source("rapl".into(), &keys, source, &fixture.context).unwrap();
    (fixture, counter, device)
}

#[test]
fn a_guest_is_charged_the_host_energy_by_its_share_of_cpu_time() {
    let (fixture, counter, device) = on_powercap(TWO_PACKAGES);
    counter.0.store(400_000_000, Ordering::Relaxed);
    // One of the four host CPUs for package 0, half a one for package 1.
    let idle = Duration::ZERO;
    let cpu = [SECOND, SECOND, idle, idle, SECOND];
    fixture.pass(SECOND * 2, &cpu);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok(100 << 14));
    assert_eq!(fixture.read(&device, 4, 0x611), Ok(50 << 14));
    // The host's counter wraps around after another 600 J and goes on for 200 J more.
    counter.0.store(200_000_000, Ordering::Relaxed);
    fixture.pass(SECOND, &[SECOND]);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok(300 << 14));
    assert_eq!(fixture.read(&device, 4, 0x611), Ok(50 << 14));
}

#[test]
fn the_hosts_counters_are_read_once_in_a_period_however_often_the_guest_asks() {
    let (fixture, counter, device) = on_powercap(Topology::flat(1));
    for (pass, joules) in [(999, 0), (1, 10), (500, 10), (499, 10), (1, 25)] {
        counter.0.fetch_add(20_000_000, Ordering::Relaxed);
        let pass = Duration::from_millis(pass);
        fixture.pass(pass, &[pass]);
        // One of the host's four CPUs.
        assert_eq!(fixture.read(&device, 0, 0x611), Ok(joules << 14));
    }
}

#[test]
fn a_host_counter_that_fails_stands_still_until_it_reads_again() {
    let (fixture, counter, device) = on_powercap(Topology::flat(1));
    counter.0.store(u64::MAX, Ordering::Relaxed);
    fixture.pass(SECOND, &[SECOND]);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok(0));
    counter.0.store(8_000_000, Ordering::Relaxed);
    fixture.pass(SECOND, &[SECOND]);
    assert_eq!(fixture.read(&device, 0, 0x611), Ok(2 << 14));
}

#[test]
fn restored_host_energy_goes_on_from_the_saved_value() {
    let (fixture, counter, saved) = on_powercap(Topology::flat(1));
    counter.0.store(40_000_000, Ordering::Relaxed);
    fixture.pass(SECOND, &[SECOND]);
    let state = saved.save().unwrap();
    let (other, counter, restored) = on_powercap(Topology::flat(1));
    counter.0.store(900_000_000, Ordering::Relaxed);
    other.pass(SECOND * 9, &[SECOND * 9]);
    restored.restore(&state).unwrap();
    assert_eq!(other.read(&restored, 0, 0x611), Ok(10 << 14));
    counter.0.store(904_000_000, Ordering::Relaxed);
    other.pass(SECOND, &[SECOND]);
    assert_eq!(other.read(&restored, 0, 0x611), Ok(11 << 14));

    let (_, model) = ice_lake("domains = ['package']", Topology::flat(1));
    assert!(matches!(
        model.restore(&state),
        Err(RestoreError::Mismatch(_))
    ));
}

#[test]
fn the_host_must_have_a_zone_for_each_domain() {
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
    let refused = |meter| Powercap::new(Vec::new(), 4, 1_000_000, &[meter], &fixture.context).err();
    assert_eq!(
        refused(Meter::Dram(0)).as_deref(),
        Some("domains: the host's powercap has no zone that measures the dram")
    );
    assert_eq!(
        refused(Meter::Core(0)).as_deref(),
        Some("domains: powercap has no counter per core; leave \"core\" out")
    );
}

#[test]
fn zones_are_found_by_name_and_each_counted_once() {
    let root = std::env::temp_dir().join(format!("msr-bus-powercap-{}", std::process::id()));
    for (zone, name) in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "dram"),
        ("intel-rapl:1", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
        ("dtpm", "soc"),
    ] {
        let zone = root.join(zone);
        fs::create_dir_all(&zone).unwrap();
        for (file, text) in [
            ("name", name),
            ("max_energy_range_uj", "262143328850"),
            ("energy_uj", "1234"),
        ] {
            fs::write(zone.join(file), format!("{text}\n")).unwrap();
        }
    }
    let mut found = powercap::zones(&root).unwrap();
    found.sort_by_key(|zone| zone.kind as u32);
    let kinds: Vec<_> = found.iter().map(|zone| zone.kind).collect();
    assert_eq!(kinds, [powercap::Kind::Package, powercap::Kind::Dram]);
    assert_eq!(found[0].range, 262_143_328_850);
    assert_eq!(found[0].counter.microjoules().unwrap(), 1234);

    fs::write(root.join("intel-rapl:0/energy_uj"), "many").unwrap();
    let error = powercap::zones(&root).err().unwrap();
    assert!(error.ends_with("energy_uj: it holds no number"), "{error}");
    fs::remove_dir_all(&root).unwrap();
}
