//! Firecracker's custom CPU templates (its docs/cpu_templates/cpu-templates.md and schema.json).
//!
//! A template gives bits of CPUID and of MSRs a value, 0 or 1, and leaves those marked `x` as KVM has them. Of CPUID a model
//! takes vendor, family, model, stepping, brand string, and every feature that has a name; of MSRs all. An MSR whose 64 bits are
//! given becomes a constant of a table, another KVM's own value with those bits hidden or forced. What is left over is noted.

use std::fmt::Write;

use msr_filter::{CpuTemplate, MsrModifier};
use serde::Deserialize;
use toml::Value;

use super::{Imported, device, msr, table, value};
use crate::cpu::{Feature, Vendor};

/// What is wrong with a template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirecrackerError {
    /// It is not JSON, or its MSR modifiers are not as they have to be.
    #[error("not a Firecracker CPU template: {0}")]
    Json(#[from] serde_json::Error),
    /// A number or a bitmap of a CPUID modifier means nothing.
    #[error("cpuid_modifiers: `{0}` is no number and no bitmap of 32 of 0, 1 and x")]
    Number(String),
    /// A CPUID modifier names no register.
    #[error("cpuid_modifiers: there is no register `{0}`: eax, ebx, ecx and edx are")]
    Register(String),
}

/// The parts of a template that are not about MSRs.
#[derive(Debug, Default, Deserialize)]
struct Rest {
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<Leaf>,
    #[serde(default)]
    vcpu_features: Vec<serde_json::Value>,
    #[serde(default)]
    reg_modifiers: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Leaf {
    leaf: String,
    subleaf: String,
    modifiers: Vec<Modifier>,
}

#[derive(Debug, Deserialize)]
struct Modifier {
    register: String,
    bitmap: String,
}

/// What a template does to a register of CPUID.
struct CpuidBits {
    leaf: u32,
    subleaf: u32,
    register: String,
    mask: u32,
    value: u32,
}

/// Makes a model of a template.
///
/// # Errors
///
/// [`FirecrackerError`].
pub fn import(text: &str) -> Result<Imported, FirecrackerError> {
    let template: CpuTemplate = serde_json::from_str(text)?;
    let rest: Rest = serde_json::from_str(text)?;
    let mut imported = Imported::new("imported from a Firecracker CPU template");
    let mut cpuid = Vec::new();
    for leaf in &rest.cpuid_modifiers {
        for modifier in &leaf.modifiers {
            cpuid.push(leaf.bits(modifier)?);
        }
    }
    identity(&mut cpuid, &mut imported);
    features(&cpuid, &mut imported);
    msrs(&template.msr_modifiers, &mut imported);
    for capability in &rest.kvm_capabilities {
        imported.note(format!(
            "kvm_capabilities: {capability} is not imported: a model does not choose what KVM is asked for."
        ));
    }
    if !rest.vcpu_features.is_empty() || !rest.reg_modifiers.is_empty() {
        imported.note("vcpu_features and reg_modifiers are not imported: they are for Arm.");
    }
    Ok(imported)
}

impl Leaf {
    fn bits(&self, modifier: &Modifier) -> Result<CpuidBits, FirecrackerError> {
        let Modifier { register, bitmap } = modifier;
        if !["eax", "ebx", "ecx", "edx"].contains(&register.as_str()) {
            return Err(FirecrackerError::Register(register.clone()));
        }
        let bad = || FirecrackerError::Number(bitmap.clone());
        let (mask, value) = CpuTemplate::bitmap(bitmap, 32).ok_or_else(bad)?;
        Ok(CpuidBits {
            leaf: number(&self.leaf)?,
            subleaf: number(&self.subleaf)?,
            register: register.clone(),
            // Both have 32 bits at the most.
            mask: mask as u32,
            value: value as u32,
        })
    }
}

fn number(text: &str) -> Result<u32, FirecrackerError> {
    CpuTemplate::number(text).ok_or_else(|| FirecrackerError::Number(text.to_owned()))
}

/// Takes out of `cpuid` what says who the CPU is.
fn identity(cpuid: &mut Vec<CpuidBits>, imported: &mut Imported) {
    // Leaf 1's EAX: stepping, model, family, extended model and extended family.
    const SIGNATURE: u32 = 0x0fff_0fff;
    let given = |cpuid: &[CpuidBits], leaf, register: &str, mask| {
        let at = |bits: &&CpuidBits| (bits.leaf, bits.register.as_str()) == (leaf, register);
        let bits = cpuid.iter().find(at)?;
        (bits.mask & mask == mask).then_some(bits.value)
    };
    let cpu = &mut imported.model.cpu;
    if let Some(signature) = given(cpuid, 1, "eax", SIGNATURE) {
        cpu.set_signature(signature);
        cpuid.retain(|bits| (bits.leaf, bits.register.as_str()) != (1, "eax"));
    }
    let vendor = ["ebx", "edx", "ecx"].map(|register| given(cpuid, 0, register, u32::MAX));
    if let [Some(ebx), Some(edx), Some(ecx)] = vendor {
        let text = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
        let vendor = String::from_utf8(text).ok();
        cpu.vendor = vendor.and_then(|text| Vendor::try_from(text).ok());
        if cpu.vendor.is_some() {
            cpuid.retain(|bits| bits.leaf != 0 || bits.register == "eax");
        }
    }
    let registers = ["eax", "ebx", "ecx", "edx"];
    let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004];
    let brand: Option<Vec<u32>> = leaves
        .iter()
        .flat_map(|leaf| registers.map(|register| given(cpuid, *leaf, register, u32::MAX)))
        .collect();
    let brand = brand.map(|words| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.trim_end_matches('\0').to_owned()
    });
    if let Some(brand) = brand {
        cpu.brand = Some(brand);
        cpuid.retain(|bits| !leaves.contains(&bits.leaf));
    }
}

/// Hides and shows features, and notes the bits that are none.
fn features(cpuid: &[CpuidBits], imported: &mut Imported) {
    for bits in cpuid {
        let mut nameless = 0u32;
        for bit in (0..32).filter(|bit| bits.mask >> bit & 1 == 1) {
            let set = bits.value >> bit & 1 == 1;
            let cpu = &mut imported.model.cpu;
            match Feature::at(bits.leaf, bits.subleaf, &bits.register, bit) {
                Some(feature) if set => cpu.show.push(feature),
                Some(feature) => cpu.hide.push(feature),
                None => nameless |= 1 << bit,
            }
        }
        if nameless != 0 {
            let mut place = format!("CPUID {:#x}", bits.leaf);
            if bits.subleaf != 0 {
                // Writing to a string cannot fail.
                let _ = write!(place, ".{:#x}", bits.subleaf);
            }
            imported.note(format!(
                "{place} {}: bits {nameless:#x} are not imported, as they are no features with a name: the template has {:#x}.",
                bits.register.to_ascii_uppercase(),
                bits.value & nameless
            ));
        }
    }
}

fn msrs(modifiers: &[MsrModifier], imported: &mut Imported) {
    let (whole, partial): (Vec<&MsrModifier>, Vec<_>) =
        modifiers.iter().partition(|m| m.mask == u64::MAX);
    let devices = &mut imported.model.msr.devices;
    if !whole.is_empty() {
        let registers = whole.iter().map(|modifier| {
            let keys = [
                ("msr", msr(modifier.index)),
                ("value", value(modifier.value)),
            ];
            Value::Table(table(keys))
        });
        devices.push(device(
            "table",
            [("register", Value::Array(registers.collect()))],
        ));
    }
    for modifier in partial {
        let mut forward = device(
            "forward",
            [
                ("msrs", Value::Array(vec![msr(modifier.index)])),
                ("hide", value(modifier.mask & !modifier.value)),
                ("force", value(modifier.value)),
                ("write", Value::from("forward")),
            ],
        );
        forward.name = Some(format!("forward-{:#x}", modifier.index));
        devices.push(forward);
    }
    if !whole.is_empty() {
        imported.note(
            "MSRs of which the template gives every bit are constants: a write to them is #GP, where Firecracker leaves writes to KVM.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let [constant, forward] = model.msr.devices.as_slice() else {
            panic!("{model:?}");
        };
        let register = &constant.keys["register"][0];
        assert_eq!(register["msr"].as_str(), Some("IA32_ARCH_CAPABILITIES"));
        assert_eq!(register["value"].as_str(), Some("0xc4c"));
        assert_eq!(forward.model, "forward");
        assert_eq!(forward.keys["hide"].as_str(), Some("0x1"));
        assert_eq!(forward.keys["force"].as_str(), Some("0x4"));
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
    fn what_a_model_cannot_say_is_noted() {
        let notes = import(TEMPLATE).unwrap().notes;
        for words in [
            "CPUID 0x14 EBX: bits 0x7",
            "kvm_capabilities: !56",
            "a write to them is #GP",
        ] {
            assert!(notes.iter().any(|note| note.contains(words)), "{notes:#?}");
        }
    }

    #[test]
    fn what_is_printed_is_a_model_file_whose_devices_can_be_had() {
        let imported = import(TEMPLATE).unwrap();
        let read: crate::models::ModelFile = toml::from_str(&imported.to_string()).unwrap();
        assert_eq!(read, imported.model);
        let context = msr_bus::testing::context(msr_bus::Topology::flat(1));
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
}
