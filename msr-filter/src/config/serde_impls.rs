//! Filters in serde's data model: as a file writes them, or as tuples in a format that is not for people.
//!
//! A file leaves out keys that have their defaults. In a format that does not name its fields, such as postcard, nothing may be
//! left out.

use alloc::{string::String, vec::Vec};

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use super::{FilterConfig, RuleConfig};
use crate::{Access, MsrRange, Verdict};

impl Serialize for FilterConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        (self.default, &self.rules).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FilterConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let (default, rules) = <(Verdict, Vec<RuleConfig>)>::deserialize(deserializer)?;
        Ok(Self { default, rules })
    }
}

impl Serialize for RuleConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let Self {
            msrs,
            access,
            verdict,
            reason,
            weight,
        } = self;
        (msrs, access, verdict, reason, weight).serialize(serializer)
    }
}

/// The fields of a rule in their order.
type Fields = (Vec<MsrRange>, Access, Verdict, Option<String>, u32);

impl<'de> Deserialize<'de> for RuleConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let (msrs, access, verdict, reason, weight) = Fields::deserialize(deserializer)?;
        Ok(Self {
            msrs: not_empty(msrs)?,
            access,
            verdict,
            reason,
            weight,
        })
    }
}

pub(super) fn at_least_one<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<MsrRange>, D::Error> {
    not_empty(Vec::deserialize(deserializer)?)
}

fn not_empty<E: Error>(msrs: Vec<MsrRange>) -> Result<Vec<MsrRange>, E> {
    if msrs.is_empty() {
        return Err(E::invalid_length(0, &"at least one MSR"));
    }
    Ok(msrs)
}
