//! Which files the process may open, by Landlock (Documentation/userspace-api/landlock.rst).

use std::error::Error;
use std::path::PathBuf;
use std::{fmt, io, iter};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use nix::errno::Errno;

use crate::config::Config;

/// How a file may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// Read; in a folder, any file in it.
    Read,
    /// Read and written, with the ioctls of a device; in a folder, any file in it.
    ReadWrite,
    /// A folder in which files are made, replaced and removed.
    Create,
}

/// A file, or a folder with what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRule {
    /// Where.
    pub path: PathBuf,
    /// How.
    pub access: FileAccess,
}

impl fmt::Display for FileRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            FileAccess::Read => "read",
            FileAccess::ReadWrite => "read, write",
            FileAccess::Create => "read, write, create, remove",
        };
        write!(f, "{}: {access}", self.path.display())
    }
}

/// The newest rights that the rules know of; a kernel that knows fewer restricts fewer.
const NEWEST: ABI = ABI::V5;

impl FileAccess {
    fn rights(self, is_folder: bool) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
        let rights = match self {
            Self::Read => read,
            Self::ReadWrite => read | write,
            Self::Create => {
                let make = AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::MakeDir;
                let remove = AccessFs::RemoveFile | AccessFs::RemoveDir | AccessFs::Refer;
                read | write | make | remove
            }
        };
        if is_folder {
            rights
        } else {
            rights & AccessFs::from_file(NEWEST)
        }
    }
}

/// The files that a VM of this configuration needs.
pub(super) fn of(config: &Config) -> Vec<FileRule> {
    let rule = |path: PathBuf, access| FileRule { path, access };
    let mut rules = vec![rule("/dev/kvm".into(), FileAccess::ReadWrite)];
    let images = [&config.vm.kernel, &config.vm.initrd, &config.msr.profile];
    for path in images.into_iter().flatten() {
        rules.push(rule(path.clone(), FileAccess::Read));
    }
    for disk in &config.vm.disks {
        let access = if disk.readonly {
            FileAccess::Read
        } else {
            FileAccess::ReadWrite
        };
        rules.push(rule(disk.path.clone(), access));
    }
    let has = |name| config.msr.devices.iter().any(|device| device.model == name);
    if has("passthrough") {
        rules.push(rule("/dev/cpu".into(), FileAccess::ReadWrite));
    }
    if has("passthrough") || has("rapl") {
        rules.push(rule("/sys".into(), FileAccess::Read));
    }
    // Where the host's sensors are looked for.
    let sensors = config.msr.devices.iter().filter_map(|device| {
        let key = match device.model.as_str() {
            "thermal" => "hwmon",
            "rapl" => "powercap",
            _ => return None,
        };
        device.keys.get(key).and_then(toml::Value::as_str)
    });
    rules.extend(sensors.map(|path| rule(path.into(), FileAccess::Read)));
    if config.vm.huge_pages {
        rules.push(rule("/sys/kernel/mm/hugepages".into(), FileAccess::Read));
    }
    rules
}

/// Restricts the calling thread, and those that it starts, to these files, and to no TCP at all. Gives what is not in force,
/// and why, where the kernel or a container does not offer it.
///
/// # Errors
///
/// What else the kernel said.
pub(super) fn restrict(rules: &[FileRule]) -> io::Result<Option<String>> {
    match try_restrict(rules) {
        Ok(RulesetStatus::NotEnforced) => Ok(Some(
            "files are not restricted: the kernel has no Landlock, or it is switched off".into(),
        )),
        // Older kernels restrict fewer kinds of access, and reading, writing and creating are among them always.
        Ok(RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced) => Ok(None),
        Err(error) => match kernels_word(&error) {
            Some(word) if !is_not_offered(word) => Err(io::Error::from(word)),
            _ => Ok(Some(format!("files are not restricted: {error}"))),
        },
    }
}

/// Whether an error says that there is no such system call, or that a container's own filter forbids it.
pub(super) fn is_not_offered(error: Errno) -> bool {
    matches!(
        error,
        Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPERM
    )
}

/// What the kernel said, under what the library says of it.
fn kernels_word(error: &RulesetError) -> Option<Errno> {
    let causes = iter::successors(Some(error as &dyn Error), |&error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find_map(io::Error::raw_os_error)
        .map(Errno::from_raw)
}

fn try_restrict(rules: &[FileRule]) -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let mut ruleset = ruleset
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()?;
    for FileRule { path, access } in rules {
        // What is not there cannot be opened: whoever needs it says so, with the right words.
        if let Ok(file) = PathFd::new(path) {
            let rights = access.rights(path.is_dir());
            ruleset = ruleset.add_rule(PathBeneath::new(file, rights))?;
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}
