//! Profiles: filters to build on, by name or from a file.

use std::io;
use std::path::{Path, PathBuf};

use msr_filter::FilterConfig;

/// The profiles that come with the VMM.
const BUILT_IN: [(&str, &str); 3] = [
    ("linux-guest", include_str!("../profiles/linux-guest.toml")),
    ("kvm-pv-only", include_str!("../profiles/kvm-pv-only.toml")),
    ("deny-writes", include_str!("../profiles/deny-writes.toml")),
];

/// A profile that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("cannot read profile {}: {source}; built in are {}", path.display(), names())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a filter.
    #[error("profile {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

/// Whether `path` is the name of a profile that comes with the VMM.
pub fn is_built_in(path: &Path) -> bool {
    BUILT_IN.iter().any(|(name, _)| path == Path::new(name))
}

/// The profile of that name, or else in that file.
///
/// # Errors
///
/// [`ProfileError`].
pub fn load(path: &Path) -> Result<FilterConfig, ProfileError> {
    let built_in = BUILT_IN.iter().find(|(name, _)| path == Path::new(name));
    let text = match built_in {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    toml::from_str(&text).map_err(|source| ProfileError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_a_filter() {
        for (name, _) in BUILT_IN {
            assert!(is_built_in(Path::new(name)));
            assert!(!load(Path::new(name)).unwrap().rules.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_unknown_profile_is_an_error_that_lists_the_known_ones() {
        let error = load(Path::new("linux-gest")).unwrap_err().to_string();
        assert!(
            error.contains("linux-gest") && error.contains("linux-guest"),
            "{error}"
        );
    }
}
