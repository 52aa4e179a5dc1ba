//! Configurations in formats that are not for people, such as postcard and bitcode.
//!
//! A configuration leaves out keys that have their defaults, and some of its values may be written in several ways. A format
//! that neither names its fields nor tells the types of its values can do neither. In such a format a configuration is one
//! string, its TOML text; so it can also be read by a program of a version that has more keys.

use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};

/// Writes `value` as its TOML text.
///
/// # Errors
///
/// The serializer's, and what TOML cannot say.
pub fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let text = toml::to_string(value).map_err(S::Error::custom)?;
    serializer.serialize_str(&text)
}

/// Reads what [`serialize`] wrote.
///
/// # Errors
///
/// The deserializer's, and what is no TOML text of a `T`.
pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    toml::from_str(&text).map_err(D::Error::custom)
}

/// `Serialize` and `Deserialize` for a table of a configuration: by its fields in a format for people, and as its TOML
/// text in any other. The type derives both with `#[serde(remote = "Self")]`, which makes functions of the derived code.
#[doc(hidden)]
#[macro_export]
macro_rules! toml_in_binary_formats {
    ($type:ident) => {
        impl ::serde::Serialize for $type {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    Self::serialize(self, serializer)
                } else {
                    $crate::toml_text::serialize(self, serializer)
                }
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    Self::deserialize(deserializer)
                } else {
                    $crate::toml_text::deserialize(deserializer)
                }
            }
        }
    };
}
