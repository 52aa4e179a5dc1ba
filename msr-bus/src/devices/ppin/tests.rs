use super::*;
use crate::devices::fixture::Fixture;
use crate::testing::{ICE_LAKE, ZEN_3};
use crate::{CpuIdentity, Topology};

const TWO_PACKAGES: Topology = Topology {
    packages: 2,
    cores: 2,
    threads: 1,
};
const GP: Result<u64, GeneralProtection> = Err(GeneralProtection);
const NUMBERS: [u64; 2] = [0xfeed_0001_dead_0001, 2];

fn ppin(cpu: CpuIdentity, enabled: bool, locked: bool) -> (Fixture, Ppin) {
    let fixture = Fixture::new(cpu, TWO_PACKAGES);
    let config = Config {
        vendor: None,
        ppin: NUMBERS.map(U64).to_vec(),
        enabled,
        locked,
    };
    let device = Ppin::build("ppin".into(), config, &fixture.context).unwrap();
    (fixture, device)
}

#[test]
fn the_number_is_readable_only_while_enabled_and_never_written() {
    for (cpu, ctl) in [(ICE_LAKE, 0x4e), (ZEN_3, 0xc001_02f0)] {
        let (fixture, device) = ppin(cpu, false, false);
        assert_eq!(fixture.read(&device, 0, ctl), Ok(0));
        assert_eq!(fixture.read(&device, 0, ctl + 1), GP);
        assert!(fixture.write(&device, 0, ctl, 2).is_ok());
        assert_eq!(fixture.read(&device, 1, ctl), Ok(2));
        assert_eq!(fixture.read(&device, 1, ctl + 1), Ok(NUMBERS[0]));
        assert!(fixture.write(&device, 0, ctl + 1, 0).is_err());
        assert!(fixture.write(&device, 1, ctl, 0).is_ok());
        assert_eq!(fixture.read(&device, 0, ctl + 1), GP);
    }
}

#[test]
fn each_package_has_its_own_number_and_control() {
    let (fixture, device) = ppin(ICE_LAKE, false, false);
    fixture.write(&device, 2, 0x4e, 2).unwrap();
    assert_eq!(fixture.read(&device, 3, 0x4f), Ok(NUMBERS[1]));
    assert_eq!(fixture.read(&device, 0, 0x4f), GP);
}

#[test]
fn the_control_register_follows_the_manuals_transitions() {
    // From, to, allowed on Intel, allowed on AMD.
    for (from, to, intel, amd) in [
        (0, 0, true, true),
        (0, 1, true, true),
        (0, 2, true, true),
        (0, 3, false, true),
        (2, 0, true, true),
        (2, 1, false, true),
        (2, 2, true, true),
        (2, 3, false, true),
        (1, 0, false, false),
        (1, 1, false, false),
        (1, 2, false, false),
        (1, 3, false, false),
        (0, 4, false, false),
        (0, 1 << 63, false, false),
        (2, 0x102, false, false),
    ] {
        for (cpu, ctl, allowed) in [(ICE_LAKE, 0x4e, intel), (ZEN_3, 0xc001_02f0, amd)] {
            let (fixture, device) = ppin(cpu, from & 2 != 0, from & 1 != 0);
            let written = fixture.write(&device, 0, ctl, to).is_ok();
            assert_eq!(written, allowed, "{:?}: {from} to {to:#x}", cpu.vendor);
            let after = if allowed { to } else { from };
            assert_eq!(fixture.read(&device, 0, ctl), Ok(after));
        }
    }
}

#[test]
fn an_enabled_number_stays_readable_after_amds_lock() {
    let (fixture, device) = ppin(ZEN_3, true, true);
    assert!(fixture.write(&device, 0, 0xc001_02f0, 0).is_err());
    assert_eq!(fixture.read(&device, 0, 0xc001_02f1), Ok(NUMBERS[0]));
}

#[test]
fn a_configuration_that_no_hardware_has_is_refused() {
    let fixture = Fixture::new(ICE_LAKE, TWO_PACKAGES);
    let refusal = |config| Ppin::build("p".into(), config, &fixture.context).unwrap_err();
    let config = Config {
        ppin: vec![U64(1)],
        ..Config::default()
    };
    assert_eq!(refusal(config), "ppin: there are 1 numbers and 2 packages");
    let config = Config {
        ppin: vec![U64(1), U64(2)],
        enabled: true,
        locked: true,
        ..Config::default()
    };
    assert_eq!(
        refusal(config),
        "locked: on Intel a PPIN that is enabled cannot be locked"
    );
}

#[test]
fn a_restored_device_answers_as_the_saved_one() {
    let (fixture, saved) = ppin(ICE_LAKE, false, false);
    fixture.write(&saved, 0, 0x4e, 2).unwrap();
    fixture.write(&saved, 2, 0x4e, 1).unwrap();
    let (fixture, restored) = ppin(ICE_LAKE, false, false);
    restored.restore(&saved.save().unwrap()).unwrap();
    assert_eq!(fixture.read(&restored, 0, 0x4f), Ok(NUMBERS[0]));
    assert_eq!(fixture.read(&restored, 2, 0x4e), Ok(1));
    assert!(fixture.write(&restored, 2, 0x4e, 0).is_err());
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let (_, device) = ppin(ICE_LAKE, false, false);
    for (data, message) in [
        (&[0u64][..], "1 packages where there are 2"),
        (&[0, 4], "a control register of 0x4"),
    ] {
        let error = device.restore(&DeviceState::encode(1, &data)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let newer = device.restore(&DeviceState::encode(2, &[0u64, 0]));
    assert!(matches!(newer, Err(RestoreError::Version { found: 2, .. })));
}
