//! The command line.

use std::io;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use msr_filter::MsrRange;

use crate::cli::import::ImportArgs;
use crate::cli::models;
use crate::cli::sandbox::{SandboxArgs, SandboxCommand};
use crate::cli::trace::{DecodeArgs, LearnArgs, TraceCommand};
#[cfg(feature = "trace-tools")]
use crate::cli::trace::{ReportArgs, TopArgs};
use crate::config::{Config, ConfigError, MemorySize};
use crate::cpu::OnUnoffered;
use crate::devices::virtio::block::DiskConfig;
use crate::models::ModelName;
use msr_kvm::OnRefusal;

/// Boots Linux under KVM with MSR accesses answered in userspace.
///
/// Exit status: 0 when the guest switched itself off or rebooted, 1 for a fault of the guest or the host
/// or a VM that was stopped, 2 for a command line or a configuration that is wrong. A guest that ends by
/// --debug-exit gives its own.
#[derive(Debug, Parser)]
#[command(name = "msr-vmm", version)]
pub struct Cli {
    /// How much to say on standard error: off, error, warn, info, debug or trace.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    pub log: log::LevelFilter,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest.
    Run(Box<RunArgs>),
    /// Tell whether this host's KVM can do the job, and what is missing.
    Check {
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compile a filter and print the ranges KVM will get.
    Filter(FilterArgs),
    /// Tell who answers an MSR: the kernel, a device or #GP, and why.
    Explain(ExplainArgs),
    /// List the MSR device models and their keys.
    Devices {
        /// Only this model.
        model: Option<String>,
        /// Print them as JSON schemas.
        #[arg(long)]
        json: bool,
    },
    /// Print the CPU model that another program's file describes.
    Import(ImportArgs),
    /// Print what the bits of an MSR's value mean.
    Decode(DecodeArgs),
    /// Read and make traces of MSR accesses.
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Make the profile that allows what guests were recorded to use, and denies everything else.
    Learn(LearnArgs),
    /// Make one HTML page of a trace: what was accessed when, by whom, and the values of sensors.
    #[cfg(feature = "trace-tools")]
    Report(ReportArgs),
    /// Show what a guest accesses now, from a trace that is being written.
    #[cfg(feature = "trace-tools")]
    Top(TopArgs),
    /// Tell what the sandbox leaves a VM.
    Sandbox {
        /// What to do.
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages.
    Man {
        /// The folder to write them to.
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

/// What `msr-vmm run` takes. Everything but the outputs and the sandbox is also a key of the configuration file, and what is
/// given here wins.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Read a configuration file (TOML).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The CPU model that the configuration is laid over: the name of one that comes with the program, or a file [model].
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// The kernel: a bzImage, an ELF vmlinux or a Multiboot kernel [vm.kernel].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// The initrd, or a Multiboot kernel's module [vm.initrd].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// A disk, a raw image or a block device: PATH[,ro][,serial=TEXT]. Can be given several times;
    /// the guest has them as /dev/vda, /dev/vdb and so on [vm.disk].
    #[arg(long = "disk", value_name = "DISK", value_hint = ValueHint::FilePath)]
    pub disks: Vec<DiskConfig>,
    /// Give the guest a source of random numbers [vm.entropy].
    #[arg(long)]
    pub entropy: bool,
    /// The kernel's command line [vm.cmdline].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// How many vCPUs [vm.cpus].
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// How much memory: MiB, or with a unit such as 2G [vm.memory].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// An MSR filter to build on: linux-guest, kvm-pv-only, deny-writes, or a file [msr.profile].
    #[arg(long, value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    pub profile: Option<PathBuf>,
    /// Let the guest end with an exit status of its own: writing V to this I/O port gives (V << 1) | 1, as QEMU's
    /// isa-debug-exit does [vm.debug_exit].
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub debug_exit: Option<u16>,
    /// How many seconds a guest may take to switch itself off after SIGTERM or SIGHUP [vm.grace].
    #[arg(long, value_name = "SECONDS")]
    pub grace: Option<u32>,
    /// Boot no guest whose CPU this host's KVM cannot give in full: refuse features that it does not offer
    /// [cpu.unoffered] and initial values that it does not take [msr.initial.refused].
    #[arg(long)]
    pub strict: bool,
    /// At the end, print which MSRs reached userspace, how often, and who answered.
    #[arg(long)]
    pub msr_stats: bool,
    /// Record every MSR access that reaches userspace into this file; `msr-vmm trace show` reads it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// Record what KVM answers itself too, from its tracepoints. Needs root and tracefs; does not see what KVM lets
    /// the guest do without an exit.
    #[arg(long, requires = "trace")]
    pub trace_kernel: bool,
    /// Record what KVM answers itself too, by routing it through userspace: all that can be without changing the guest,
    /// or these MSRs, indices, names or ranges, whatever they are.
    #[arg(long, value_name = "MSRS", num_args = 0..=1, require_equals = true, value_delimiter = ',', requires = "trace",
          conflicts_with = "trace_kernel")]
    pub observe: Option<Vec<MsrRange>>,
    /// At the end, print where the time of the boot went. The guest's init takes part by writing a byte to I/O
    /// port 0x610.
    #[arg(long)]
    pub boot_timing: bool,
    /// Print the configuration that results from all of this, and boot nothing.
    #[arg(long)]
    pub print_config: bool,
    /// What is taken from the process before the guest runs.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// An I/O port, in hexadecimal with `0x` or in decimal.
fn port(text: &str) -> Result<u16, String> {
    let port = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    port.map_err(|_| "an I/O port is a number from 0 to 0xffff, such as 0xf4".to_owned())
}

impl RunArgs {
    /// The configuration file with what the command line says put over it.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let model = self.model.as_deref().map(ModelName::new);
        let mut config = Config::load(self.config.as_deref(), model.as_ref())?;
        let vm = &mut config.vm;
        if let Some(kernel) = &self.kernel {
            vm.kernel = Some(kernel.clone());
        }
        if let Some(initrd) = &self.initrd {
            vm.initrd = Some(initrd.clone());
        }
        if let Some(cmdline) = &self.cmdline {
            vm.cmdline.clone_from(cmdline);
        }
        if !self.disks.is_empty() {
            vm.disks.clone_from(&self.disks);
        }
        vm.entropy |= self.entropy;
        if let Some(cpus) = self.cpus {
            vm.cpus = cpus;
        }
        if let Some(memory) = self.memory {
            vm.memory = memory;
        }
        if let Some(profile) = &self.profile {
            config.msr.profile = Some(profile.clone());
        }
        if self.debug_exit.is_some() {
            vm.debug_exit = self.debug_exit;
        }
        if let Some(grace) = self.grace {
            vm.grace = grace;
        }
        if self.strict {
            config.cpu.unoffered = OnUnoffered::Refuse;
            for initial in &mut config.msr.initial {
                initial.refused = OnRefusal::Error;
            }
        }
        config.resolve(Path::new(""))?;
        Ok(config)
    }
}

/// What `msr-vmm filter` takes.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// A VM's configuration, or a profile: a filter alone.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Print what changes from that filter to this other one.
    #[arg(long, value_name = "OTHER", value_hint = ValueHint::FilePath)]
    pub diff: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `msr-vmm explain` takes.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The MSR, by index (0x611) or name (MSR_PKG_ENERGY_STATUS).
    #[arg(value_name = "MSR")]
    pub msr: String,
    /// The VM's configuration.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
}

/// A shell's completion script.
pub(crate) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let names = models()
        .iter()
        .map(|model| PossibleValue::new(model.name()));
    let names = PossibleValuesParser::new(names);
    let mut command = Cli::command().mut_subcommand("devices", |devices| {
        devices.mut_arg("model", |model| model.value_parser(names))
    });
    clap_complete::generate(shell, &mut command, "msr-vmm", &mut script);
    // The options' names and help are this program's own text.
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a man page for the command and one for each subcommand.
pub(crate) fn man(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
}
