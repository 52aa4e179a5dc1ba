use super::*;
use crate::cpu::{Feature, RegisterBits, Vendor};
use crate::models::ModelFile;
use msr_kvm::InitialMsr;

/// Shaped as Firecracker's own templates, with a CPU of this test's invention.
const TEMPLATE: &str = r#"{
    "kvm_capabilities": ["!56"],
    "cpuid_modifiers": [
        {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": "0bxxxx000000000110xx00011010100110"},
            {"register": "ecx", "bitmap": "0bxxxxxxxxxxxxxxxx0xxxxxxxxxxxxxx1"}
        ]},
        {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
            {"register": "ebx", "bitmap": "0bxxxxxxxxxxxxxxx0xxxxxxxxxx1xxxxx"}
        ]},
        {"leaf": "0x14", "subleaf": "0x0", "flags": 1, "modifiers": [
            {"register": "ebx", "bitmap": "0b101"}
        ]}
    ],
    "msr_modifiers": [
        {"addr": "0x10a", "bitmap": "0b0000000000000000000000000000000000000000000000000000110001001100"},
        {"addr": "0x122", "bitmap": "0bxx1x0"}
    ]
}"#;

fn names(features: &[Feature]) -> Vec<&str> {
    features.iter().map(Feature::name).collect()
}

#[test]
fn identity_features_and_msrs_become_a_model() {
    let Imported { model, .. } = import(TEMPLATE).unwrap();
    let cpu = &model.cpu;
    assert_eq!(
        (cpu.family, cpu.model, cpu.stepping),
        (Some(6), Some(106), Some(6))
    );
    assert_eq!(names(&cpu.show), ["pni", "avx2"]);
    assert_eq!(names(&cpu.hide), ["pdcm", "avx512f"]);
    assert_eq!(model.msr.devices, []);
    let initial = |index, value, mask| InitialMsr {
        index,
        value,
        mask,
        refused: OnRefusal::Error,
    };
    assert_eq!(
        model.msr.initial,
        [initial(0x10a, 0xc4c, u64::MAX), initial(0x122, 4, 5)]
    );
}

#[test]
fn vendor_and_brand_string_are_taken_where_they_are_whole() {
    let word = |text: &[u8]| {
        let word = u32::from_le_bytes([text[0], text[1], text[2], text[3]]);
        format!("0b{word:032b}")
    };
    let leaf = |leaf: u32, registers: [&str; 4], text: &[u8]| {
        let modifiers: Vec<_> = registers
            .iter()
            .zip(text.chunks(4))
            .map(|(register, part)| serde_json::json!({"register": register, "bitmap": word(part)}))
            .collect();
        serde_json::json!({"leaf": format!("{leaf:#x}"), "subleaf": "0x0", "modifiers": modifiers})
    };
    let order = ["eax", "ebx", "ecx", "edx"];
    let mut brand = b"Some CPU @ 2.00GHz".to_vec();
    brand.resize(48, 0);
    let template = serde_json::json!({"cpuid_modifiers": [
        leaf(0, ["ebx", "edx", "ecx", ""], b"GenuineIntel"),
        leaf(0x8000_0002, order, &brand[..16]),
        leaf(0x8000_0003, order, &brand[16..32]),
        leaf(0x8000_0004, order, &brand[32..]),
    ]});
    let Imported { model, notes } = import(&template.to_string()).unwrap();
    assert_eq!(model.cpu.vendor, Some(Vendor::INTEL));
    assert_eq!(model.cpu.brand.as_deref(), Some("Some CPU @ 2.00GHz"));
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn bits_without_a_name_are_given_by_leaf() {
    let Imported { model, .. } = import(TEMPLATE).unwrap();
    let leaf = model.cpu.leaves.iter().find(|l| l.leaf.0 == 0x14).unwrap();
    assert_eq!(leaf.ebx, RegisterBits::parse("0b101"));
    // The type of the processor, bits 13:12, is no part of the signature.
    let leaf = model.cpu.leaves.iter().find(|l| l.leaf.0 == 1).unwrap();
    assert_eq!(leaf.eax.unwrap().mask & 0x0fff_0fff, 0);
}

#[test]
fn what_this_machine_decides_and_what_kvm_lacks_is_noted() {
    let template = r#"{
        "kvm_capabilities": ["!56"],
        "cpuid_modifiers": [
            {"leaf": "0x1", "subleaf": "0x0", "modifiers": [
                {"register": "ebx", "bitmap": "0b00000001xxxxxxxxxxxxxxxxxxxxxxxx"},
                {"register": "ecx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]},
            {"leaf": "0xb", "subleaf": "0x0", "modifiers": [{"register": "eax", "bitmap": "0b1"}]},
            {"leaf": "0x15", "subleaf": "0x0", "modifiers": [{"register": "ebx", "bitmap": "0b1"}]}
        ],
        "msr_modifiers": [{"addr": "0x611", "bitmap": "0b10"}]
    }"#;
    let Imported { model, notes } = import(template).unwrap();
    assert!(!model.cpu.hypervisor);
    assert_eq!(model.cpu.leaves, []);
    for words in [
        "CPUID 0x1 EBX 0xffff0000, 0xb: not imported, vm.topology decides them",
        "CPUID 0x15: not imported, the frequency of the host's TSC",
        "kvm_capabilities: !56",
        "KVM has no MSR 0x611",
    ] {
        assert!(notes.iter().any(|note| note.contains(words)), "{notes:#?}");
    }
    let register = &model.msr.devices[0].keys["register"][0];
    assert_eq!(register["value"].as_str(), Some("0x2"));
}

/// Shaped as `cpu-template-helper fingerprint dump` writes it.
fn fingerprint() -> String {
    let leaf = |leaf: &str, registers: [u32; 4]| {
        let modifiers: Vec<_> = ["eax", "ebx", "ecx", "edx"]
            .iter()
            .zip(registers)
            .map(|(r, value)| serde_json::json!({"register": r, "bitmap": format!("0b{value:032b}")}))
            .collect();
        serde_json::json!({"leaf": leaf, "subleaf": "0x0", "flags": 0, "modifiers": modifiers})
    };
    let (ebx, ecx, edx) = (0x756e_6547, 0x6c65_746e, 0x4965_6e69);
    serde_json::json!({
        "firecracker_version": "1.0.0", "kernel_version": "6.1.0", "microcode_version": "0x1",
        "bios_version": "1", "bios_revision": "2",
        "guest_cpu_config": {
            "kvm_capabilities": [],
            "cpuid_modifiers": [
                leaf("0x0", [0x20, ebx, ecx, edx]),
                leaf("0x1", [0x806f8, 0, 1 << 31 | 1 << 26, 1]),
                leaf("0x7", [2, 0, 0, 1 << 24]),
                leaf("0x80000000", [0x8000_0008, 0, 0, 0]),
            ],
            "msr_modifiers": [{"addr": "0xc0000081", "bitmap": format!("0b{:064b}", 0)}],
        },
    })
    .to_string()
}

#[test]
fn a_fingerprint_is_a_model_that_goes_without_what_this_host_lacks() {
    let Imported { model, .. } = import(&fingerprint()).unwrap();
    assert!(model.summary.contains("Linux 6.1.0 and microcode 0x1"));
    assert_eq!(model.cpu.vendor, Some(Vendor::INTEL));
    assert_eq!(model.cpu.model, Some(143));
    assert!(names(&model.cpu.show).contains(&"amx_tile"));
    assert_eq!(model.cpu.unoffered, OnUnoffered::Hide);
    let [star] = model.msr.initial.as_slice() else {
        panic!("{model:?}");
    };
    assert_eq!((star.index, star.refused), (0xc000_0081, OnRefusal::Warn));
    // The part of it that is a dump is the same model, but for where it comes from.
    let json: serde_json::Value = serde_json::from_str(&fingerprint()).unwrap();
    let dump = import(&json["guest_cpu_config"].to_string()).unwrap().model;
    assert_eq!(dump.summary, "imported from a Firecracker CPU dump");
    assert_eq!(
        ModelFile {
            summary: model.summary.clone(),
            ..dump
        },
        model
    );
}

#[test]
fn what_is_printed_is_a_model_file_whose_devices_can_be_had() {
    let imported = import(TEMPLATE).unwrap();
    let read: crate::models::ModelFile = toml::from_str(&imported.to_string()).unwrap();
    assert_eq!(read, imported.model);
    let context = msr_bus::testing::context(msr_bus::Topology::flat(1));
    assert_eq!(read.msr.initial.len(), 2);
    for device in &read.msr.devices {
        device
            .build(msr_bus::DeviceModel::all(), &context)
            .map(drop)
            .unwrap();
    }
}

#[test]
fn mistakes_are_refused() {
    for (template, words) in [
        ("42", "not a Firecracker CPU template"),
        ("[]", "which is a JSON object"),
        ("{}", "changes nothing"),
        (
            r#"{"cpuid_modifiers": [], "msr_modifiers": []}"#,
            "changes nothing",
        ),
        (
            r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0bxx"}]}"#,
            "changes nothing",
        ),
        (r#"{"msr_modifers": []}"#, "did you mean `msr_modifiers`?"),
        (
            r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flag": 0, "modifiers": []}]}"#,
            "did you mean `flags`?",
        ),
        (
            r#"{"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {}}"#,
            "this is a JSON schema",
        ),
        (
            r#"{"reg_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}"#,
            "for Arm",
        ),
        (
            r#"{"guest_cpu_config": {"msr_modifiers": []}}"#,
            "missing field `firecracker_version`",
        ),
        (
            r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}, {"addr": "0x10a", "bitmap": "0b1"}]}"#,
            "MSR 0x10a is given twice",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "modifiers": [
                {"register": "eax", "bitmap": "0b1"}, {"register": "eax", "bitmap": "0b0"}]}]}"#,
            "eax of leaf 0x1, subleaf 0x0 is given twice",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "zz", "subleaf": "0", "modifiers": [{"register": "eax", "bitmap": "0b0"}]}]}"#,
            "`zz` is no number",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "modifiers": [{"register": "rax", "bitmap": "0b0"}]}]}"#,
            "no register `rax`",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "modifiers": [{"register": "eax", "bitmap": "0b2"}]}]}"#,
            "`0b2` is no number",
        ),
    ] {
        let error = import(template).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
