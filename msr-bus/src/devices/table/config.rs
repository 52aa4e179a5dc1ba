//! Registers as a configuration describes them, and what their copies hold after reset.

use std::collections::BTreeMap;
use std::fmt;

use msr_filter::MsrRange;
use serde::{Deserialize, Deserializer, de};

use crate::devices::copies::Copies;
use crate::{Scope, U64};

/// The keys of a `[[msr.device]]` with `type = "table"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The registers, each a table of its own: `[[msr.device.register]]`.
    pub register: Vec<RegisterConfig>,
    /// What registers hold now, in place of their values after reset, by MSR: a value for all copies, or a list with one for
    /// each (`now.0x10 = 5`). Neither `write` nor `reserved` bounds it.
    #[serde(default)]
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub now: BTreeMap<String, Copies>,
}

/// One register of a table, or as many alike as its range has MSRs.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegisterConfig {
    /// The register's MSR index or name; a range makes as many alike.
    pub msr: MsrRange,
    /// The value after reset, of every copy; 0 unless given.
    pub value: Option<U64>,
    /// The values after reset, one for each copy in the order of threads, cores or packages; instead of
    /// `value`.
    pub values: Option<Vec<U64>>,
    /// Named parts of the value after reset, which set the bits they name:
    /// `fields = { max_non_turbo_ratio = { bits = "15:8", value = 28 } }`.
    #[serde(default)]
    pub fields: BTreeMap<String, FieldConfig>,
    /// What a read does: "value", or "fault" (#GP: the register is write-only).
    #[serde(default)]
    pub read: ReadPolicy,
    /// What a write does: "fault" (#GP: the register is read-only), "ignore" (the write is dropped) or
    /// "store".
    #[serde(default)]
    pub write: WritePolicy,
    /// With "store": bits that must be written as zero. A write that sets one is #GP.
    #[serde(default)]
    pub reserved: U64,
    /// With "store": bits that keep their value whatever is written.
    #[serde(default)]
    pub ignored: U64,
    /// With "store": the number of the bit that locks the register. Once it is set, a write is #GP.
    pub lock: Option<u8>,
    /// Which CPUs share the register: "thread", "core" or "package".
    #[serde(default)]
    pub scope: Scope,
}

/// A named part of a register.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FieldConfig {
    /// The bits, highest first as manuals write them ("15:8"), or one ("7").
    pub bits: Bits,
    /// What they hold after reset, counted from the field's own lowest bit.
    pub value: U64,
}

/// What a read of a register does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReadPolicy {
    /// The read gives the value.
    #[default]
    Value,
    /// The read is #GP.
    Fault,
}

/// What a write to a register does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum WritePolicy {
    /// The write is #GP.
    #[default]
    Fault,
    /// The write is dropped.
    Ignore,
    /// The register takes the value.
    Store,
}

/// Consecutive bits of a register, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    high: u8,
    low: u8,
}

impl Bits {
    fn parse(text: &str) -> Option<Self> {
        // The standard library would take a sign.
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok())?
        };
        let (high, low) = match text.split_once(':') {
            Some((high, low)) => (number(high.trim())?, number(low.trim())?),
            None => (number(text.trim())?, number(text.trim())?),
        };
        (low <= high && high <= 63).then_some(Self { high, low })
    }

    /// The largest value the bits hold.
    const fn max(self) -> u64 {
        u64::MAX >> (63 - (self.high - self.low))
    }

    const fn mask(self) -> u64 {
        self.max() << self.low
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.high == self.low {
            write!(f, "{}", self.high)
        } else {
            write!(f, "{}:{}", self.high, self.low)
        }
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::invalid_value(
                de::Unexpected::Str(&text),
                &"bits of 63 to 0, highest first, such as \"15:8\" or \"7\"",
            )
        })
    }
}

#[cfg(feature = "config")]
impl schemars::JsonSchema for Bits {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bits".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "title": "bits of 63 to 0, highest first, such as \"15:8\" or \"7\"" })
    }
}

impl RegisterConfig {
    /// What each of `copies` copies holds after reset.
    ///
    /// # Errors
    ///
    /// What contradicts what, in words.
    pub(super) fn reset_values(&self, copies: u32) -> Result<Vec<u64>, String> {
        let mut values = match (&self.value, &self.values) {
            (Some(_), Some(_)) => {
                return Err("`value` and `values` cannot both be given".into());
            }
            (None, Some(values)) if values.len() != copies as usize => {
                let given = values.len();
                return Err(format!(
                    "there are {given} `values`, and {copies} copies of the register"
                ));
            }
            (None, Some(values)) => values.iter().map(|value| value.0).collect(),
            (value, None) => vec![value.unwrap_or_default().0; copies as usize],
        };
        let mut taken: Vec<(&str, Bits)> = Vec::new();
        for (name, FieldConfig { bits, value }) in &self.fields {
            let bits = *bits;
            if value.0 > bits.max() {
                return Err(format!(
                    "fields.{name}: {:#x} does not fit bits {bits}",
                    value.0
                ));
            }
            if let Some((other, _)) = taken.iter().find(|(_, b)| b.mask() & bits.mask() != 0) {
                return Err(format!("fields.{name}: bits {bits} overlap `{other}`"));
            }
            if values.iter().any(|v| v & bits.mask() != 0) {
                return Err(format!(
                    "fields.{name}: bits {bits} are set in the value already"
                ));
            }
            taken.push((name, bits));
            for register in &mut values {
                *register |= value.0 << bits.low;
            }
        }
        Ok(values)
    }

    /// What writes may change, if the keys that say so agree.
    ///
    /// # Errors
    ///
    /// What contradicts what, in words.
    pub(super) fn check_writes(&self) -> Result<(), String> {
        let (reserved, ignored) = (self.reserved.0, self.ignored.0);
        if self.write != WritePolicy::Store && (reserved | ignored != 0 || self.lock.is_some()) {
            return Err(
                "`reserved`, `ignored` and `lock` speak of stored writes, so they need write = \"store\""
                    .into(),
            );
        }
        if reserved & ignored != 0 {
            let both = reserved & ignored;
            return Err(format!("bits {both:#x} are both `reserved` and `ignored`"));
        }
        match self.lock {
            Some(bit) if bit > 63 => Err(format!("lock: there is no bit {bit}")),
            Some(bit) if (reserved | ignored) >> bit & 1 == 1 => Err(format!(
                "lock: bit {bit} cannot be written, as it is `reserved` or `ignored`"
            )),
            _ => Ok(()),
        }
    }
}
