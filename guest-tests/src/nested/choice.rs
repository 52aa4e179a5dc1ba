//! Which QEMU emulates the outer VM, and how its KVM pages for the guests.
//!
//! It is the one that `resources/fetch-qemu.sh` fetches, the same on every distribution: of those that were tried, its
//! emulation of AMD SVM is the one that held. `QEMU=` names another executable.
//!
//! QEMU's TCG emulates AMD SVM, with nested paging or without, and no version is right in both. With
//! *nested* paging the emulated processor walks the guest's page tables and KVM's; with *shadow* paging
//! KVM keeps tables of its own for the guest, and the processor walks those only. `docs/test-bed.md` has
//! what was run under which version, how often, and what failed.
//!
//! The version decides. For one that was not tried, a trial boots a Linux guest and keeps
//! what it found. `OUTER_PAGING=nested|shadow` decides the paging otherwise.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::process::Command;
use std::str::FromStr;

use crate::assets;

/// The fetched emulator, under `target`.
const FETCHED: &str = "qemu/qemu-system-x86_64";

/// The machine's own, which serves where none could be fetched.
const INSTALLED: &str = "qemu-system-x86_64";

/// How the outer VM's KVM pages for its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// With the emulated processor's nested paging.
    Nested,
    /// With page tables that KVM makes for the guest.
    Shadow,
}

impl Paging {
    /// The emulated processor: an AMD one whose virtualization KVM takes.
    pub(super) const fn cpu(self) -> &'static str {
        match self {
            Self::Nested => "EPYC,+svm,+npt",
            Self::Shadow => "EPYC,+svm,-npt",
        }
    }

    /// The other one.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Nested => Self::Shadow,
            Self::Shadow => Self::Nested,
        }
    }
}

impl fmt::Display for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
        })
    }
}

impl FromStr for Paging {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "nested" => Ok(Self::Nested),
            "shadow" => Ok(Self::Shadow),
            _ => Err(()),
        }
    }
}

/// A QEMU and what it is to emulate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The executable, a path or a name to look for in `PATH`.
    pub program: OsString,
    /// What it calls its version, such as `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
    pub version: String,
    /// How KVM pages there.
    pub paging: Paging,
    /// Why so.
    pub reason: Reason,
}

/// What decided the paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `OUTER_PAGING`.
    Asked,
    /// The version is one that was tried at length.
    Known,
    /// It is not, and this is what is right for its neighbours; a trial should confirm it.
    Guessed,
    /// A trial booted a Linux guest.
    Tried,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "OUTER_PAGING asks for it",
            Self::Known => "known to be right for this version, see docs/test-bed.md",
            Self::Guessed => "right for versions near this one",
            Self::Tried => "a Linux guest was booted so to see",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            paging,
            reason,
            ..
        } = self;
        write!(f, "QEMU {version}, {paging} paging ({reason})")
    }
}

/// Why there is no QEMU to choose.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The executable is not there.
    #[error("no {}: fetch QEMU, as `make qemu` does, or name one with QEMU=", .0.display())]
    NoQemu(OsString),
    /// It cannot be run.
    #[error("cannot run {} --version: {source}", program.display())]
    Run {
        /// The executable.
        program: OsString,
        /// Why not.
        source: io::Error,
    },
    /// It does not say what it is.
    #[error("{} --version says {answer:?}, which is no QEMU's version", program.display())]
    Version {
        /// The executable.
        program: OsString,
        /// The first line of its answer.
        answer: String,
    },
    /// `OUTER_PAGING` has a value without a meaning.
    #[error("OUTER_PAGING={0}: nested or shadow")]
    UnknownPaging(String),
}

/// Chooses by the environment and by what QEMU says of itself.
pub fn choose() -> Result<Choice, ChoiceError> {
    let named = env::var_os("QEMU").filter(|name| !name.is_empty());
    let program = named.unwrap_or_else(|| {
        let fetched = assets::target_directory().join(FETCHED);
        if fetched.exists() {
            fetched.into()
        } else {
            INSTALLED.into()
        }
    });
    let asked = match env::var("OUTER_PAGING")
        .ok()
        .filter(|text| !text.is_empty())
    {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|()| ChoiceError::UnknownPaging(text))?,
        ),
    };
    let output = Command::new(&program).arg("--version").output();
    let output = output.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ChoiceError::NoQemu(program.clone()),
        _ => ChoiceError::Run {
            program: program.clone(),
            source,
        },
    })?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let answer = answer.lines().next().unwrap_or_default();
    let Some((version, numbers)) = parse(answer) else {
        return Err(ChoiceError::Version {
            program,
            answer: answer.to_owned(),
        });
    };
    let (paging, reason) = match asked {
        Some(paging) => (paging, Reason::Asked),
        None => by_version(numbers),
    };
    Ok(Choice {
        program,
        version: version.to_owned(),
        paging,
        reason,
    })
}

/// The version in the first line of `--version`, and its first two numbers.
fn parse(line: &str) -> Option<(&str, (u32, u32))> {
    let version = line.strip_prefix("QEMU emulator version ")?;
    let mut numbers = version.split(['.', ' ']).map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(major), Ok(minor)) => Some((version, (major, minor))),
        _ => None,
    }
}

/// The version that was tried at length and held, and how.
const KNOWN: ((u32, u32), Paging) = ((7, 2), Paging::Shadow);

fn by_version(version: (u32, u32)) -> (Paging, Reason) {
    match version {
        known if known == KNOWN.0 => (KNOWN.1, Reason::Known),
        old if old < (8, 0) => (Paging::Shadow, Reason::Guessed),
        _ => (Paging::Nested, Reason::Guessed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_and_its_packagers_write_them() {
        for (line, numbers) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b2)",
                (7, 2),
            ),
            (
                "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)",
                (10, 0),
            ),
            ("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)", (9, 1)),
            ("QEMU emulator version 8.2", (8, 2)),
        ] {
            assert_eq!(parse(line).map(|(_, numbers)| numbers), Some(numbers));
        }
        for line in [
            "",
            "QEMU emulator version",
            "QEMU emulator version x.y",
            "hello 7.2",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn what_was_not_tried_is_only_guessed() {
        let (shadow, nested) = (Paging::Shadow, Paging::Nested);
        assert_eq!(by_version((7, 2)), (shadow, Reason::Known));
        assert_eq!(by_version((10, 0)), (nested, Reason::Guessed));
        assert_eq!(by_version((6, 2)), (shadow, Reason::Guessed));
        assert_eq!(by_version((11, 0)), (nested, Reason::Guessed));
    }
}
