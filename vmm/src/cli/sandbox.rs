//! The sandbox's options, and `msr-vmm sandbox show`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use msr_bus::DeviceModel;

use crate::cli::args::{RestoreArgs, RunArgs};
use crate::cli::{Failure, print, terminal};
use crate::config::Config;
use crate::sandbox::{FileAccess, Sandbox, ThreadFilters, User, report_violations};

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    #[default]
    On,
    /// Off.
    Off,
}

/// What is taken from the process before the guest runs. None of it is part of the machine, so none is a key of the
/// configuration file.
#[derive(Debug, Default, Args)]
pub struct SandboxArgs {
    /// Confine the process to what this VM needs, which `msr-vmm sandbox show` prints. Off, a guest that breaks out of the
    /// VMM can do what this user can.
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub sandbox: Switch,
    /// Run the guest as this user and group, given as numbers.
    #[arg(long, value_name = "UID:GID")]
    pub user: Option<User>,
    /// Make this folder the process's root once everything is open.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub chroot: Option<PathBuf>,
    /// Give the process a network namespace with nothing in it.
    #[arg(long)]
    pub netns: bool,
    /// Let `msr-vmm ctl PATH snapshot` save the VM in this folder; without it, the sandbox lets it make no files.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, conflicts_with = "chroot")]
    pub snapshots: Option<PathBuf>,
}

/// What `msr-vmm sandbox` does.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Print what each thread may do in a VM of this configuration.
    Show(Box<RunArgs>),
}

impl SandboxArgs {
    /// The sandbox, unless it is off.
    fn of(&self, config: &Config, models: &[DeviceModel]) -> Result<Option<Sandbox>, Failure> {
        if self.sandbox == Switch::Off {
            if self.user.is_some()
                || self.chroot.is_some()
                || self.netns
                || self.snapshots.is_some()
            {
                return Err(Failure::usage(
                    "--user, --chroot, --netns and --snapshots are parts of the sandbox: leave out --sandbox=off",
                ));
            }
            return Ok(None);
        }
        let mut sandbox = Sandbox::new(config, models)
            .chroot(self.chroot.clone())
            .user(self.user)
            .network_namespace(self.netns);
        if let Some(folder) = &self.snapshots {
            sandbox = sandbox.snapshots(folder);
        }
        Ok(Some(sandbox))
    }

    /// The folder for snapshots by the name that it has whatever the process's own folder is.
    fn snapshot_folder(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(folder) = &self.snapshots else {
            return Ok(None);
        };
        let wrong = |what: String| {
            Failure::usage(format!(
                "--snapshots {}: {what}; name a folder that exists",
                folder.display()
            ))
        };
        let absolute = folder
            .canonicalize()
            .map_err(|error| wrong(error.to_string()))?;
        if absolute.is_dir() {
            Ok(Some(absolute))
        } else {
            Err(wrong("it is no folder".to_owned()))
        }
    }

    /// Confines the process to this sandbox, before the guest's files are opened.
    fn confine(&self, sandbox: Option<Sandbox>) -> Result<Confined, Failure> {
        let Some(sandbox) = sandbox else {
            log::warn!(
                "the sandbox is off: a guest that breaks out of the VMM can do what this user can"
            );
            return Ok(Confined::not());
        };
        let snapshots = self.snapshot_folder()?;
        report_violations(terminal::restore).map_err(Failure::fault)?;
        let confinement = sandbox.confine().map_err(Failure::fault)?;
        for missing in confinement.missing {
            log::warn!("sandbox: {missing}");
        }
        let filters = sandbox.thread_filters().map_err(Failure::fault)?;
        Ok(Confined {
            sandbox: Some(sandbox),
            snapshots,
            filters,
        })
    }
}

impl RestoreArgs {
    /// Confines the process to what a VM of this configuration needs when it is restored: the snapshot and the disks, and no kernel.
    pub(crate) fn confine(
        &self,
        config: &Config,
        models: &[DeviceModel],
    ) -> Result<Confined, Failure> {
        let mut config = config.clone();
        (config.vm.kernel, config.vm.initrd) = (None, None);
        if !self.disks.is_empty() {
            config.vm.disks.clone_from(&self.disks);
        }
        let sandbox = self.sandbox.of(&config, models)?;
        let mut sandbox = sandbox.map(|sandbox| sandbox.file(&self.folder, FileAccess::Read));
        if self.control.is_some() {
            sandbox = sandbox.map(Sandbox::control_socket);
        }
        self.sandbox.confine(sandbox)
    }
}

impl RunArgs {
    /// The sandbox, unless it is off: with what the outputs need that the configuration does not name.
    fn sandboxed(
        &self,
        config: &Config,
        models: &[DeviceModel],
    ) -> Result<Option<Sandbox>, Failure> {
        let mut sandbox = self.sandbox.of(config, models)?;
        // Scenarios do what clients of the socket can have done.
        if self.control.is_some() || !config.msr.scenarios.is_empty() {
            sandbox = sandbox.map(Sandbox::control_socket);
        }
        let mut files = Vec::new();
        if self.trace.is_some() {
            // Its header says what the host is. The trace itself is open before the process is confined.
            files.extend([
                ("/proc/cpuinfo", FileAccess::Read),
                ("/proc/sys/kernel/osrelease", FileAccess::Read),
            ]);
        }
        if self.trace_kernel {
            files.extend([
                ("/sys/kernel/tracing", FileAccess::Create),
                ("/sys/kernel/debug/tracing", FileAccess::Create),
                ("/proc/mounts", FileAccess::Read),
            ]);
        }
        for (path, access) in files {
            sandbox = sandbox.map(|sandbox| sandbox.file(path, access));
        }
        Ok(sandbox)
    }

    /// Confines the process, before the guest's files are opened.
    pub(crate) fn confine(
        &self,
        config: &Config,
        models: &[DeviceModel],
    ) -> Result<Confined, Failure> {
        self.sandbox.confine(self.sandboxed(config, models)?)
    }
}

/// A process that is confined as far as it can be before the VM is built.
pub(crate) struct Confined {
    sandbox: Option<Sandbox>,
    /// Where snapshots can be made although the process is confined.
    pub(crate) snapshots: Option<PathBuf>,
    /// For the VM's threads, and for the main thread once the VM runs.
    pub(crate) filters: ThreadFilters,
}

impl Confined {
    /// A process that is not confined.
    pub(crate) fn not() -> Self {
        Self {
            sandbox: None,
            snapshots: None,
            filters: ThreadFilters::default(),
        }
    }

    /// Whether the sandbox is on.
    pub(crate) fn is_confined(&self) -> bool {
        self.sandbox.is_some()
    }

    /// Everything is open.
    pub(crate) fn leave_host(&self) -> Result<(), Failure> {
        let sandbox = self.sandbox.as_ref();
        sandbox.map_or(Ok(()), |sandbox| {
            sandbox.leave_host().map_err(Failure::fault)
        })
    }
}

pub(crate) fn command(command: &SandboxCommand, models: &[DeviceModel]) -> Result<(), Failure> {
    let SandboxCommand::Show(args) = command;
    let config = args.load()?.config;
    match args.sandboxed(&config, models)? {
        Some(sandbox) => print(&sandbox),
        None => {
            print(&"the sandbox is off (--sandbox=off): each thread may do what its user can\n")
        }
    }
}
