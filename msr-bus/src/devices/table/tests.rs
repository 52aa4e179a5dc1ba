use super::*;
use crate::devices::fixture::{self, Fixture};
use crate::testing::ICE_LAKE;
use crate::{DeviceConfig, DeviceModel, Topology};

const TOPOLOGY: Topology = Topology {
    packages: 2,
    cores: 1,
    threads: 2,
};
const GP: Result<u64, GeneralProtection> = Err(GeneralProtection);

fn try_table(keys: &str) -> Result<(Fixture, Table), String> {
    let fixture = Fixture::new(ICE_LAKE, TOPOLOGY);
    let table = Table::build("table".into(), fixture::config(keys), &fixture.context)?;
    Ok((fixture, table))
}

/// A table of one register, by its keys besides `msr = 0x10`.
fn register(keys: &str) -> (Fixture, Table) {
    try_table(&format!("[[register]]\nmsr = 0x10\n{keys}")).unwrap()
}

fn refusal(keys: &str) -> String {
    try_table(keys)
        .err()
        .unwrap_or_else(|| panic!("built: {keys}"))
}

#[test]
fn a_register_reads_its_value_and_is_read_only_unless_said_otherwise() {
    let (fixture, table) = register("value = '0x8000_0000_0000_0001'");
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(0x8000_0000_0000_0001));
    assert!(
        fixture
            .write(&table, 0, 0x10, 0x8000_0000_0000_0001)
            .is_err()
    );
    let (fixture, table) = register("");
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(0));
}

#[test]
fn ignored_writes_change_nothing() {
    let (fixture, table) = register("value = 5\nwrite = 'ignore'");
    assert!(fixture.write(&table, 0, 0x10, u64::MAX).is_ok());
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(5));
}

#[test]
fn a_stored_write_keeps_ignored_bits_and_faults_on_reserved_ones() {
    let (fixture, table) =
        register("value = 0x0f5\nwrite = 'store'\nreserved = 0xf00\nignored = 0x0f0");
    assert!(fixture.write(&table, 0, 0x10, 0x100a).is_ok());
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(0x10fa));
    for reserved in [0x100, 0x800, 0xfff] {
        assert!(fixture.write(&table, 0, 0x10, reserved).is_err());
        assert_eq!(fixture.read(&table, 0, 0x10), Ok(0x10fa));
    }
}

#[test]
fn a_write_only_register_takes_writes_and_faults_on_reads() {
    let (fixture, table) = register("read = 'fault'\nwrite = 'ignore'");
    assert_eq!(fixture.read(&table, 0, 0x10), GP);
    assert!(fixture.write(&table, 0, 0x10, 1).is_ok());
}

#[test]
fn a_lock_bit_once_set_makes_writes_fault() {
    let (fixture, table) = register("write = 'store'\nlock = 63\nscope = 'package'");
    assert!(fixture.write(&table, 0, 0x10, 7).is_ok());
    assert!(fixture.write(&table, 0, 0x10, 1 << 63 | 8).is_ok());
    for value in [0, 1 << 63 | 8, 9] {
        assert!(fixture.write(&table, 1, 0x10, value).is_err());
    }
    assert_eq!(fixture.read(&table, 1, 0x10), Ok(1 << 63 | 8));
    assert!(fixture.write(&table, 2, 0x10, 9).is_ok(), "another package");
    let (fixture, table) = register("value = 1\nwrite = 'store'\nlock = 0");
    assert!(
        fixture.write(&table, 0, 0x10, 0).is_err(),
        "locked from reset"
    );
}

#[test]
fn each_copy_may_have_its_own_value() {
    for (keys, expected) in [
        ("values = [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("values = [1, 2]\nscope = 'core'", [1, 1, 2, 2]),
        ("values = [1, 2]\nscope = 'package'", [1, 1, 2, 2]),
        ("value = 7", [7; 4]),
    ] {
        let (fixture, table) = register(keys);
        let read = [0, 1, 2, 3].map(|cpu| fixture.read(&table, cpu, 0x10).unwrap());
        assert_eq!(read, expected, "{keys}");
    }
}

#[test]
fn fields_put_the_value_together() {
    // MSR_PLATFORM_INFO of a processor with ratios from 8 to 28.
    let (fixture, table) = register(
        "value = 0x8000_0000
         fields.max_non_turbo_ratio = { bits = '15:8', value = 28 }
         fields.max_efficiency_ratio = { bits = '47:40', value = 8 }
         fields.ratio_limit_programmable = { bits = '28', value = 1 }
         fields.highest = { bits = '63:63', value = 1 }",
    );
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(0x8000_0800_9000_1c00));
    let (fixture, table) = register("fields.all = { bits = '63:0', value = '0xffffffffffffffff' }");
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(u64::MAX));
    let (fixture, table) =
        register("values = [1, 2]\nscope = 'package'\nfields.high = { bits = '7:4', value = 0xf }");
    assert_eq!(fixture.read(&table, 0, 0x10), Ok(0xf1));
    assert_eq!(fixture.read(&table, 2, 0x10), Ok(0xf2));
}

#[test]
fn a_range_makes_registers_alike_and_apart() {
    let (fixture, table) = try_table(
        "[[register]]\nmsr = '0xc0010200-0xc0010203'\nvalue = 1\nwrite = 'store'
         [[register]]\nmsr = 'IA32_PLATFORM_ID'\nvalue = 2",
    )
    .unwrap();
    fixture.write(&table, 0, 0xc001_0203, 9).unwrap();
    for (index, value) in [
        (0xc001_0200, 1),
        (0xc001_0202, 1),
        (0xc001_0203, 9),
        (0x17, 2),
    ] {
        assert_eq!(fixture.read(&table, 0, index), Ok(value), "{index:#x}");
    }
    let claims: Vec<u32> = table.claims().into_iter().map(MsrRange::first).collect();
    assert_eq!(
        claims,
        [0x17, 0xc001_0200, 0xc001_0201, 0xc001_0202, 0xc001_0203]
    );
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    let one = |keys: &str| refusal(&format!("[[register]]\nmsr = 0x10\n{keys}"));
    for (keys, message) in [
        (
            "value = 1\nvalues = [1, 2, 3, 4]",
            "register 0x10: `value` and `values` cannot both be given",
        ),
        (
            "values = [1, 2, 3]",
            "register 0x10: there are 3 `values`, and 4 copies of the register",
        ),
        (
            "fields.a = { bits = '3:0', value = 16 }",
            "register 0x10: fields.a: 0x10 does not fit bits 3:0",
        ),
        (
            "fields.a = { bits = '3:0', value = 0 }\nfields.b = { bits = '3', value = 0 }",
            "register 0x10: fields.b: bits 3 overlap `a`",
        ),
        (
            "value = 0x10\nfields.a = { bits = '7:4', value = 1 }",
            "register 0x10: fields.a: bits 7:4 are set in the value already",
        ),
        (
            "lock = 5",
            "register 0x10: `reserved`, `ignored` and `lock` speak of stored writes, \
             so they need write = \"store\"",
        ),
        (
            "write = 'store'\nreserved = 3\nignored = 6",
            "register 0x10: bits 0x2 are both `reserved` and `ignored`",
        ),
        (
            "write = 'store'\nlock = 64",
            "register 0x10: lock: there is no bit 64",
        ),
        (
            "write = 'store'\nlock = 1\nignored = 2",
            "register 0x10: lock: bit 1 cannot be written, as it is `reserved` or `ignored`",
        ),
        (
            "[[register]]\nmsr = '0xf-0x11'",
            "register: MSR 0x10 is described twice",
        ),
    ] {
        assert_eq!(one(keys), message);
    }
    assert_eq!(
        refusal("register = []"),
        "register: a table needs at least one register"
    );
    assert_eq!(
        refusal("[[register]]\nmsr = '0x0-0xffffffff'"),
        "register: 4294967296 registers are too many, a table holds 65536"
    );
}

#[test]
fn bits_that_no_register_has_are_refused() {
    for bits in [
        "", ":", "8:15", "64", "64:0", "+1", "0x1", "1:", "-1", "300:0", "a",
    ] {
        let keys = format!("bits = '{bits}'\nvalue = 0");
        let error = toml::from_str::<FieldConfig>(&keys).expect_err(bits);
        let message = error.message();
        assert!(message.contains("highest first"), "{bits}: {message}");
    }
}

#[test]
fn a_restored_table_answers_as_the_saved_one() {
    let keys = "write = 'store'\nscope = 'package'\nlock = 63";
    let (fixture, saved) = register(keys);
    fixture.write(&saved, 2, 0x10, 1 << 63 | 5).unwrap();
    let (fixture, restored) = register(keys);
    restored.restore(&saved.save().unwrap()).unwrap();
    assert_eq!(fixture.read(&restored, 0, 0x10), Ok(0));
    assert_eq!(fixture.read(&restored, 3, 0x10), Ok(1 << 63 | 5));
    assert!(fixture.write(&restored, 2, 0x10, 0).is_err());
}

#[test]
fn a_state_of_other_registers_another_topology_or_version_is_refused() {
    let (_, table) = register("");
    for (msr, copies) in [(0x11u32, 4), (0x10, 3)] {
        let other = DeviceState::encode(1, &[(msr, vec![0u64; copies])]);
        let error = table.restore(&other).unwrap_err();
        assert!(matches!(error, RestoreError::Mismatch(_)), "{error}");
    }
    let newer = DeviceState::encode(2, &[(0x10u32, [0u64; 4])]);
    assert!(matches!(
        table.restore(&newer),
        Err(RestoreError::Version { found: 2, .. })
    ));
}

#[test]
fn registers_are_set_from_outside_and_a_restored_table_knows_what_from() {
    let fixture = Fixture::new(ICE_LAKE, Topology::flat(2));
    let device = || {
        let device = DeviceConfig {
            model: "table".into(),
            name: None,
            keys: toml::from_str(
                "register = [
                     { msr = 1, value = 5 },
                     { msr = 2, write = 'store', reserved = 0xf0, ignored = 0xf },
                     { msr = '0x10-0x12', scope = 'package' },
                 ]",
            )
            .unwrap(),
        };
        device
            .build_live(DeviceModel::all(), &fixture.context)
            .unwrap()
    };
    let (table, live) = device();
    let access = |index: u32, vcpu: u32, write: Option<u64>| match write {
        None => fixture.read(&*table, vcpu, index),
        Some(value) => fixture.write(&*table, vcpu, index, value).map(|()| 0),
    };
    let set = |keys: &str| live.set(&toml::from_str(keys).unwrap());
    set("now.0x1 = 6\nnow.0x2 = [0x13, 0xf1]").unwrap();
    assert_eq!([access(1, 0, None), access(1, 1, None)], [Ok(6), Ok(6)]);
    assert_eq!(
        [access(2, 0, None), access(2, 1, None)],
        [Ok(0x13), Ok(0xf1)]
    );
    // A guest goes on from there, and what is set next leaves that alone.
    access(2, 0, Some(0x500)).unwrap();
    set("now.0x10-0x12 = 7").unwrap();
    assert_eq!(
        [access(2, 0, None), access(0x11, 1, None)],
        [Ok(0x503), Ok(7)]
    );
    let keys = live.current();
    assert_eq!(keys["now"].as_table().map(toml::Table::len), Some(3));
    for (keys, words) in [
        ("now.0x3 = 1", "now.0x3: the table has no such register"),
        (
            "now.0x0-0x1 = 1",
            "now.0x0-0x1: the table has no such register",
        ),
        (
            "now.0x2 = [1]",
            "now.0x2: there are 1 values, and 2 copies of the register",
        ),
        ("now.nonsense = 1", "now.nonsense: "),
        (
            "now.2 = 1",
            "now.2: it is the MSR that `0x2` names, which is set already: use that",
        ),
        ("now = 1", "`now` is 1; it takes a table"),
        (
            "register = []",
            "`register` cannot change while the guest runs; these can: now",
        ),
    ] {
        let error = set(keys).unwrap_err().to_string();
        assert!(error.contains(words), "{keys}: {error}");
    }
    assert_eq!(live.current(), keys);
    // No guest brings a table without what was set to this state.
    let state = table.save().unwrap();
    let (other, changes) = device();
    assert!(matches!(
        other.restore(&state),
        Err(RestoreError::Mismatch(_))
    ));
    changes.set(&live.changes()).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.save(), Some(state));
}
