//! What the process may still do while a guest runs, taken from it so that a guest that breaks out of a device model
//! finds little.
//!
//! A program opts in: nothing here is applied unasked. `msr-vmm run` and `restore` apply all of it unless told `--sandbox=off`.
//!
//! | When | What | Where |
//! |---|---|---|
//! | before a file of the guest is opened | no new privileges; resource limits; a network namespace where asked for; Landlock: the files that the configuration names and no others, no TCP | [`Sandbox::confine`] |
//! | when everything is open | the root folder and the user, where asked for | [`Sandbox::leave_host`] |
//! | on each of the VM's threads, when the guest starts | no capabilities; a seccomp filter with the system calls of its [`Role`], each ioctl by its request number | [`ThreadFilters::enter`] |
//!
//! What a thread may do depends on the configuration: only one with a `forward` device that forwards writes gives vCPU
//! threads `KVM_SET_MSRS`, only one with a writable disk gives its thread `pwritev`. [`ThreadPolicy`] is that as data,
//! for `msr-vmm sandbox show`.
//!
//! A system call that a thread's filter lacks is not executed: the process ends, and the last line on standard error
//! names the thread and the system call ([`report_violations`]).
//!
//! Where the kernel lacks Landlock or seccomp, or a container forbids them, the rest is applied, and what is missing is
//! in the [`Confinement`] that `confine` returns. Left out: `/proc` and user namespaces (a jailer's work), and threads
//! that are not the VMM's own, such as those a library user starts.

mod files;
mod filter;
mod ioctls;
mod policy;
mod privileges;
mod violation;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;

use msr_bus::DeviceModel;

use crate::config::Config;

pub use files::{FileAccess, FileRule};
pub use filter::ThreadFilters;
pub use policy::{Allowed, Condition, Role, ThreadPolicy};
pub use privileges::{ParseUserError, User};
pub use violation::report_violations;

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel refused one of the steps.
    #[error("sandbox: {what}: {source}; --sandbox=off runs the guest without it")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The root folder cannot be changed.
    #[error("sandbox: cannot make {} the root folder: {source}", path.display())]
    Chroot {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The user cannot be changed.
    #[error("sandbox: cannot become user {user}: {source}")]
    User {
        /// The user.
        user: User,
        /// What the kernel said.
        source: io::Error,
    },
    /// A filter cannot be made.
    #[error("sandbox: the filter of the {role} threads cannot be made: {message}")]
    Filter {
        /// Whose filter.
        role: Role,
        /// What is wrong.
        message: String,
    },
}

impl SandboxError {
    fn refused(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Refused { what, source }
    }
}

/// The sandbox of one VM.
#[derive(Clone, Debug)]
pub struct Sandbox {
    files: Vec<FileRule>,
    policies: Vec<ThreadPolicy>,
    chroot: Option<PathBuf>,
    user: Option<User>,
    network_namespace: bool,
}

/// What of the sandbox is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// What could not be had, and why, for people.
    pub missing: Vec<String>,
}

impl Sandbox {
    /// The sandbox for a VM of this configuration, whose devices are of these models.
    pub fn new(config: &Config, models: &[DeviceModel]) -> Self {
        Self {
            files: files::of(config),
            policies: Role::ALL
                .map(|role| policy::of(role, config, models))
                .into(),
            chroot: None,
            user: None,
            network_namespace: false,
        }
    }

    /// Lets the process use one more file, or what is in a folder: an output that the configuration does not name.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, access: FileAccess) -> Self {
        self.files.push(FileRule {
            path: path.into(),
            access,
        });
        self
    }

    /// Lets the main thread serve a control socket that is open already, and vCPU threads carry out what its clients ask
    /// for, which may be any write to an MSR. Files cannot be made, so there are no snapshots unless [`snapshots`](Self::snapshots)
    /// says where.
    #[must_use]
    pub fn control_socket(mut self) -> Self {
        self.policies
            .iter_mut()
            .for_each(ThreadPolicy::serve_control_socket);
        self
    }

    /// Lets the main thread make snapshots in `folder`: make, write, rename and remove files there, by Landlock. Without Landlock it can open
    /// any file that the user can.
    #[must_use]
    pub fn snapshots(mut self, folder: impl Into<PathBuf>) -> Self {
        self.policies
            .iter_mut()
            .for_each(ThreadPolicy::save_snapshots);
        // Says which of the guest's memory is in use.
        self.file("/proc/self/pagemap", FileAccess::Read)
            .file(folder, FileAccess::Create)
    }

    /// Makes `folder` the process's root once everything is open.
    #[must_use]
    pub fn chroot(mut self, folder: Option<PathBuf>) -> Self {
        self.chroot = folder;
        self
    }

    /// Runs the guest as this user, once everything is open.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Gives the process a network namespace with nothing in it.
    #[must_use]
    pub fn network_namespace(mut self, own: bool) -> Self {
        self.network_namespace = own;
        self
    }

    /// What the threads of each role may do.
    pub fn policies(&self) -> &[ThreadPolicy] {
        &self.policies
    }

    /// The files that may be opened, and how.
    pub fn files(&self) -> &[FileRule] {
        &self.files
    }

    /// Confines the calling thread and those it starts from now on: belongs before the first thread, and before the
    /// guest's files are opened.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Refused`]. What the kernel or a container does not offer is no error, but said in the result.
    pub fn confine(&self) -> Result<Confinement, SandboxError> {
        let mut confinement = Confinement::default();
        privileges::no_new_privileges().map_err(SandboxError::refused("PR_SET_NO_NEW_PRIVS"))?;
        privileges::limit_resources().map_err(SandboxError::refused("setrlimit"))?;
        if self.network_namespace {
            privileges::leave_network()
                .map_err(SandboxError::refused("--netns: unshare(CLONE_NEWNET)"))?;
        }
        let unrestricted =
            files::restrict(&self.files).map_err(SandboxError::refused("Landlock"))?;
        confinement.missing.extend(unrestricted);
        if let Err(error) = filter::probe() {
            if !files::is_not_offered(error) {
                return Err(SandboxError::refused("seccomp")(error.into()));
            }
            let missing = format!("no system-call filters: the kernel has no seccomp: {error}");
            confinement.missing.push(missing);
        }
        Ok(confinement)
    }

    /// Changes the root folder and the user, where asked for. Belongs between [`build`](crate::VmBuilder::build) and
    /// [`start`](crate::Vm::start): everything is open then, and no thread is filtered yet.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Chroot`] and [`SandboxError::User`].
    pub fn leave_host(&self) -> Result<(), SandboxError> {
        if let Some(path) = &self.chroot {
            privileges::change_root(path).map_err(|source| SandboxError::Chroot {
                path: path.clone(),
                source,
            })?;
        }
        if let Some(user) = self.user {
            privileges::become_user(user).map_err(|source| SandboxError::User { user, source })?;
        }
        Ok(())
    }

    /// The C library's allocator is told to keep to what needs no files, for the whole process: threads that start later share one arena of the
    /// GNU C library's.
    ///
    /// The filters for [`VmBuilder::thread_filters`](crate::VmBuilder::thread_filters), compiled. Where the kernel has no
    /// seccomp they drop the threads' capabilities only.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Filter`].
    pub fn thread_filters(&self) -> Result<ThreadFilters, SandboxError> {
        ThreadFilters::new(&self.policies)
    }
}

impl fmt::Display for Sandbox {
    /// What is allowed, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "files (Landlock):")?;
        for rule in &self.files {
            writeln!(f, "  {rule}")?;
        }
        writeln!(f, "\nprocess:")?;
        writeln!(f, "  no new privileges, no capabilities")?;
        writeln!(f, "  at most {} open files", privileges::MOST_FILES)?;
        if self.network_namespace {
            writeln!(f, "  a network namespace of its own")?;
        }
        if let Some(path) = &self.chroot {
            writeln!(f, "  root folder {}", path.display())?;
        }
        if let Some(user) = self.user {
            writeln!(f, "  user {user}")?;
        }
        self.policies
            .iter()
            .try_for_each(|policy| write!(f, "\n{policy}"))
    }
}
