//! What a person sets for a test by an environment variable.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// A variable that is no number.
#[derive(Debug, thiserror::Error)]
#[error("{name}={value}: it takes a whole number")]
pub struct NotANumber {
    /// The variable.
    pub name: String,
    /// What it is set to.
    pub value: String,
}

/// What the variable `name` is set to, if it is set.
///
/// # Errors
///
/// [`NotANumber`].
pub fn number(name: &str) -> Result<Option<u64>, NotANumber> {
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    let value = value.to_string_lossy().into_owned();
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(NotANumber {
            name: name.to_owned(),
            value,
        }),
    }
}

/// What the random choices of a test begin with: `SEED=`, or another each time. It is printed, so that the test can be repeated.
///
/// # Errors
///
/// [`NotANumber`].
pub fn seed() -> Result<u64, NotANumber> {
    let seed = match number("SEED")? {
        Some(seed) => seed,
        None => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(0, |time| time.as_nanos() as u64)
        }
    };
    println!("SEED={seed}");
    Ok(seed)
}
