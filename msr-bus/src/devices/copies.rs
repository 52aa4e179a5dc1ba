//! The values of a register's copies, as a key that sets them has them.

use serde::Deserialize;

use crate::U64;

/// One value for all copies of a register, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(
    untagged,
    expecting = "expected a 64-bit value, or a list with one for each copy of the register"
)]
pub enum Copies {
    /// The same for all.
    All(U64),
    /// In the order of threads, cores or packages.
    Each(Vec<U64>),
}

impl Copies {
    /// The value of each of `copies` copies.
    ///
    /// # Errors
    ///
    /// Where there is another number of them.
    pub(super) fn values(&self, copies: usize) -> Result<Vec<u64>, String> {
        match self {
            Self::All(value) => Ok(vec![value.0; copies]),
            Self::Each(values) if values.len() == copies => {
                Ok(values.iter().map(|value| value.0).collect())
            }
            Self::Each(values) => Err(format!(
                "there are {} values, and {copies} copies of the register",
                values.len()
            )),
        }
    }
}
