//! The device, driven as a guest would.

use super::*;
use crate::devices::fixture::{Fixture, config};
use crate::testing::{FakeVcpu, ICE_LAKE, ZEN_3};
use crate::{ExitReason, Topology, VcpuId};

const TOPOLOGY: Topology = Topology {
    packages: 2,
    cores: 4,
    threads: 2,
};

fn intel(keys: &str) -> (Fixture, Platform) {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let device = Platform::build("p".into(), config(keys), &fixture.context).unwrap();
    (fixture, device)
}

fn amd(keys: &str) -> (Fixture, Platform) {
    let fixture = Fixture::new(ZEN_3, TOPOLOGY);
    let device = Platform::build("p".into(), config(keys), &fixture.context).unwrap();
    (fixture, device)
}

#[test]
fn an_ice_lake_server_shows_its_frequencies_and_topology() {
    let keys = "base_mhz = 2300\nturbo_mhz = [3400, 3200, 2800]\nturbo_cores = [4, 16, 40]";
    let (fixture, device) = intel(keys);
    for (index, value) in [
        (0x35, 8 | 4 << 16),
        (0xce, 23 << 8 | 8 << 40 | 8 << 48),
        (0x140, 0),
        (0x198, 23 << 8),
        (0x199, 23 << 8),
        (0x1a0, 0x11809),
        (0x1ad, 34 | 32 << 8 | 28 << 16),
        (0x1ae, 4 | 16 << 8 | 40 << 16),
        (0x648, 23),
        (0x649, 0),
        (0x64a, 0),
        (0x64b, 0),
        (0x64c, 22),
    ] {
        assert_eq!(fixture.read(&device, 3, index), Ok(value), "{index:#x}");
    }
}

#[test]
fn one_turbo_frequency_stands_for_any_number_of_cores() {
    let (fixture, device) = intel("base_mhz = 2000\nturbo_mhz = 3500");
    assert_eq!(fixture.read(&device, 0, 0x1ad), Ok(0x2323_2323_2323_2323));
    let (fixture, device) = intel("base_mhz = 2000");
    assert_eq!(fixture.read(&device, 0, 0x1ad), Ok(0x1414_1414_1414_1414));
}

#[test]
fn registers_of_other_generations_are_not_claimed() {
    let (_, device) = intel("base_mhz = 2000\nconfig_tdp = false");
    let claims: Vec<_> = device.claims().iter().map(|r| r.first()).collect();
    assert_eq!(claims, [0x35, 0xce, 0x140, 0x198, 0x199, 0x1a0, 0x1ad]);
}

#[test]
fn a_core_runs_at_the_highest_ratio_its_threads_ask_for() {
    let (fixture, device) = intel("base_mhz = 2000\nturbo_mhz = [3500, 3000]");
    let status = |vcpu| fixture.read(&device, vcpu, 0x198).unwrap() >> 8;
    fixture.write(&device, 2, 0x199, 12 << 8).unwrap();
    fixture.write(&device, 3, 0x199, 0x1e00).unwrap();
    assert_eq!((status(2), status(3), status(0)), (30, 30, 20));
    assert_eq!(fixture.read(&device, 2, 0x199), Ok(12 << 8));
    // Out of reach above and below.
    fixture.write(&device, 3, 0x199, 0xff00).unwrap();
    assert_eq!(status(2), 35);
    fixture.write(&device, 2, 0x199, 0).unwrap();
    fixture.write(&device, 3, 0x199, 0).unwrap();
    assert_eq!(status(2), 8);
    // Without turbo, by either switch.
    fixture.write(&device, 3, 0x199, 0xff00 | 1 << 32).unwrap();
    assert_eq!(status(2), 20);
    fixture.write(&device, 3, 0x199, 0xff00).unwrap();
    fixture.write(&device, 3, 0x1a0, 0x11809 | 1 << 38).unwrap();
    assert_eq!(status(2), 20);
}

#[test]
fn misc_enable_keeps_the_bits_that_software_cannot_switch() {
    let (fixture, device) = intel("base_mhz = 2000");
    let all = 1 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23;
    let all: u64 = all | 1 << 34 | 1 << 38;
    fixture.write(&device, 0, 0x1a0, all).unwrap();
    let switched = 1 | 1 << 3 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 23 | 1 << 38;
    assert_eq!(fixture.read(&device, 0, 0x1a0), Ok(switched));
    fixture.write(&device, 0, 0x1a0, 0).unwrap();
    assert_eq!(fixture.read(&device, 0, 0x1a0), Ok(1 << 11 | 1 << 12));
    assert_eq!(fixture.read(&device, 1, 0x1a0), Ok(0x11809));
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        let written = fixture.write(&device, 0, 0x1a0, 1 << bit);
        assert_eq!(written, Err(GeneralProtection), "bit {bit}");
    }
}

#[test]
fn read_only_registers_and_reserved_bits_fault() {
    let (fixture, device) = intel("base_mhz = 2000\nturbo_cores = [1, 2, 3, 4, 5, 6, 7, 8]");
    for index in [0x35, 0xce, 0x198, 0x1ad, 0x1ae, 0x648, 0x649, 0x64a] {
        assert_eq!(fixture.write(&device, 0, index, 0), Err(GeneralProtection));
    }
    for (index, reserved) in [
        (0x140, 1),
        (0x199, 1 << 16),
        (0x199, 1 << 33),
        (0x64b, 1),
        (0x64c, 1 << 8),
    ] {
        let written = fixture.write(&device, 0, index, reserved);
        assert_eq!(written, Err(GeneralProtection), "{index:#x}");
    }
    assert_eq!(fixture.write(&device, 0, 0x140, 0), Ok(()));
}

#[test]
fn the_turbo_activation_ratio_stays_once_locked() {
    let (fixture, device) = intel("base_mhz = 2000");
    fixture.write(&device, 0, 0x64c, 17).unwrap();
    fixture.write(&device, 1, 0x64c, 18 | 1 << 31).unwrap();
    fixture.write(&device, 0, 0x64c, 19).unwrap();
    assert_eq!(fixture.read(&device, 7, 0x64c), Ok(18 | 1 << 31));
    assert_eq!(fixture.read(&device, 8, 0x64c), Ok(19));
}

#[test]
fn cpuid_faulting_is_carried_out_by_kvm() {
    let (fixture, device) = intel("base_mhz = 2000\ncpuid_faulting = true");
    assert_eq!(fixture.read(&device, 0, 0xce).unwrap() >> 31 & 1, 1);
    let cpu = FakeVcpu::new(VcpuId(0), TOPOLOGY);
    cpu.kernel_msrs.borrow_mut().insert(0x140, 0);
    let access = MsrAccess {
        index: 0x140,
        reason: ExitReason::Filter,
        cpu: &cpu,
    };
    device.write(&access, 1).unwrap();
    assert_eq!(cpu.kernel_msrs.borrow()[&0x140], 1);
    assert_eq!(device.read(&access), Ok(1));
    assert_eq!(device.write(&access, 2), Err(GeneralProtection));
    // A KVM without it.
    assert_eq!(fixture.write(&device, 0, 0x140, 1), Err(GeneralProtection));
}

#[test]
fn zen_p_states_are_multipliers_of_25_mhz() {
    let (fixture, device) = amd("base_mhz = 2450\nmin_mhz = 1500");
    for (index, value) in [
        (0xc001_0061, 1 << 4),
        (0xc001_0062, 0),
        (0xc001_0063, 0),
        (0xc001_0064, 1 << 63 | 8 << 8 | 98),
        (0xc001_0065, 1 << 63 | 8 << 8 | 60),
        (0xc001_0066, 0),
        (0xc001_006b, 0),
    ] {
        assert_eq!(fixture.read(&device, 0, index), Ok(value), "{index:#x}");
    }
}

#[test]
fn a_zen_core_runs_in_the_fastest_p_state_its_threads_ask_for() {
    let (fixture, device) = amd("base_mhz = 3000\np_states_mhz = [3000, 2000, 1000]");
    fixture.write(&device, 0, 0xc001_0062, 2).unwrap();
    assert_eq!(fixture.read(&device, 0, 0xc001_0063), Ok(0));
    fixture.write(&device, 1, 0xc001_0062, 1).unwrap();
    assert_eq!(fixture.read(&device, 0, 0xc001_0063), Ok(1));
    fixture.write(&device, 1, 0xc001_0062, 7).unwrap();
    assert_eq!(fixture.read(&device, 1, 0xc001_0062), Ok(2));
    assert_eq!(fixture.read(&device, 1, 0xc001_0063), Ok(2));
    for (index, value) in [(0xc001_0062, 8), (0xc001_0061, 0), (0xc001_0064, 0)] {
        assert_eq!(
            fixture.write(&device, 0, index, value),
            Err(GeneralProtection)
        );
    }
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    let refused = |cpu, keys: &str| {
        let fixture = Fixture::new(cpu, TOPOLOGY);
        Platform::build("p".into(), config(keys), &fixture.context).unwrap_err()
    };
    for (cpu, keys, message) in [
        (
            ICE_LAKE,
            "base_mhz = 2350",
            "base_mhz: 2350 MHz is not a multiple of 100 MHz from 100 to 25500",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nmin_mhz = 2100",
            "min_mhz: 2100 MHz is more than the 2000 MHz of `base_mhz`",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nturbo_mhz = [2500, 2600]",
            "turbo_mhz: more cores at work are not faster, and none slower than the 2000 MHz of `base_mhz`",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nturbo_mhz = []",
            "turbo_mhz: 0 frequencies are not 1 to 8",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nturbo_mhz = [2500, 2400]\nturbo_cores = [1]",
            "turbo_cores: 1 counts of cores for 2 frequencies of `turbo_mhz`",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nturbo_mhz = 2500\nturbo_cores = []",
            "turbo_mhz: 0 frequencies are not 1 to 8",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nturbo_mhz = 2500\nturbo_cores = [4, 2]",
            "turbo_cores: the counts of cores begin above 0 and ascend",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\nmisc_enable = 2",
            "misc_enable: 0x2 has reserved bits; 0x4400c51889 are the others",
        ),
        (
            ICE_LAKE,
            "base_mhz = 2000\np_states_mhz = [2000]",
            "p_states_mhz: no Intel CPU has registers for it",
        ),
        (
            ZEN_3,
            "base_mhz = 2000\nturbo_mhz = 2500",
            "turbo_mhz: no AMD CPU has registers for it",
        ),
        (
            ZEN_3,
            "base_mhz = 2000\np_states_mhz = [1900]",
            "p_states_mhz: the P-states begin with the 2000 MHz of `base_mhz` and descend",
        ),
        (
            ZEN_3,
            "base_mhz = 2010",
            "p_states_mhz: 2010 MHz is not a multiple of 25 MHz from 25 to 6375",
        ),
    ] {
        assert_eq!(refused(cpu, keys), message);
    }
}

#[test]
fn a_restored_device_answers_as_the_saved_one_and_no_other() {
    let (fixture, saved) = intel("base_mhz = 2000");
    fixture.write(&saved, 5, 0x199, 0x0c00).unwrap();
    fixture.write(&saved, 6, 0x1a0, 0x800000).unwrap();
    fixture.write(&saved, 0, 0x64c, 1 << 31).unwrap();
    let state = saved.save().unwrap();
    let (_, restored) = intel("base_mhz = 2000");
    restored.restore(&state).unwrap();
    assert_eq!(restored.save(), Some(state.clone()));
    for (vcpu, index) in [(5, 0x199), (6, 0x1a0), (3, 0x64c)] {
        let values = (
            fixture.read(&saved, vcpu, index),
            fixture.read(&restored, vcpu, index),
        );
        assert_eq!(values.0, values.1);
    }

    let (fixture, zen) = amd("base_mhz = 2000");
    fixture.write(&zen, 5, 0xc001_0062, 1).unwrap();
    let (_, other) = amd("base_mhz = 2000");
    other.restore(&zen.save().unwrap()).unwrap();
    assert_eq!(fixture.read(&other, 5, 0xc001_0062), Ok(1));
    assert!(matches!(zen.restore(&state), Err(RestoreError::Data(_))));
    let out_of_range =
        serde_json::json!({ "amd_p_state": [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] });
    let state = DeviceState::encode(1, &out_of_range);
    assert!(matches!(
        zen.restore(&state),
        Err(RestoreError::Mismatch(_))
    ));
}

fn set(device: &Platform, fixture: &Fixture, keys: &str) -> Result<(), String> {
    device.apply(config(keys), &["limit_mhz"], &fixture.context)
}

#[test]
fn an_intel_core_shows_no_more_than_the_platforms_limit_of_now() {
    let keys = "base_mhz = 2000\nturbo_mhz = 3500\n";
    let (fixture, device) = intel(keys);
    let status = |vcpu| fixture.read(&device, vcpu, 0x198).unwrap() >> 8;
    fixture.write(&device, 0, 0x199, 30 << 8).unwrap();
    let limited = |mhz: &str| set(&device, &fixture, &format!("{keys}limit_mhz = {mhz}"));
    limited("1500").unwrap();
    assert_eq!((status(0), status(2)), (15, 15));
    // What software asked for stays, and is granted once it can be.
    assert_eq!(fixture.read(&device, 0, 0x199), Ok(30 << 8));
    limited("2500").unwrap();
    assert_eq!((status(0), status(2)), (25, 20));
    for (mhz, words) in [
        (
            "700",
            "limit_mhz: 700 MHz is not between the lowest frequency, 800 MHz, and the highest, 3500 MHz",
        ),
        ("3600", "limit_mhz: 3600 MHz is not between"),
        ("1550", "limit_mhz: 1550 MHz is not a multiple of 100 MHz"),
    ] {
        let error = limited(mhz).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(status(0), 25);
    set(&device, &fixture, keys).unwrap();
    assert_eq!(status(0), 30);
}

#[test]
fn amds_p_state_limit_holds_for_what_threads_ask_for() {
    let keys = "base_mhz = 2450\np_states_mhz = [2450, 2000, 1500]\n";
    let (fixture, device) = amd(keys);
    let read = |index| fixture.read(&device, 0, index).unwrap();
    assert_eq!((read(0xc001_0061), read(0xc001_0063)), (0x20, 0));
    set(&device, &fixture, &format!("{keys}limit_mhz = 2000")).unwrap();
    assert_eq!((read(0xc001_0061), read(0xc001_0063)), (0x21, 1));
    fixture.write(&device, 0, 0xc001_0062, 2).unwrap();
    fixture.write(&device, 1, 0xc001_0062, 2).unwrap();
    assert_eq!(read(0xc001_0063), 2);
    let error = set(&device, &fixture, &format!("{keys}limit_mhz = 1800")).unwrap_err();
    assert_eq!(
        error,
        "limit_mhz: 1800 MHz is no P-state's frequency; those are 2450, 2000, 1500 MHz"
    );
    assert_eq!(read(0xc001_0061), 0x21);
}
