//! The device on a host made of plain values.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::Topology;
use crate::devices::fixture::{Fixture, config};
use crate::testing::ICE_LAKE;

/// MSRs by CPU and index, and the CPU that runs.
#[derive(Default)]
struct FakeHost {
    msrs: Mutex<BTreeMap<(u32, u32), u64>>,
    running: AtomicU32,
    waits: Mutex<Vec<Duration>>,
}

/// What the msr module gives where RDMSR or WRMSR is #GP.
fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl HostMsrs for FakeHost {
    fn read(&self, cpu: u32, index: u32) -> io::Result<u64> {
        let msrs = self.msrs.lock().unwrap();
        msrs.get(&(cpu, index)).copied().ok_or_else(eio)
    }

    fn write(&self, cpu: u32, index: u32, value: u64) -> io::Result<()> {
        let mut msrs = self.msrs.lock().unwrap();
        *msrs.get_mut(&(cpu, index)).ok_or_else(eio)? = value;
        Ok(())
    }

    fn running_cpu(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    fn wait(&self, time: Duration) {
        self.waits.lock().unwrap().push(time);
    }
}

/// A host with MSRs 0x10 to 0x12 on CPUs 0 and 1: the index, plus 0x100 on CPU 1.
fn on_host(keys: &str) -> (Fixture, Arc<FakeHost>, Result<Passthrough, String>) {
    let host = Arc::new(FakeHost::default());
    for index in 0x10..=0x12 {
        let mut msrs = host.msrs.lock().unwrap();
        msrs.insert((0, index), u64::from(index));
        msrs.insert((1, index), u64::from(index) + 0x100);
    }
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
    let clock = fixture.clock.clone();
    let device = Passthrough::with_host("p".into(), config(keys), host.clone(), clock);
    (fixture, host, device)
}

#[test]
fn a_value_comes_from_the_fixed_cpu_or_the_one_that_runs() {
    let keys = "register = [{ msr = '0x11-0x12' }, { msr = 0x10, cpu = 1 }]";
    let (fixture, host, device) = on_host(keys);
    let device = device.unwrap();
    let read = || [0x10, 0x11, 0x12].map(|index| fixture.read(&device, 0, index));
    assert_eq!(read(), [Ok(0x110), Ok(0x11), Ok(0x12)]);
    host.running.store(1, Ordering::Relaxed);
    assert_eq!(read(), [Ok(0x110), Ok(0x111), Ok(0x112)]);
    // A CPU without them.
    host.running.store(2, Ordering::Relaxed);
    assert_eq!(
        read(),
        [Ok(0x110), Err(GeneralProtection), Err(GeneralProtection)]
    );
}

#[test]
fn a_value_of_a_fixed_cpu_is_read_once_in_a_period_however_often_the_guest_asks() {
    let keys = "register = [
        { msr = 0x10, cpu = 1 },
        { msr = 0x11, cpu = 1, cache_seconds = 2 },
        { msr = 0x12 },
        { msr = 0x611 },
    ]";
    let host = Arc::new(FakeHost::default());
    let set = |value: u64| {
        let mut msrs = host.msrs.lock().unwrap();
        for index in [0x10, 0x11, 0x12, 0x611] {
            msrs.extend([((0, index), value), ((1, index), value)]);
        }
    };
    set(0);
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
    let clock = fixture.clock.clone();
    let device = Passthrough::with_host("p".into(), config(keys), host.clone(), clock).unwrap();
    let read = || [0x10, 0x11, 0x12, 0x611].map(|index| fixture.read(&device, 0, index).unwrap());
    assert_eq!(read(), [0; 4]);
    set(1);
    for (pass, values) in [
        (Duration::ZERO, [0, 0, 1, 0]),
        (Duration::from_micros(999), [0, 0, 1, 0]),
        (Duration::from_micros(1), [1, 0, 1, 0]),
        (Duration::from_millis(999), [1, 0, 1, 1]),
        (Duration::from_secs(1), [1, 1, 1, 1]),
    ] {
        fixture.pass(pass, &[]);
        assert_eq!(read(), values, "{pass:?}");
    }
}

#[test]
fn what_the_host_refuses_of_a_fixed_cpu_is_asked_once_in_a_period_too() {
    let host = Arc::new(FakeHost::default());
    host.msrs.lock().unwrap().insert((1, 0x10), 5);
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
    let keys = "register = [{ msr = 0x10, cpu = 1, cache_seconds = 1 }]";
    let clock = fixture.clock.clone();
    let device = Passthrough::with_host("p".into(), config(keys), host.clone(), clock).unwrap();
    host.msrs.lock().unwrap().clear();
    assert!(fixture.read(&device, 0, 0x10).is_err());
    // Had it been asked again, it would have answered.
    host.msrs.lock().unwrap().insert((1, 0x10), 6);
    assert!(fixture.read(&device, 0, 0x10).is_err());
    fixture.pass(Duration::from_secs(1), &[]);
    assert_eq!(fixture.read(&device, 0, 0x10), Ok(6));
}

#[test]
fn only_the_registers_made_writable_reach_the_host() {
    let keys = "register = [{ msr = 0x10, cpu = 1, write = true }, { msr = '0x11-0x12' }]";
    let (fixture, host, device) = on_host(keys);
    let device = device.unwrap();
    fixture.write(&device, 0, 0x10, 7).unwrap();
    for index in [0x11, 0x12] {
        let written = fixture.write(&device, 0, index, 7);
        assert_eq!(written, Err(GeneralProtection));
    }
    let msrs = host.msrs.lock().unwrap().clone();
    let sevens: Vec<_> = msrs.iter().filter(|(_, value)| **value == 7).collect();
    assert_eq!(sevens, [(&(1, 0x10), &7)]);
}

#[test]
fn writes_of_a_fixed_cpus_register_are_a_millisecond_apart_however_many_vcpus_write() {
    let keys = "register = [{ msr = 0x10, cpu = 1, write = true }, { msr = 0x11, write = true }]";
    let (fixture, host, device) = on_host(keys);
    let device = device.unwrap();
    let waits = || std::mem::take(&mut *host.waits.lock().unwrap());
    let ms = Duration::from_millis;
    for index in [0x10, 0x11] {
        fixture.write(&device, 0, index, 1).unwrap();
    }
    assert_eq!(waits(), [], "the first of each");
    for _ in 0..3 {
        // The clock stands still: as if three vCPUs came at once.
        fixture.write(&device, 0, 0x10, 2).unwrap();
        fixture.write(&device, 0, 0x11, 2).unwrap();
    }
    assert_eq!(waits(), [ms(1), ms(2), ms(3)]);
    fixture.pass(ms(4), &[]);
    fixture.write(&device, 0, 0x10, 3).unwrap();
    assert_eq!(waits(), []);
}

#[test]
fn what_the_host_refuses_is_a_fault() {
    let (fixture, host, device) = on_host("register = [{ msr = 0x10, write = true }]");
    let device = device.unwrap();
    host.msrs.lock().unwrap().clear();
    assert_eq!(fixture.read(&device, 0, 0x10), Err(GeneralProtection));
    assert_eq!(fixture.write(&device, 0, 0x10, 7), Err(GeneralProtection));
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    for (keys, message) in [
        (
            "register = []",
            "register: 0 registers; a device passes 1 to 4096 through",
        ),
        (
            "register = [{ msr = '0-0xffffffff' }]",
            "register: 4294967296 registers; a device passes 1 to 4096 through",
        ),
        (
            "register = [{ msr = '0x10-0x12' }, { msr = 0x11, cpu = 0 }]",
            "register: MSR 0x11 is described twice",
        ),
        (
            "register = [{ msr = '0x10-0x11', write = true }]",
            "register 0x10-0x11: `write` is for a single MSR; give each its own table",
        ),
        (
            "register = [{ msr = '0x12-0x13', cpu = 1 }]",
            "register 0x12-0x13: CPU 1 of the host does not show MSR 0x13: Input/output error (os error 5)",
        ),
    ] {
        let (_, _, device) = on_host(keys);
        assert_eq!(device.err().as_deref(), Some(message), "{keys}");
    }
}

#[test]
fn a_host_without_the_files_is_named() {
    let error = DevCpu::open(&[9999], false).unwrap_err();
    assert_eq!(
        error,
        "cannot open /dev/cpu/9999/msr: No such file or directory (os error 2); the host needs the msr module (modprobe msr) and that CPU online"
    );
}

#[test]
fn a_register_that_shows_or_disturbs_the_host_is_warned_of() {
    let warning = |keys: &str| {
        let register: RegisterConfig = toml::from_str(keys).unwrap();
        register.warning().unwrap_or_default()
    };
    let energy = warning("msr = 0x611");
    assert!(
        energy.contains("0x611") && energy.contains("host's energy, read every 1 s"),
        "{energy}"
    );
    // A range that an energy counter is in, more often than by default.
    let range = warning("msr = \"0x610-0x614\"\ncache_seconds = 0.5");
    assert!(range.contains("energy, read every 0.5 s"), "{range}");
    let fixed = warning("msr = 0x19c\ncpu = 3");
    assert!(
        fixed.contains("0x19c")
            && fixed.contains("interrupt CPU 3")
            && fixed.contains("once in 0.001 s"),
        "{fixed}"
    );
    let writable = warning("msr = 0x19c\ncpu = 3\nwrite = true");
    assert!(
        writable.contains("by writing once in 0.001 s"),
        "{writable}"
    );
    assert_eq!(warning("msr = 0x19c"), "");
}
