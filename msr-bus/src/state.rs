//! Device state, saved and restored.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::faults::FaultState;

/// The state of one device: its own data under a version of its own.
///
/// In a format without types of its own, such as postcard or bitcode, the data is JSON text, whose depth its parser bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DeviceState {
    version: u32,
    data: serde_json::Value,
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The state has a version this program does not read.
    #[error("the state has version {found}, this program reads version {expected}")]
    Version {
        /// The version in the state.
        found: u32,
        /// The version this program reads.
        expected: u32,
    },
    /// The data is not what the device saved.
    #[error("the state's data is damaged: {0}")]
    Data(#[from] serde_json::Error),
    /// The state is well-formed but contradicts the device's configuration.
    #[error("the state does not fit the device: {0}")]
    Mismatch(String),
    /// The device keeps no state.
    #[error("the device keeps no state, yet the file has some for it")]
    Stateless,
    /// A device on the bus that keeps state has none in the file.
    #[error("there is no state for device `{0}`")]
    Missing(String),
    /// The file has state for a device that the bus lacks.
    #[error("there is state for device `{0}`, which this bus lacks")]
    Unclaimed(String),
    /// The file has two states for one device.
    #[error("there are two states for device `{0}`")]
    Twice(String),
    /// What went wrong, and in which device's state.
    #[error("device `{device}`: {source}")]
    Device {
        /// The device's name.
        device: String,
        /// What was wrong with its state.
        source: Box<RestoreError>,
    },
}

impl DeviceState {
    /// Encodes `data` under the device's own `version`.
    ///
    /// # Panics
    ///
    /// Where `data` has a shape that JSON lacks (a map with keys other than strings); a device's state
    /// type is chosen so that it never has.
    pub fn encode<T: Serialize>(version: u32, data: &T) -> Self {
        let data = serde_json::to_value(data).expect("device states are plain structs");
        Self { version, data }
    }

    /// Decodes data of version `expected`.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Version`] and [`RestoreError::Data`].
    pub fn decode<T: DeserializeOwned>(&self, expected: u32) -> Result<T, RestoreError> {
        if self.version != expected {
            return Err(RestoreError::Version {
                found: self.version,
                expected,
            });
        }
        Ok(T::deserialize(&self.data)?)
    }
}

impl Serialize for DeviceState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        (self.version, self.data.to_string()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DeviceState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let (version, text) = <(u32, String)>::deserialize(deserializer)?;
        let data = serde_json::from_str(&text).map_err(serde::de::Error::custom)?;
        Ok(Self { version, data })
    }
}

/// The state of every device on a bus that keeps any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    pub(crate) version: u32,
    pub(crate) devices: Vec<NamedState>,
    /// What fault rules have counted.
    #[serde(default)]
    pub(crate) faults: Vec<FaultState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedState {
    pub(crate) device: String,
    pub(crate) state: DeviceState,
}

impl BusState {
    /// The version of the container itself.
    pub(crate) const VERSION: u32 = 1;

    /// Writes the state as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a bus state is plain structs and JSON values")
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Version`] for a state of another version, whatever that version's shape, and
    /// [`RestoreError::Data`] for text that is no bus state.
    pub fn from_json(text: &str) -> Result<Self, RestoreError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let value: serde_json::Value = serde_json::from_str(text)?;
        Self::check_version(Versioned::deserialize(&value)?.version)?;
        Ok(Self::deserialize(value)?)
    }

    pub(crate) fn check_version(found: u32) -> Result<(), RestoreError> {
        match found {
            Self::VERSION => Ok(()),
            _ => Err(RestoreError::Version {
                found,
                expected: Self::VERSION,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
