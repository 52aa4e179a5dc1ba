//! The sandbox's options, and `msr-vmm sandbox show`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use msr_bus::DeviceModel;

use crate::cli::args::RunArgs;
use crate::cli::{Failure, print, terminal};
use crate::config::Config;
use crate::sandbox::{FileAccess, Sandbox, ThreadFilters, User, report_violations};

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    #[default]
    Off,
}

/// What is taken from the process before the guest runs. None of it is part of the machine, so none is a key of the
/// configuration file.
#[derive(Debug, Default, Args)]
pub struct SandboxArgs {
    /// Confine the process to what this VM needs: `msr-vmm sandbox show --sandbox=on` prints that.
    #[arg(long, value_name = "on|off", default_value = "off")]
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
            if self.user.is_some() || self.chroot.is_some() || self.netns {
                return Err(Failure::usage(
                    "--user, --chroot and --netns are parts of the sandbox: they need --sandbox=on",
                ));
            }
            return Ok(None);
        }
        let sandbox = Sandbox::new(config, models)
            .chroot(self.chroot.clone())
            .user(self.user)
            .network_namespace(self.netns);
        Ok(Some(sandbox))
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
        let Some(sandbox) = self.sandboxed(config, models)? else {
            return Ok(Confined::not());
        };
        report_violations(terminal::restore).map_err(Failure::fault)?;
        let confinement = sandbox.confine().map_err(Failure::fault)?;
        for missing in confinement.missing {
            log::warn!("sandbox: {missing}");
        }
        let filters = sandbox.thread_filters().map_err(Failure::fault)?;
        Ok(Confined {
            sandbox: Some(sandbox),
            filters,
        })
    }
}

/// A process that is confined as far as it can be before the VM is built.
pub(crate) struct Confined {
    sandbox: Option<Sandbox>,
    /// For the VM's threads, and for the main thread once the VM runs.
    pub(crate) filters: ThreadFilters,
}

impl Confined {
    /// A process that is not confined.
    pub(crate) fn not() -> Self {
        Self {
            sandbox: None,
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
        None => print(&"the sandbox is off: --sandbox=on says what it would be\n"),
    }
}
