//! Sizes of memory.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A size of memory in bytes. Written as a number of MiB (`512`) or with a unit (`"512M"`, `"2G"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

/// A size of memory that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a size of memory: write MiB as a number (512), or a number with K, M, G or T (2G)"
)]
pub struct ParseMemorySizeError(String);

impl FromStr for MemorySize {
    type Err = ParseMemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "K" | "KIB" => 10,
            "" | "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(ParseMemorySizeError(text.into())),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| ParseMemorySizeError(text.into()))?;
        match number.checked_mul(1 << shift) {
            // Whole pages, because memory is mapped in them.
            Some(bytes) if bytes > 0 && bytes % 4096 == 0 => Ok(Self(bytes)),
            _ => Err(ParseMemorySizeError(text.into())),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % (1 << 30) == 0 => write!(f, "{}G", bytes >> 30),
            bytes if bytes % (1 << 20) == 0 => write!(f, "{}M", bytes >> 20),
            bytes => write!(f, "{}K", bytes >> 10),
        }
    }
}

impl JsonSchema for MemorySize {
    fn schema_name() -> Cow<'static, str> {
        "MemorySize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "title": "a size: MiB as a number, or a string with K, M, G or T such as \"2G\"",
            "minimum": 1,
            "pattern": "^[0-9]+([KMGTkmgt]([Ii][Bb])?)?$",
        })
    }
}

impl Serialize for MemorySize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a size of memory: MiB as a number, or a string such as \"2G\""
        )]
        enum Written {
            Mib(u64),
            Text(String),
        }
        if !deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return text.parse().map_err(serde::de::Error::custom);
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Mib(mib) => mib.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory_are_mib_or_carry_a_unit() {
        for (text, bytes) in [
            ("1", 1 << 20),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("8K", 8 << 10),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
        for text in ["", "0", "M", "-1", "1.5G", "1X", "1K", "99999999999999T"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }
}
