//! Values as a configuration writes them.

#[cfg(feature = "config")]
use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 64-bit register value. A configuration may write it as an integer, or as a string in hexadecimal
/// (`"0x8000_0000_0000_0000"`) because TOML's integers end at 2^63 - 1. In a
/// format that is not for people, such as postcard, it is a `u64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct U64(pub u64);

impl<'de> Deserialize<'de> for U64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(U64Visitor)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

struct U64Visitor;

impl Visitor<'_> for U64Visitor {
    type Value = U64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a 64-bit value, as an integer or a string such as \"0x1f00\"")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<U64, E> {
        Ok(U64(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<U64, E> {
        u64::try_from(value)
            .map(U64)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<U64, E> {
        let digits = text.replace('_', "");
        let value = match digits
            .strip_prefix("0x")
            .or_else(|| digits.strip_prefix("0X"))
        {
            // The standard library would take a sign.
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
            None if !digits.starts_with('+') => digits.parse().ok(),
            _ => None,
        };
        value
            .map(U64)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Serialize for U64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&format_args!("{:#x}", self.0))
        } else {
            self.0.serialize(serializer)
        }
    }
}

#[cfg(feature = "config")]
impl schemars::JsonSchema for U64 {
    fn schema_name() -> Cow<'static, str> {
        "u64".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "string"], "title": "a 64-bit value" })
    }
}

#[cfg(test)]
mod tests;
