use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::devices::fixture::{Fixture, config};
use crate::testing::{ICE_LAKE, ZEN_3};
use crate::{DeviceConfig, DeviceModel, Topology};

const SECOND: Duration = Duration::from_secs(1);

fn counters(keys: &str) -> (Fixture, AperfMperf) {
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(2));
    let device = AperfMperf::build("a".into(), config(keys), &fixture.context).unwrap();
    (fixture, device)
}

#[test]
fn a_busy_cpu_counts_at_the_tsc_frequency_and_the_configured_ratio() {
    let (fixture, device) = counters("tsc_mhz = 2300\nratio = 1.5");
    fixture.pass(SECOND * 10, &[SECOND * 4, SECOND]);
    for (vcpu, seconds) in [(0, 4), (1, 1)] {
        let mperf = fixture.read(&device, vcpu, MPERF);
        assert_eq!(mperf, Ok(seconds * 2_300_000_000));
        let aperf = fixture.read(&device, vcpu, APERF);
        assert_eq!(aperf, Ok(seconds * 3_450_000_000));
    }
}

#[test]
fn when_mperf_counts_always_the_ratio_is_the_share_of_a_cpu() {
    let (fixture, device) = counters("tsc_mhz = 2000\nmperf = 'always'");
    fixture.pass(SECOND * 10, &[SECOND * 4]);
    assert_eq!(fixture.read(&device, 0, MPERF), Ok(20_000_000_000));
    assert_eq!(fixture.read(&device, 0, APERF), Ok(8_000_000_000));
}

#[test]
fn a_written_counter_counts_on_from_what_was_written_and_wraps_around() {
    let (fixture, device) = counters("tsc_mhz = 1000");
    fixture.pass(SECOND, &[SECOND, SECOND]);
    fixture.write(&device, 0, MPERF, 0).unwrap();
    fixture.write(&device, 0, APERF, u64::MAX).unwrap();
    fixture.pass(SECOND, &[SECOND, SECOND]);
    assert_eq!(fixture.read(&device, 0, MPERF), Ok(1_000_000_000));
    assert_eq!(fixture.read(&device, 0, APERF), Ok(999_999_999));
    assert_eq!(fixture.read(&device, 1, MPERF), Ok(2_000_000_000));
}

#[test]
fn a_ratio_that_is_set_counts_from_then_on_and_outlives_a_restore() {
    let table = |keys: &str| toml::from_str::<toml::Table>(keys).unwrap();
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(2));
    let build = |keys: toml::Table| {
        let config = DeviceConfig {
            model: "aperfmperf".into(),
            name: None,
            keys,
        };
        let built = config.build_live(DeviceModel::all(), &fixture.context);
        built.unwrap()
    };
    let (device, live) = build(table("tsc_mhz = 1000"));
    let read = |device: &dyn MsrDevice, counter| fixture.read(device, 0, counter).unwrap();
    fixture.pass(SECOND, &[SECOND, SECOND]);
    live.set(&table("ratio = 3.0")).unwrap();
    assert_eq!(read(&*device, APERF), 1_000_000_000);
    fixture.pass(SECOND, &[SECOND, SECOND]);
    assert_eq!(read(&*device, APERF), 4_000_000_000);
    assert_eq!(read(&*device, MPERF), 2_000_000_000);
    live.set(&table("ratio = 0.5")).unwrap();
    assert_eq!(read(&*device, APERF), 4_000_000_000);
    for (keys, message) in [
        (
            "ratio = 1000",
            "device `aperfmperf`: ratio: 1000 is not between 0.01 and 100",
        ),
        (
            "mperf = 'always'",
            "device `aperfmperf`: `mperf` cannot change while the guest runs; these can: ratio",
        ),
    ] {
        assert_eq!(live.set(&table(keys)).unwrap_err().to_string(), message);
    }
    // As a snapshot does it: the keys that hold now, then the state.
    let (restored, _) = build(live.current());
    restored.restore(&device.save().unwrap()).unwrap();
    assert_eq!(read(&*restored, APERF), 4_000_000_000);
    fixture.pass(SECOND, &[SECOND, SECOND]);
    assert_eq!(read(&*restored, APERF), 4_500_000_000);
    assert_eq!(read(&*device, APERF), 4_500_000_000);
}

#[test]
fn amd_has_copies_that_cannot_be_written() {
    let fixture = Fixture::new(ZEN_3, Topology::flat(1));
    let keys = config("tsc_mhz = 1000\nratio = 2");
    let device = AperfMperf::build("a".into(), keys, &fixture.context).unwrap();
    assert_eq!(device.claims().len(), 4);
    fixture.pass(SECOND, &[SECOND]);
    for (index, count) in [(0xc000_00e7, 1_000_000_000), (0xc000_00e8, 2_000_000_000)] {
        assert_eq!(fixture.read(&device, 0, index), Ok(count));
        assert_eq!(fixture.write(&device, 0, index, 0), Err(GeneralProtection));
    }
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    for (keys, message) in [
        (
            "tsc_mhz = 0",
            "tsc_mhz: 0 MHz is not between 1 and 100000 MHz",
        ),
        (
            "tsc_mhz = nan",
            "tsc_mhz: NaN MHz is not between 1 and 100000 MHz",
        ),
        (
            "tsc_mhz = 2000\nratio = -1",
            "ratio: -1 is not between 0.01 and 100",
        ),
    ] {
        let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
        let refused = AperfMperf::build("a".into(), config(keys), &fixture.context).err();
        assert_eq!(refused.as_deref(), Some(message));
    }
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let (fixture, saved) = counters("tsc_mhz = 1000");
    fixture.write(&saved, 0, APERF, 5).unwrap();
    fixture.pass(SECOND * 9, &[SECOND * 3]);
    let (other, restored) = counters("tsc_mhz = 1000");
    other.pass(SECOND, &[SECOND * 2, SECOND * 8]);
    restored.restore(&saved.save().unwrap()).unwrap();
    assert_eq!(other.read(&restored, 0, APERF), Ok(3_000_000_005));
    other.pass(SECOND, &[SECOND]);
    assert_eq!(other.read(&restored, 0, MPERF), Ok(4_000_000_000));
    assert_eq!(other.read(&restored, 1, MPERF), Ok(0));

    let fixture = Fixture::new(ICE_LAKE, Topology::flat(3));
    let three = AperfMperf::build("a".into(), config("tsc_mhz = 1000"), &fixture.context).unwrap();
    assert!(matches!(
        three.restore(&saved.save().unwrap()),
        Err(RestoreError::Mismatch(_))
    ));
}

#[test]
fn readers_on_other_threads_never_see_a_counter_run_backwards() {
    let (fixture, device) = counters("tsc_mhz = 2000\nmperf = 'always'");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = [0; 2];
                for _ in 0..2000 {
                    let next = [MPERF, APERF].map(|i| fixture.read(&device, 0, i).unwrap());
                    assert!(next[0] >= last[0] && next[1] >= last[1]);
                    last = next;
                }
            });
        }
        // A clock that jumps to and fro.
        for step in 0..2000u64 {
            let time = Duration::from_micros(step * 7919 % 1009);
            *fixture.clock.now.lock().unwrap() = time;
            fixture
                .clock
                .cpu_time
                .lock()
                .unwrap()
                .insert(VcpuId(0), time);
        }
    });
}

proptest! {
    #[test]
    fn no_clock_makes_a_counter_run_backwards_but_by_wrapping(
        times in prop::collection::vec(0u64..1 << 40, 1..40), ratio in 0.01f64..100.0
    ) {
        let (fixture, device) = counters(&format!("tsc_mhz = 3000\nratio = {ratio:?}"));
        let mut last = [0; 2];
        for time in times {
            let time = Duration::from_nanos(time);
            fixture.clock.cpu_time.lock().unwrap().insert(VcpuId(0), time);
            let next = [MPERF, APERF].map(|i| fixture.read(&device, 0, i).unwrap());
            prop_assert!(next[0] >= last[0] && next[1] >= last[1]);
            last = next;
        }
    }

    #[test]
    fn no_time_overflows(time in any::<u64>(), tsc in 1.0f64..100_000.0, ratio in 0.01f64..100.0) {
        let (fixture, device) = counters(&format!("tsc_mhz = {tsc:?}\nratio = {ratio:?}"));
        fixture.pass(Duration::from_secs(time), &[Duration::from_secs(time)]);
        fixture.read(&device, 0, APERF).unwrap();
    }
}
