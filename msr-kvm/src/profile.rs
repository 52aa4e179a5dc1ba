//! Profiles: filters to build on, by name or from a file.

use std::io;
use std::path::{Path, PathBuf};

use msr_bus::{Document, DocumentError, nearest};
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
    /// The file cannot be read, and no profile that comes with the VMM has the name.
    #[error(
        "cannot read profile {}: {source}; {}",
        path.display(),
        did_you_mean(path).unwrap_or_else(|| format!("built in are {}", names()))
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a filter.
    #[error(transparent)]
    File(DocumentError),
}

fn did_you_mean(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let nearest = nearest(name, BUILT_IN.iter().map(|(name, _)| *name))?;
    Some(format!("did you mean `{nearest}`?"))
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

/// Whether `path` is the name of a profile that comes with the VMM.
pub fn is_built_in(path: &Path) -> bool {
    BUILT_IN.iter().any(|(name, _)| path == Path::new(name))
}

/// The profiles that come with the VMM: their names and files.
pub fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUILT_IN.into_iter()
}

/// The profile of that name, or else in that file.
///
/// # Errors
///
/// [`ProfileError`].
pub fn load(path: &Path) -> Result<FilterConfig, ProfileError> {
    let built_in = BUILT_IN.iter().find(|(name, _)| path == Path::new(name));
    let document = match built_in {
        Some((name, text)) => Document::new(*name, *text),
        None => Document::read(path).map_err(|error| match error {
            DocumentError::Read { source, .. } => ProfileError::Read {
                path: path.to_owned(),
                source,
            },
            other => ProfileError::File(other),
        })?,
    };
    document.parse().map_err(ProfileError::File)
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
    fn an_unknown_profile_is_refused_with_the_nearest_or_all_of_them() {
        for (name, advice) in [
            ("linux-gest", "did you mean `linux-guest`?"),
            ("zzz", "built in are linux-guest, kvm-pv-only, deny-writes"),
        ] {
            let error = load(Path::new(name)).unwrap_err().to_string();
            assert!(error.contains(name) && error.ends_with(advice), "{error}");
        }
    }
}
