//! Filters in serde's data model, in the shape that `msr-vmm filter --json` prints:
//!
//! ```json
//! {"default": "allow", "ranges": [{"access": "rw", "base": 16, "nmsrs": 1, "bitmap": "0000000000000000"}]}
//! ```
//!
//! The bitmap is hexadecimal, the first byte first, and as long as KVM reads it: padded to a multiple of
//! 8 bytes, so of 16 digits. Bit `i % 8` of byte `i / 8` is MSR `base + i`, 1 allows.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Unexpected},
    ser::SerializeStruct,
};

use crate::{Access, FilterRange, MsrFilter, Verdict};

impl Serialize for MsrFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut filter = serializer.serialize_struct("MsrFilter", 2)?;
        filter.serialize_field("default", &self.default_verdict())?;
        filter.serialize_field("ranges", self.ranges())?;
        filter.end()
    }
}

impl Serialize for FilterRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        let bytes = self.bitmap_bytes();
        let bitmap = bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]);
        let mut range = serializer.serialize_struct("FilterRange", 4)?;
        range.serialize_field("access", &self.access())?;
        range.serialize_field("base", &self.span().first())?;
        // As wide as it is read: formats such as bitcode take no other integer.
        range.serialize_field("nmsrs", &(self.span().len() as u32))?;
        range.serialize_field("bitmap", &bitmap.collect::<String>())?;
        range.end()
    }
}

impl<'de> Deserialize<'de> for MsrFilter {
    /// Refuses what KVM would refuse. Other keys, such as the `warnings` that `msr-vmm` adds, are
    /// skipped.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            default: Verdict,
            ranges: Vec<FilterRange>,
        }
        let raw = Raw::deserialize(deserializer)?;
        Self::new(raw.default, raw.ranges).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for FilterRange {
    /// Refuses what KVM would refuse.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            access: Access,
            base: u32,
            nmsrs: u32,
            bitmap: String,
        }
        let raw = Raw::deserialize(deserializer)?;
        let bitmap = bytes(&raw.bitmap).ok_or_else(|| {
            D::Error::invalid_value(
                Unexpected::Str(&raw.bitmap),
                &"two hexadecimal digits a byte",
            )
        })?;
        Self::new(raw.base, raw.access, raw.nmsrs, &bitmap)
            .map_err(|error| D::Error::custom(error.to_string()))
    }
}

/// The bytes that `hex` spells, two digits each.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| Some(char::from(digit).to_digit(16)? as u8);
    let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<_>>().filter(|_| odd.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{string::ToString, vec};

    use serde_json::json;

    use super::*;
    use crate::{FilterSpec, Rule};

    #[test]
    fn the_shape_is_the_one_the_command_prints() {
        let filter = FilterSpec::new(Verdict::Deny)
            .rule(Rule::new(0x10, Access::READ, Verdict::Allow))
            .rule(Rule::new(0x1c, Access::READ, Verdict::Allow))
            .compile()
            .unwrap();
        let expected = json!({
            "default": "deny",
            "ranges": [{"access": "r", "base": 16, "nmsrs": 13, "bitmap": "0110000000000000"}],
        });
        assert_eq!(serde_json::to_value(&filter).unwrap(), expected);
        assert_eq!(
            serde_json::from_value::<MsrFilter>(expected).unwrap(),
            filter
        );
    }

    /// As the command adds its warnings.
    #[test]
    fn a_filter_can_be_flattened_into_a_larger_object() {
        #[derive(serde::Serialize)]
        struct Printed<'a> {
            #[serde(flatten)]
            filter: &'a MsrFilter,
            warnings: Vec<String>,
        }
        let printed = Printed {
            filter: &MsrFilter::allow_all(),
            warnings: vec!["careful".to_string()],
        };
        let json = serde_json::to_string(&printed).unwrap();
        assert_eq!(
            json,
            r#"{"default":"allow","ranges":[],"warnings":["careful"]}"#
        );
        assert_eq!(
            serde_json::from_str::<MsrFilter>(&json).unwrap(),
            MsrFilter::allow_all()
        );
    }

    #[test]
    fn what_kvm_refuses_does_not_deserialize() {
        let range = |nmsrs: u64, bitmap: &str| {
            json!({"default": "deny", "ranges": [
                {"access": "rw", "base": 16, "nmsrs": nmsrs, "bitmap": bitmap}
            ]})
        };
        for (json, part) in [
            (
                json!({"default": "deny", "ranges": []}),
                "denies by default",
            ),
            (range(0, ""), "spans 0 MSRs"),
            (range(1, "00"), "a bitmap of 1 bytes instead of 8"),
            (range(1, "00000000000000é"), "two hexadecimal digits a byte"),
            (range(1, "000"), "two hexadecimal digits a byte"),
        ] {
            let error = serde_json::from_value::<MsrFilter>(json).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
