//! The vocabulary in serde's data model: as the strings that it displays and parses.
//!
//! Formats without types of their own, such as postcard, cannot tell a string from a number. In them a range is its
//! first and last index.

use alloc::string::{String, ToString};
use core::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::{Access, MsrRange};

impl Serialize for MsrRange {
    /// As `"0x611"` or `"0x600-0x63f"`: by number, because a name may mean another register to the
    /// reader's CPU. As two numbers in a format that is not for people.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.first(), self.last()).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for MsrRange {
    /// From a string as `FromStr` reads it, or from an integer for a single MSR; from two numbers in a format that is not
    /// for people.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl Visitor<'_> for Visit {
            type Value = MsrRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an MSR index (0 to 0xffffffff), name or range such as \"0x600-0x63f\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MsrRange, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: Error>(self, index: u64) -> Result<MsrRange, E> {
                u32::try_from(index)
                    .map(MsrRange::single)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(index), &self))
            }

            fn visit_i64<E: Error>(self, index: i64) -> Result<MsrRange, E> {
                u32::try_from(index)
                    .map(MsrRange::single)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(index), &self))
            }
        }

        if deserializer.is_human_readable() {
            return deserializer.deserialize_any(Visit);
        }
        let (first, last) = <(u32, u32)>::deserialize(deserializer)?;
        Self::new(first, last).map_err(D::Error::custom)
    }
}

impl Serialize for Access {
    /// As `"r"`, `"w"` or `"rw"`; no access at all is `"-"`, which does not deserialize.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Access {
    /// From `"r"`, `"w"` or `"rw"`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
