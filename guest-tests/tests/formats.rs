//! Every state and configuration type through serde's formats: JSON and TOML for people, postcard and bitcode for
//! programs. A value comes back equal or is refused in words, and nothing that a file holds makes a reader panic.

use std::any::type_name;
use std::fmt::{Debug, Display};
use std::sync::Arc;

use msr_bus::testing::context;
use msr_bus::{
    BusBuilder, BusState, CpuVendor, DeviceConfig, DeviceModel, DeviceState, ExitReason, Fallback,
    FaultConfig, MsrBus, MsrDevice, Scope, Topology, U64, Unclaimed, VcpuId,
};
use msr_filter::{
    Access, FilterConfig, FilterSpec, MsrFilter, MsrRange, Rule, RuleConfig, Verdict,
};
use msr_kvm::scenario::ScenarioConfig;
use msr_kvm::state::{MsrState, SavedMsr, TscOffsets};
use msr_kvm::{FilterLayer, InitialMsr, MsrConfig, OnRefusal};
use msr_vmm::Config;
use msr_vmm::config::{MemorySize, TopologyConfig, VmConfig};
use msr_vmm::cpu::CpuModel;
use msr_vmm::models::{BuiltIn, ModelFile, ModelName};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A format: how a value is written, and how it is read.
struct Format<T> {
    name: &'static str,
    write: fn(&T) -> Result<Vec<u8>, String>,
    read: fn(&[u8]) -> Result<T, String>,
}

fn words(error: impl Display) -> String {
    error.to_string()
}

fn formats<T: Serialize + DeserializeOwned>() -> [Format<T>; 4] {
    /// TOML has tables only at its top.
    #[derive(Deserialize, Serialize)]
    struct Table<T> {
        value: T,
    }
    [
        Format {
            name: "JSON",
            write: |value| serde_json::to_vec(value).map_err(words),
            read: |bytes| serde_json::from_slice(bytes).map_err(words),
        },
        Format {
            name: "TOML",
            write: |value| Ok(toml::to_string(&Table { value }).map_err(words)?.into()),
            read: |bytes| {
                let table: Table<T> = toml::from_slice(bytes).map_err(words)?;
                Ok(table.value)
            },
        },
        Format {
            name: "postcard",
            write: |value| postcard::to_allocvec(value).map_err(words),
            read: |bytes| postcard::from_bytes(bytes).map_err(words),
        },
        Format {
            name: "bitcode",
            write: |value| bitcode::serialize(value).map_err(words),
            read: |bytes| bitcode::deserialize(bytes).map_err(words),
        },
    ]
}

/// `value` comes back equal from each format. Cut short or changed by `damage`, its bytes are refused or are another value;
/// reading them returns.
fn comes_back<T>(value: &T, damage: &[(usize, u8)])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    for Format { name, write, read } in formats::<T>() {
        let what = format!("{} in {name}", type_name::<T>());
        let bytes = write(value).unwrap_or_else(|error| panic!("{what}: {error}"));
        let back = read(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(&back, value, "{what}");
        let mut damaged = bytes.clone();
        for &(place, with) in damage {
            let length = damaged.len().max(1);
            if let Some(byte) = damaged.get_mut(place % length) {
                *byte ^= with;
            }
            for bytes in [&damaged[..], &bytes[..place % length]] {
                if let Err(error) = read(bytes) {
                    assert!(!error.is_empty(), "{what}");
                }
            }
        }
    }
}

fn rules() -> FilterConfig {
    let rule = |msrs, access, reason: Option<&str>, weight| RuleConfig {
        msrs,
        access,
        verdict: Verdict::Deny,
        reason: reason.map(str::to_owned),
        weight,
    };
    let range = |first, last| MsrRange::new(first, last).unwrap();
    FilterConfig {
        default: Verdict::Allow,
        rules: vec![
            rule(vec![MsrRange::single(0x10)], Access::READ, None, 0),
            rule(
                vec![range(0x600, 0x63f), range(0xc000_0080, 0xc000_1080)],
                Access::all(),
                Some("Energy.\n\"quoted\""),
                7,
            ),
        ],
    }
}

fn initial() -> [InitialMsr; 2] {
    let whole = InitialMsr {
        index: 0x1a0,
        value: u64::MAX,
        mask: u64::MAX,
        refused: OnRefusal::Error,
    };
    let part = InitialMsr {
        value: 1 << 63,
        mask: 1 << 63 | 1,
        refused: OnRefusal::Warn,
        ..whole
    };
    [whole, part]
}

/// The configuration of a device of each model.
const DEVICES: &[&str] = &[
    "type = 'aperfmperf'",
    "type = 'forward'\nmsr = [0x1a0]\nhide = '0xffff_0000_0000_0000'",
    "type = 'microcode'\nrevision = 7",
    "type = 'passthrough'",
    "type = 'platform'\nbase_mhz = 2000",
    "type = 'ppin'\nppin = [1]",
    "type = 'rapl'\ndomains = ['package', 'dram']",
    "type = 'scratch'\nmsr = 0x400\nname = 'pad'\nreset = '0xffffffffffffffff'",
    "type = 'table'\nregister = [{ msr = 1, value = '0x8000000000000000', write = 'store' }, { msr = 2, write = 'ignore' }]",
    "type = 'thermal'",
];

fn devices() -> Vec<DeviceConfig> {
    DEVICES
        .iter()
        .map(|keys| toml::from_str(keys).unwrap())
        .collect()
}

/// The devices that can be had without a host's MSRs.
fn built() -> Vec<Arc<dyn MsrDevice>> {
    let context = context(Topology::flat(2));
    let built = devices().into_iter().filter_map(|mut config| {
        config.name = None;
        config.build(DeviceModel::all(), &context).ok()
    });
    built.collect()
}

fn fault() -> FaultConfig {
    let text = "msrs = [0x10, '0x600-0x60f']\naccess = 'r'\nkind = 'flip'\nprobability = 0.25\nbits = '0x8000000000000001'\nvcpus = [1]";
    toml::from_str(text).unwrap()
}

fn msrs() -> MsrConfig {
    MsrConfig {
        faults: vec![fault()],
        exits: vec![ExitReason::Unknown],
        unclaimed: Fallback {
            filter: Unclaimed::Ignore,
            ..Fallback::default()
        },
        profile: Some("linux-guest".into()),
        filter: rules(),
        layers: vec![FilterLayer {
            name: "model m".into(),
            filter: rules(),
        }],
        initial: initial().to_vec(),
        devices: devices(),
        scenarios: vec![scenario()],
    }
}

fn scenario() -> ScenarioConfig {
    let text = "repeat = 0
        [[step]]
        after = 'login:'
        accesses = { msr = 0x10 }
        set.scratch.now = 1
        [[step]]
        wait = '1.5s'
        write = { msr = 0x10, value = 2 }
        do = 'stop'";
    toml::from_str(text).expect("the test wrote it")
}

fn machine() -> VmConfig {
    VmConfig {
        cpus: 4,
        topology: Some(TopologyConfig {
            packages: 2,
            cores: 1,
            threads: 2,
        }),
        memory: MemorySize(3 << 30),
        kernel: Some("/a folder/vmlinuz".into()),
        debug_exit: Some(0xf4),
        disks: ["a.img,ro", "b.img,serial=B"]
            .map(|disk| disk.parse().unwrap())
            .into(),
        ..VmConfig::default()
    }
}

fn cpu() -> CpuModel {
    toml::from_str(
        "vendor = 'GenuineIntel'\nfamily = 6\nmodel = 106\nhide = ['pts']\nunoffered = 'refuse'
         leaf = [{ leaf = '0x80000008', ebx = '0b1xx0' }, { leaf = 7, subleaf = 1, eax = '0x21' }]",
    )
    .unwrap()
}

/// The types of msr-filter.
fn filters(damage: &[(usize, u8)]) {
    comes_back(&MsrRange::new(0x600, 0x63f).unwrap(), damage);
    comes_back(&MsrRange::single(u32::MAX), damage);
    for access in [Access::READ, Access::WRITE, Access::all()] {
        comes_back(&access, damage);
    }
    comes_back(&Verdict::Deny, damage);
    comes_back(&rules(), damage);
    comes_back(&FilterConfig::from(&FilterSpec::new(Verdict::Deny)), damage);
    let rule = Rule::new(0x8b, Access::WRITE, Verdict::Allow);
    for spec in [FilterSpec::new(Verdict::Deny).rule(rule), (&rules()).into()] {
        comes_back::<MsrFilter>(&spec.compile().unwrap(), damage);
    }
}

/// The types of msr-bus.
fn bus(damage: &[(usize, u8)]) {
    for value in [0, 1, i64::MAX as u64 + 1, u64::MAX] {
        comes_back(&U64(value), damage);
    }
    comes_back(&VcpuId(2), damage);
    comes_back(&CpuVendor::Amd, damage);
    comes_back(&Scope::Package, damage);
    comes_back(&ExitReason::ALL.to_vec(), damage);
    comes_back(&msrs().unclaimed, damage);
    for device in devices() {
        comes_back(&device, damage);
    }
    for device in built() {
        if let Some(state) = device.save() {
            comes_back::<DeviceState>(&state, damage);
        }
    }
}

/// The types of msr-kvm.
fn kvm(damage: &[(usize, u8)]) {
    for initial in initial() {
        comes_back(&initial, damage);
    }
    for config in [MsrConfig::default(), msrs()] {
        comes_back(&config, damage);
    }
    comes_back(&msrs().layers, damage);
    let saved = |index, value| SavedMsr { index, value };
    comes_back(
        &MsrState {
            msrs: vec![saved(0x10, 7), saved(u32::MAX, i64::MAX as u64)],
        },
        damage,
    );
    comes_back(&TscOffsets::default(), damage);
}

/// The types of msr-vmm.
fn vmm(damage: &[(usize, u8)]) {
    comes_back(&MemorySize(2 << 20), damage);
    for vm in [VmConfig::default(), machine()] {
        comes_back(&vm.disks, damage);
        comes_back(&vm.topology.into_iter().collect::<Vec<_>>(), damage);
        comes_back(&vm, damage);
    }
    for cpu in [CpuModel::default(), cpu()] {
        comes_back(&cpu.leaves, damage);
        comes_back(&cpu, damage);
    }
    let whole = Config {
        model: Some(ModelName::new("zen3-server")),
        vm: machine(),
        cpu: cpu(),
        msr: msrs(),
    };
    for config in [Config::default(), whole] {
        comes_back(&config, damage);
    }
    for model in BuiltIn::all() {
        comes_back::<ModelFile>(&toml::from_str(model.text).unwrap(), damage);
    }
}

#[test]
fn every_model_has_a_configuration_here() {
    for model in DeviceModel::all() {
        let line = format!("type = '{}'", model.name());
        assert!(DEVICES.iter().any(|keys| keys.starts_with(&line)), "{line}");
    }
    assert!(built().len() >= 8, "few devices keep state here");
}

#[test]
fn a_bus_is_restored_from_each_format() {
    let bus = || {
        let devices = built().into_iter().filter(|d| d.save().is_some());
        devices
            .fold(MsrBus::builder(), BusBuilder::device)
            .build()
            .unwrap()
    };
    let saved = bus().save();
    for format in formats::<BusState>() {
        let bytes = (format.write)(&saved).unwrap();
        let restored = bus();
        restored.restore(&(format.read)(&bytes).unwrap()).unwrap();
        assert_eq!(restored.save(), saved, "{}", format.name);
    }
}

/// TOML has no integers beyond 2^63 - 1.
#[test]
fn what_a_format_cannot_say_is_refused_in_words() {
    let state = DeviceState::encode(1, &[u64::MAX]);
    for Format { name, write, read } in formats() {
        match write(&state) {
            Ok(bytes) => assert_eq!(read(&bytes), Ok(state.clone()), "{name}"),
            Err(error) => assert!(name == "TOML" && error.contains("u64"), "{name}: {error}"),
        }
    }
}

/// As deep as a file can ask for: a reader's stack is not its author's.
#[test]
fn depth_is_bounded() {
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let state = postcard::to_allocvec(&(1u32, &deep)).unwrap();
    assert!(postcard::from_bytes::<DeviceState>(&state).is_err());
    let config = format!("type = 'scratch'\nmsr = {deep}");
    let config = bitcode::serialize(&config).unwrap();
    assert!(bitcode::deserialize::<DeviceConfig>(&config).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_come_back_and_damage_does_no_harm(
        damage in prop::collection::vec((any::<usize>(), 1u8..), 0..8),
    ) {
        filters(&damage);
        bus(&damage);
        kvm(&damage);
        vmm(&damage);
    }
}
