//! Firecracker's CPU templates, as far as they are about MSRs.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use crate::{Access, MsrRange, Rule, Verdict};

/// A custom CPU template (Firecracker's docs/cpu_templates/schema.json): the MSRs that it sets. The
/// other fields of the schema are skipped.
///
/// Deserializing refuses what is not a JSON object, a field that the schema lacks (a misspelt
/// `msr_modifiers` would be a template that sets nothing), and an MSR that is given twice.
///
/// ```
/// use msr_filter::{Access, CpuTemplate, Verdict};
///
/// let template: CpuTemplate = serde_json::from_str(
///     r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0bxxx01"}]}"#,
/// )?;
/// assert_eq!((template.msr_modifiers[0].mask, template.msr_modifiers[0].value), (0b11, 0b01));
/// // The guest is to see what the template says, and can't be let write it.
/// let rules = template.rules(Access::WRITE, Verdict::Deny);
/// assert_eq!(rules[0].range.first(), 0x10a);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTemplate {
    /// The MSRs that the template sets, in its order; each once.
    pub msr_modifiers: Vec<MsrModifier>,
}

/// What a template does to one MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawModifier")]
pub struct MsrModifier {
    /// The MSR.
    pub index: u32,
    /// The bits that the template sets or clears.
    pub mask: u64,
    /// Their values; 0 outside the mask.
    pub value: u64,
}

impl CpuTemplate {
    /// A rule with `verdict` for accesses of these kinds to each MSR that the template sets.
    pub fn rules(&self, access: Access, verdict: Verdict) -> Vec<Rule> {
        let msrs = self.msr_modifiers.iter();
        msrs.map(|msr| Rule::new(MsrRange::single(msr.index), access, verdict))
            .collect()
    }

    /// A number as templates write it: `0x` hexadecimal, `0b` binary, or decimal. `None` for anything else.
    pub fn number(text: &str) -> Option<u32> {
        let (digits, radix) = match text.split_at_checked(2) {
            Some(("0x", digits)) => (digits, 16),
            Some(("0b", digits)) => (digits, 2),
            _ => (text, 10),
        };
        u32::from_str_radix(digits, radix).ok()
    }

    /// The mask and the value of a bitmap as templates write it: `0b` and 1 to `width` (at most 64) of 0, 1
    /// and x, which `_` may group. `None` for anything else.
    pub fn bitmap(text: &str, width: usize) -> Option<(u64, u64)> {
        let (mut mask, mut value, mut len) = (0u64, 0u64, 0);
        for bit in text.strip_prefix("0b")?.bytes().filter(|bit| *bit != b'_') {
            let (known, set) = match bit {
                b'0' => (1, 0),
                b'1' => (1, 1),
                b'x' => (0, 0),
                _ => return None,
            };
            mask = mask << 1 | known;
            value = value << 1 | set;
            len += 1;
        }
        (1..=width.min(64)).contains(&len).then_some((mask, value))
    }
}

/// Every field that a template may have.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTemplate {
    msr_modifiers: Vec<MsrModifier>,
    #[serde(rename = "kvm_capabilities")]
    _kvm_capabilities: IgnoredAny,
    #[serde(rename = "cpuid_modifiers")]
    _cpuid_modifiers: IgnoredAny,
    #[serde(rename = "vcpu_features")]
    _vcpu_features: IgnoredAny,
    #[serde(rename = "reg_modifiers")]
    _reg_modifiers: IgnoredAny,
}

impl<'de> Deserialize<'de> for CpuTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TemplateVisitor)
    }
}

/// Takes a map only: a derived implementation would take a list of the fields' values too, and `[]` for all
/// of their defaults.
struct TemplateVisitor;

impl<'de> Visitor<'de> for TemplateVisitor {
    type Value = CpuTemplate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a CPU template, which is a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuTemplate, A::Error> {
        let raw = RawTemplate::deserialize(MapAccessDeserializer::new(map))?;
        let msr_modifiers = raw.msr_modifiers;
        for (number, modifier) in msr_modifiers.iter().enumerate() {
            let before = &msr_modifiers[..number];
            if let Some(first) = before.iter().position(|m| m.index == modifier.index) {
                return Err(A::Error::custom(format_args!(
                    "msr_modifiers: MSR {:#x} is given twice, by number {} and number {}",
                    modifier.index,
                    first + 1,
                    number + 1
                )));
            }
        }
        Ok(CpuTemplate { msr_modifiers })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModifier {
    #[serde(deserialize_with = "number")]
    addr: u32,
    bitmap: String,
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    CpuTemplate::number(&text)
        .ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &"an MSR such as \"0x10a\""))
}

/// A bitmap that is not `0b` and up to 64 of 0, 1 and x.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no bitmap of an MSR: write 0b and up to 64 of 0, 1 and x")]
struct BadBitmap(String);

impl TryFrom<RawModifier> for MsrModifier {
    type Error = BadBitmap;

    fn try_from(raw: RawModifier) -> Result<Self, BadBitmap> {
        let Some((mask, value)) = CpuTemplate::bitmap(&raw.bitmap, 64) else {
            return Err(BadBitmap(raw.bitmap));
        };
        Ok(Self {
            index: raw.addr,
            mask,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    /// Shaped as the templates that `cpu-template-helper` dumps.
    const TEMPLATE: &str = r#"{
        "kvm_capabilities": [],
        "cpuid_modifiers": [{
            "leaf": "0x1", "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "ecx", "bitmap": "0bxxxx000000000011xx00011011110010"}]
        }],
        "msr_modifiers": [
            {"addr": "0x10a", "bitmap": "0b0000000000000000000000000000000000000000000000000000110001001100"},
            {"addr": "0xc0010015", "bitmap": "0b1xxx_0"}
        ]
    }"#;

    #[test]
    fn the_msrs_a_template_sets_become_rules() {
        let template: CpuTemplate = serde_json::from_str(TEMPLATE).unwrap();
        let set = |index, mask, value| MsrModifier { index, mask, value };
        assert_eq!(
            template.msr_modifiers,
            [
                set(0x10a, u64::MAX, 0xc4c),
                set(0xc001_0015, 0b1_0001, 0b1_0000)
            ]
        );
        assert_eq!(
            template.rules(Access::all(), Verdict::Deny),
            [
                Rule::new(0x10a, Access::all(), Verdict::Deny),
                Rule::new(0xc001_0015, Access::all(), Verdict::Deny)
            ]
        );
    }

    #[test]
    fn what_is_no_template_or_has_an_unknown_field_is_refused() {
        for (text, part) in [
            ("[]", "a CPU template, which is a JSON object"),
            ("42", "a CPU template, which is a JSON object"),
            (
                r#"{"msr_modifers": []}"#,
                "unknown field `msr_modifers`, expected one of `msr_modifiers`",
            ),
            (
                r#"{"msr_modifiers": [{"addr": "0x10", "bitmap": "0b1"}, {"addr": "16", "bitmap": "0b0"}]}"#,
                "MSR 0x10 is given twice, by number 1 and number 2",
            ),
        ] {
            let error = serde_json::from_str::<CpuTemplate>(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let arm = r#"{"vcpu_features": [{"index": 0, "bitmap": "0b1"}], "reg_modifiers": []}"#;
        assert_eq!(
            serde_json::from_str::<CpuTemplate>(arm).unwrap(),
            CpuTemplate::default()
        );
    }

    #[test]
    fn mistakes_in_a_template_are_refused() {
        let template = |addr: &str, bitmap: &str| {
            let json = serde_json::json!({"msr_modifiers": [{"addr": addr, "bitmap": bitmap}]});
            serde_json::from_value::<CpuTemplate>(json)
        };
        assert!(template("16", "0bx").is_ok());
        assert!(template("0b101", "0bx").is_ok());
        for (addr, bitmap, part) in [
            ("0x1g", "0b0", "expected an MSR such as \"0x10a\""),
            ("0x100000000", "0b0", "expected an MSR such as \"0x10a\""),
            ("", "0b0", "expected an MSR such as \"0x10a\""),
            ("0x10", "0b", "no bitmap of an MSR"),
            ("0x10", "x", "no bitmap of an MSR"),
            ("0x10", "0b2", "no bitmap of an MSR"),
            (
                "0x10",
                &std::format!("0b{}", "x".repeat(65)),
                "no bitmap of an MSR",
            ),
        ] {
            let error = template(addr, bitmap).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
