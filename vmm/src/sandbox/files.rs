//! Which files the process may open, by Landlock (Documentation/userspace-api/landlock.rst).

use std::fmt;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};

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
    if has("passthrough") || has("rapl") || has("thermal") {
        rules.push(rule("/sys".into(), FileAccess::Read));
    }
    if config.vm.huge_pages {
        rules.push(rule("/sys/kernel/mm/hugepages".into(), FileAccess::Read));
    }
    rules
}

/// Restricts the calling thread, and those that it starts, to these files, and to no TCP at all.
///
/// # Errors
///
/// What is not in force, and why.
pub(super) fn restrict(rules: &[FileRule]) -> Result<(), String> {
    let status =
        try_restrict(rules).map_err(|error| format!("files are not restricted: {error}"))?;
    match status {
        RulesetStatus::NotEnforced => Err(
            "files are not restricted: the kernel has no Landlock, or it is switched off".into(),
        ),
        // Older kernels restrict fewer kinds of access, and reading, writing and creating are among them always.
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn try_restrict(rules: &[FileRule]) -> Result<RulesetStatus, landlock::RulesetError> {
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
