//! The device, driven as a guest would.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::source::{Host, Thermometer};
use super::*;
use crate::devices::fixture::{Fixture, config};
use crate::testing::{ICE_LAKE, ZEN_3};
use crate::{ConfigError, DeviceConfig, DeviceModel, Topology};

const TOPOLOGY: Topology = Topology {
    packages: 2,
    cores: 2,
    threads: 2,
};
const SECOND: Duration = Duration::from_secs(1);

fn thermal(keys: &str) -> (Fixture, Thermal) {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let device = Thermal::build("t".into(), config(keys), &fixture.context).unwrap();
    (fixture, device)
}

/// The temperature as Linux works it out: TjMax less the readout, where that is valid.
fn celsius(fixture: &Fixture, device: &Thermal, vcpu: u32, status: u32) -> i64 {
    let status = fixture.read(device, vcpu, status).unwrap();
    assert_eq!(status >> 31, 1, "valid, and nothing above");
    let tjmax = fixture.read(device, vcpu, TEMPERATURE_TARGET).unwrap() >> 16 & 0xff;
    tjmax as i64 - (status >> 16 & 0x7f) as i64
}

/// A sensor of the host that a test sets; the lowest number fails to read.
#[derive(Clone, Default)]
struct FakeSensor(Arc<AtomicU64>);

impl Thermometer for FakeSensor {
    fn millidegrees(&self) -> io::Result<i64> {
        match self.0.load(Ordering::Relaxed) as i64 {
            i64::MIN => Err(io::ErrorKind::Other.into()),
            millidegrees => Ok(millidegrees),
        }
    }
}

impl FakeSensor {
    fn set(&self, millidegrees: i64) {
        self.0.store(millidegrees as u64, Ordering::Relaxed);
    }
}

/// A machine with the host's sensor at 50 degrees.
fn with_sensor() -> (Fixture, FakeSensor, Thermal) {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let sensor = FakeSensor::default();
    sensor.set(50_000);
    let device = on_sensor(&fixture, &sensor, 0);
    (fixture, sensor, device)
}

/// A device on a sensor that is read once in `period` nanoseconds.
fn on_sensor(fixture: &Fixture, sensor: &FakeSensor, period: u64) -> Thermal {
    let host = Host::new(Box::new(sensor.clone()), period, fixture.clock.clone()).unwrap();
    let temperature = Temperature::Host(host);
    Thermal::with_temperature("t".into(), 100, temperature, &fixture.context)
}

#[test]
fn the_hosts_sensor_is_read_once_in_a_period_however_often_the_guest_asks() {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let sensor = FakeSensor::default();
    sensor.set(50_000);
    let device = on_sensor(&fixture, &sensor, 1_000_000_000);
    sensor.set(60_000);
    for (pass, shown) in [(0, 50), (999, 50), (1, 60)] {
        fixture.pass(Duration::from_millis(pass), &[]);
        assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), shown);
    }
}

#[test]
fn a_constant_temperature_reads_as_degrees_below_tjmax() {
    let (fixture, device) = thermal("tjmax = 90\nsource = 'constant'\ncelsius = 42");
    assert_eq!(fixture.read(&device, 0, TEMPERATURE_TARGET), Ok(90 << 16));
    let valid = 1 << 31 | 48 << 16;
    assert_eq!(fixture.read(&device, 5, THERM_STATUS), Ok(valid | 1 << 27));
    assert_eq!(fixture.read(&device, 5, PACKAGE_THERM_STATUS), Ok(valid));
    assert_eq!(fixture.read(&device, 0, THERM_INTERRUPT), Ok(0));
}

#[test]
fn a_core_warms_up_and_cools_down_by_its_own_load() {
    let (fixture, device) = thermal("idle_celsius = 30\nbusy_celsius = 80\nseconds = 10");
    let idle = Duration::ZERO;
    // One thread of core 1 works for one time constant, then for long.
    fixture.pass(SECOND * 10, &[idle, idle, SECOND * 10]);
    // 80 - 50 / e = 61.6, shown as not yet 62.
    assert_eq!(celsius(&fixture, &device, 2, THERM_STATUS), 61);
    assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), 30);
    assert_eq!(celsius(&fixture, &device, 0, PACKAGE_THERM_STATUS), 61);
    assert_eq!(celsius(&fixture, &device, 4, PACKAGE_THERM_STATUS), 30);
    fixture.pass(SECOND * 1000, &[idle, idle, SECOND * 1000]);
    assert_eq!(celsius(&fixture, &device, 3, THERM_STATUS), 80);
    // Half the time at work; and none.
    fixture.pass(SECOND * 1000, &[idle, idle, SECOND * 500]);
    assert_eq!(celsius(&fixture, &device, 3, THERM_STATUS), 55);
    fixture.pass(SECOND * 1000, &[]);
    assert_eq!(celsius(&fixture, &device, 3, THERM_STATUS), 30);
}

#[test]
fn how_often_software_looks_changes_no_temperature() {
    let keys = "idle_celsius = 30\nbusy_celsius = 80\nseconds = 10";
    let (fixture, device) = thermal(keys);
    let step = Duration::from_micros(300);
    for _ in 0..100_000 / 3 {
        fixture.pass(step, &[step]);
        fixture.read(&device, 0, THERM_STATUS).unwrap();
    }
    assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), 61);
}

#[test]
fn thresholds_set_their_status_and_a_log_that_stays() {
    let (fixture, sensor, device) = with_sensor();
    // Threshold 1 at 60 degrees (40 below TjMax), threshold 2 at 80.
    let interrupt = 40 << 8 | 1 << 15 | 20 << 16 | 1 << 23;
    for (status, register, lowest) in [
        (THERM_STATUS, THERM_INTERRUPT, 1u64 << 27),
        (PACKAGE_THERM_STATUS, PACKAGE_THERM_INTERRUPT, 0),
    ] {
        sensor.set(50_000);
        fixture.write(&device, 0, register, interrupt).unwrap();
        assert_eq!(fixture.read(&device, 1, register), Ok(interrupt));
        let bits = || {
            let value = fixture.read(&device, 1, status).unwrap();
            assert_eq!(value & 0xf << 27, lowest);
            value & 0xffff
        };
        assert_eq!(bits(), 0);
        sensor.set(60_000);
        assert_eq!(bits(), 1 << 6 | 1 << 7);
        sensor.set(80_000);
        assert_eq!(bits(), 0b1111 << 6);
        sensor.set(70_000);
        assert_eq!(bits(), 1 << 6 | 1 << 7 | 1 << 9);
        // Written as 1 a log stays, written as 0 it goes, and what holds is logged again.
        fixture.write(&device, 0, status, 1 << 9).unwrap();
        assert_eq!(bits(), 1 << 6 | 1 << 7 | 1 << 9);
        sensor.set(50_000);
        fixture.write(&device, 0, status, 0).unwrap();
        assert_eq!(bits(), 0);
        // A 1 sets no log.
        fixture.write(&device, 0, status, 0xaaa).unwrap();
        assert_eq!(bits(), 0);
        // TjMax.
        sensor.set(105_000);
        assert_eq!(bits(), 0b11_1100_1111);
        sensor.set(99_999);
        assert_eq!(bits() & 0b1111, 0b1010);
        fixture.write(&device, 0, status, 0).unwrap();
    }
    // Package 1 and core 1 have seen none of it.
    assert_eq!(fixture.read(&device, 2, THERM_INTERRUPT), Ok(0));
    assert_eq!(fixture.read(&device, 4, PACKAGE_THERM_INTERRUPT), Ok(0));
}

#[test]
fn reserved_bits_fault_and_status_bits_are_ignored() {
    let (fixture, device) = thermal("source = 'constant'");
    for (index, reserved) in [
        (THERM_STATUS, vec![23, 26, 32, 63]),
        (PACKAGE_THERM_STATUS, vec![12, 15, 23, 26, 27, 30, 32, 63]),
        (THERM_INTERRUPT, vec![5, 7, 25, 32, 63]),
        (PACKAGE_THERM_INTERRUPT, vec![3, 5, 7, 25, 32, 63]),
    ] {
        for bit in reserved {
            let written = fixture.write(&device, 0, index, 1 << bit);
            assert_eq!(written, Err(GeneralProtection), "{index:#x} bit {bit}");
        }
    }
    let before = fixture.read(&device, 0, THERM_STATUS);
    fixture
        .write(&device, 0, THERM_STATUS, 0xf87f_5555)
        .unwrap();
    assert_eq!(fixture.read(&device, 0, THERM_STATUS), before);
    assert_eq!(
        fixture.write(&device, 0, TEMPERATURE_TARGET, 0),
        Err(GeneralProtection)
    );
}

#[test]
fn a_host_sensor_that_fails_keeps_its_last_reading() {
    let (fixture, sensor, device) = with_sensor();
    sensor.set(61_000);
    assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), 61);
    sensor.set(i64::MIN);
    assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), 61);
    // The readout has seven bits.
    sensor.set(-100_000);
    assert_eq!(celsius(&fixture, &device, 0, THERM_STATUS), 100 - 127);
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    let refused = |cpu, keys: &str| {
        let fixture = Fixture::new(cpu, TOPOLOGY);
        let refused = Thermal::build("t".into(), config(keys), &fixture.context);
        refused.err().unwrap()
    };
    for (keys, message) in [
        (
            "tjmax = 0",
            "tjmax: 0 is not between 1 and 150 degrees Celsius",
        ),
        (
            "source = 'constant'\ncelsius = nan",
            "celsius: NaN is not between -100 and 200 degrees Celsius",
        ),
        (
            "busy_celsius = 30",
            "busy_celsius: 30 is less than the 35 of `idle_celsius`",
        ),
        ("seconds = 0", "seconds: 0 is not between 0.001 and 3600"),
        (
            "source = 'hwmon'",
            "hwmon: name the host's sensor, such as \"/sys/class/hwmon/hwmon2/temp1_input\"",
        ),
    ] {
        assert_eq!(refused(ICE_LAKE, keys), message);
    }
    let absent = refused(ICE_LAKE, "source = 'hwmon'\nhwmon = '/nonexistent'");
    assert!(absent.starts_with("hwmon: cannot read /nonexistent: "));
    assert_eq!(
        refused(ZEN_3, ""),
        "no AMD CPU shows its temperature in MSRs; leave the device out"
    );
}

#[test]
fn a_restored_device_answers_as_the_saved_one_and_no_other() {
    let (fixture, saved) = thermal("");
    fixture
        .write(&saved, 0, PACKAGE_THERM_INTERRUPT, 60 << 8)
        .unwrap();
    fixture.pass(SECOND * 5, &[SECOND * 5]);
    fixture.read(&saved, 0, PACKAGE_THERM_STATUS).unwrap();
    let state = saved.save().unwrap();
    let (other, restored) = thermal("");
    other.pass(SECOND * 700, &[SECOND * 300; 8]);
    restored.restore(&state).unwrap();
    for after in [Duration::ZERO, SECOND * 4, SECOND * 400] {
        fixture.pass(after, &[]);
        other.pass(after, &[]);
        for index in [THERM_STATUS, PACKAGE_THERM_STATUS, PACKAGE_THERM_INTERRUPT] {
            let values = (
                fixture.read(&saved, 0, index),
                other.read(&restored, 0, index),
            );
            assert_eq!(values.0, values.1);
        }
    }

    let (_, constant) = thermal("source = 'constant'");
    let (_, cooler) = thermal("busy_celsius = 36");
    for device in [&constant, &cooler] {
        let before = device.save();
        assert!(matches!(
            device.restore(&state),
            Err(RestoreError::Mismatch(_))
        ));
        assert_eq!(device.save(), before);
    }
}

fn table(keys: &str) -> toml::Table {
    toml::from_str(keys).unwrap()
}

/// The vCPUs that get an interrupt when the temperature is set.
fn interrupted(fixture: &Fixture, device: &Thermal, celsius: i32) -> Vec<u32> {
    let keys = format!("source = 'constant'\ncelsius = {celsius}.0");
    device
        .apply(config(&keys), &["celsius"], &fixture.context)
        .unwrap();
    let vcpus = fixture.context.interrupts.take_thermal();
    vcpus.into_iter().map(|vcpu| vcpu.0).collect()
}

#[test]
fn a_temperature_set_from_outside_makes_the_interrupts_that_software_has_enabled() {
    let topology = Topology {
        packages: 2,
        cores: 2,
        threads: 2,
    };
    let fixture = Fixture::new(ICE_LAKE, topology);
    let keys = "source = 'constant'\ncelsius = 40.0";
    let device = Thermal::build("t".into(), config(keys), &fixture.context).unwrap();
    let set = |celsius| interrupted(&fixture, &device, celsius);
    let enable = |vcpu, index, value| fixture.write(&device, vcpu, index, value).unwrap();
    assert_eq!((set(100), set(40)), (vec![], vec![]));
    // The core of vCPUs 2 and 3: reaching TjMax, and not leaving it.
    enable(2, 0x19b, 1);
    assert_eq!((set(100), set(110), set(99)), (vec![2, 3], vec![], vec![]));
    enable(2, 0x19b, 2);
    assert_eq!((set(100), set(99)), (vec![], vec![2, 3]));
    enable(2, 0x19b, 4);
    assert_eq!((set(100), set(99)), (vec![2, 3], vec![]));
    enable(2, 0x19b, 0);
    assert!(set(40).is_empty());
    // A threshold of the second package, in both directions: 30 degrees below TjMax.
    enable(7, 0x1b2, 1 << 15 | 30 << 8);
    assert_eq!((set(69), set(70)), (vec![], vec![4, 5, 6, 7]));
    assert_eq!((set(80), set(60)), (vec![], vec![4, 5, 6, 7]));
    // The other threshold, without and with its enable.
    enable(7, 0x1b2, 30 << 16);
    assert_eq!((set(80), set(60)), (vec![], vec![]));
    enable(7, 0x1b2, 1 << 23 | 30 << 16);
    assert_eq!(set(80), [4, 5, 6, 7]);
    // Both at once are one interrupt.
    enable(4, 0x19b, 1);
    enable(7, 0x1b2, 1);
    assert_eq!(set(120), [4, 5, 6, 7]);
}

#[test]
fn temperatures_change_while_the_guest_runs_and_what_cannot_be_is_refused_as_in_a_file() {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let config = DeviceConfig {
        model: "thermal".into(),
        name: None,
        keys: table("source = 'constant'\ncelsius = 40"),
    };
    let (device, live) = config
        .build_live(DeviceModel::all(), &fixture.context)
        .unwrap();
    let read = |status| fixture.read(&*device, 0, status).unwrap();
    assert_eq!(read(THERM_STATUS) >> 16 & 0x7f, 60);
    live.set(&table("celsius = 95")).unwrap();
    assert_eq!(read(THERM_STATUS) >> 16 & 0x7f, 5);
    // At TjMax it throttles, and the log stays when it is over.
    live.set(&table("celsius = 100")).unwrap();
    assert_eq!(read(PACKAGE_THERM_STATUS) & 0b1111, 0b1111);
    live.set(&table("celsius = 50")).unwrap();
    assert_eq!(read(PACKAGE_THERM_STATUS) & 0b1111, 0b1010);
    // Also where software did not look in between.
    assert_eq!(read(THERM_STATUS) & 0b1111, 0b1010);
    for (keys, message) in [
        (
            "celsius = 1000",
            "device `thermal`: celsius: 1000 is not between -100 and 200 degrees Celsius",
        ),
        (
            "tjmax = 90",
            "device `thermal`: `tjmax` cannot change while the guest runs; \
             these can: busy_celsius, celsius, idle_celsius, seconds, source",
        ),
        (
            "idle_celsius = 30",
            "device `thermal`: idle_celsius: it counts with source = \"model\"; set that too",
        ),
        (
            "source = 'model'\nidle_celsius = 80",
            "device `thermal`: busy_celsius: 70 is less than the 80 of `idle_celsius`",
        ),
        (
            "source = 'hwmon'",
            "device `thermal`: source: the host's sensor is opened when the VM starts; \"constant\" and \"model\" can be set \
             while the guest runs",
        ),
    ] {
        assert_eq!(live.set(&table(keys)).unwrap_err().to_string(), message);
        assert_eq!(read(THERM_STATUS) >> 16 & 0x7f, 50);
    }
    let kind = live.set(&table("celsius = 'hot'")).unwrap_err();
    assert!(matches!(kind, ConfigError::Key { error, .. } if error.key == "celsius"));
    // Another source, with its own keys.
    live.set(&table(
        "source = 'model'\nidle_celsius = 60\nbusy_celsius = 90",
    ))
    .unwrap();
    assert_eq!(read(THERM_STATUS) >> 16 & 0x7f, 40);
    live.set(&table("idle_celsius = 70")).unwrap();
    assert_eq!(read(THERM_STATUS) >> 16 & 0x7f, 30);
    let expected = table("source = 'model'\ncelsius = 50\nidle_celsius = 70\nbusy_celsius = 90");
    assert_eq!(live.current(), expected);
}

proptest! {
    #[test]
    fn a_temperature_stays_between_idle_and_busy(
        steps in prop::collection::vec((any::<u64>(), any::<u64>()), 1..30)
    ) {
        let (fixture, device) = thermal("idle_celsius = 40\nbusy_celsius = 90");
        for (time, work) in steps {
            *fixture.clock.now.lock().unwrap() = Duration::from_nanos(time);
            let work = Duration::from_nanos(work);
            fixture.clock.cpu_time.lock().unwrap().insert(crate::VcpuId(0), work);
            let celsius = celsius(&fixture, &device, 0, THERM_STATUS);
            prop_assert!((40..=90).contains(&celsius));
        }
    }
}
