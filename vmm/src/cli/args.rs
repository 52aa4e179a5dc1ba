//! The command line.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint, value_parser};
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use msr_filter::MsrRange;

use crate::cli::completions::{Shell, candidates};
use crate::cli::config::ConfigCommandArgs;
use crate::cli::ctl::CtlArgs;
use crate::cli::import::ImportArgs;
use crate::cli::logging::LogFormat;
use crate::cli::sandbox::{SandboxArgs, SandboxCommand};
use crate::cli::trace::{DecodeArgs, LearnArgs, TraceCommand};
#[cfg(feature = "trace-tools")]
use crate::cli::trace::{ReportArgs, TopArgs};
use crate::cli::{Failure, examples};
use crate::config::{LoadedConfig, MAX_CPUS, MIN_MEMORY, MemorySize, ParseMemorySizeError};
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
#[command(name = "msr-vmm", version, after_long_help = examples::help("msr-vmm"))]
pub struct Cli {
    /// How much to say on standard error. With trace, `run` says each MSR access that reaches userspace.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = log_level())]
    pub log: log::LevelFilter,
    /// How to write what is said on standard error.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest.
    #[command(after_long_help = examples::help("run"))]
    Run(Box<RunArgs>),
    /// Carry on the VM of a snapshot, which `msr-vmm ctl PATH snapshot` made.
    #[command(after_long_help = examples::help("restore"))]
    Restore(RestoreArgs),
    /// Tell whether this host's KVM can do the job, and what is missing.
    #[command(after_long_help = examples::help("check"))]
    Check(CheckArgs),
    /// Compile a filter and print the ranges KVM will get.
    #[command(after_long_help = examples::help("filter"))]
    Filter(FilterArgs),
    /// Tell who answers an MSR: the kernel, a device or #GP, and why.
    #[command(after_long_help = examples::help("explain"))]
    Explain(ExplainArgs),
    /// List the MSR device models and their keys.
    #[command(after_long_help = examples::help("devices"))]
    Devices {
        /// Only this model.
        #[arg(add = ArgValueCandidates::new(candidates::devices))]
        model: Option<String>,
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Steer a running VM through its control socket.
    #[command(after_long_help = examples::help("ctl"))]
    Ctl(CtlArgs),
    /// Print the reference of configuration files: their keys, types, defaults and units.
    #[command(after_long_help = examples::help("config"))]
    Config(ConfigCommandArgs),
    /// Print the CPU model that another program's file describes.
    #[command(after_long_help = examples::help("import"))]
    Import(ImportArgs),
    /// Print what the bits of an MSR's value mean.
    #[command(after_long_help = examples::help("decode"))]
    Decode(DecodeArgs),
    /// Read and make traces of MSR accesses.
    #[command(subcommand)]
    #[command(after_long_help = examples::help("trace"))]
    Trace(TraceCommand),
    /// Make the profile that allows what guests were recorded to use, and denies everything else.
    #[command(after_long_help = examples::help("learn"))]
    Learn(LearnArgs),
    /// Make one HTML page of a trace: what was accessed when, by whom, and the values of sensors.
    #[cfg(feature = "trace-tools")]
    #[command(after_long_help = examples::help("report"))]
    Report(ReportArgs),
    /// Show what a guest accesses now, from a trace that is being written.
    #[cfg(feature = "trace-tools")]
    #[command(after_long_help = examples::help("top"))]
    Top(TopArgs),
    /// Tell what the sandbox leaves a VM.
    #[command(after_long_help = examples::help("sandbox"))]
    Sandbox {
        /// What to do.
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Print what a shell needs to complete this command: options, files, and the names of MSRs, CPU models, profiles and
    /// device models.
    #[command(after_long_help = examples::help("completions"))]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the man pages: one for each command, and msr-vmm.toml(5).
    #[command(after_long_help = examples::help("man"))]
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
    /// Where the configuration is from.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// The kernel: a bzImage, an ELF vmlinux or a Multiboot kernel [vm.kernel].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Let the kernel, a bzImage, unpack itself, which takes longer, and move to random addresses (KASLR) [vm.kaslr].
    #[arg(long)]
    pub kaslr: bool,
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
    /// How many vCPUs, from 1 to 128 [vm.cpus].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MAX_CPUS as i64))]
    pub cpus: Option<u32>,
    /// How much memory: MiB, or with a unit such as 2G; at least 2M [vm.memory].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<MemorySize>,
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
    /// Serve a control socket there, for `msr-vmm ctl` and other programs (docs/control-socket.md).
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub control: Option<PathBuf>,
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
    pub(crate) fn load(&self) -> Result<LoadedConfig, Failure> {
        if self.source.profile.as_deref() == Some(Path::new("-")) {
            return Err(Failure::usage(
                "--profile -: standard input is the guest's console; name a file, or a profile that comes with msr-vmm",
            ));
        }
        let mut loaded = self.source.load()?;
        let config = &mut loaded.config;
        let vm = &mut config.vm;
        if let Some(kernel) = &self.kernel {
            vm.kernel = Some(kernel.clone());
        }
        vm.kaslr |= self.kaslr;
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
        config.resolve(Path::new("")).map_err(Failure::usage)?;
        Ok(loaded)
    }
}

/// The levels of the log by name.
fn log_level() -> impl TypedValueParser<Value = log::LevelFilter> {
    let names = ["off", "error", "warn", "info", "debug", "trace"];
    PossibleValuesParser::new(names).try_map(|name| name.parse::<log::LevelFilter>())
}

/// An amount of memory that a machine can have.
fn memory(text: &str) -> Result<MemorySize, String> {
    let size: MemorySize = text
        .parse()
        .map_err(|error: ParseMemorySizeError| error.to_string())?;
    if size.0 < MIN_MEMORY.0 {
        return Err(format!("a guest needs at least {MIN_MEMORY}"));
    }
    Ok(size)
}

/// What a configuration is made of, for every command that takes one.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Read a configuration file (TOML; see `msr-vmm config`); - reads standard input.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The CPU model that the configuration is laid over: the name of one that comes with the program, or a file [model].
    #[arg(long, value_name = "NAME|FILE", value_hint = ValueHint::FilePath, add = ArgValueCompleter::new(candidates::cpu_models))]
    pub model: Option<String>,
    /// An MSR filter to build on: linux-guest, kvm-pv-only, deny-writes, or a file [msr.profile].
    #[arg(long, value_name = "NAME|FILE", value_hint = ValueHint::FilePath, add = ArgValueCompleter::new(candidates::profiles))]
    pub profile: Option<PathBuf>,
}

impl ConfigArgs {
    /// Whether there is anything but the defaults.
    pub(crate) fn is_given(&self) -> bool {
        self.config.is_some() || self.model.is_some() || self.profile.is_some()
    }

    /// The configuration file, over the model and with the profile that the command line names.
    pub(crate) fn load(&self) -> Result<LoadedConfig, Failure> {
        let model = self.model.as_deref().map(ModelName::new);
        let mut loaded =
            LoadedConfig::load(self.config.as_deref(), model.as_ref()).map_err(Failure::usage)?;
        if let Some(profile) = &self.profile {
            loaded.config.msr.profile = Some(profile.clone());
        }
        Ok(loaded)
    }
}

/// What `msr-vmm check` takes.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A configuration to check as well.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `msr-vmm restore` takes.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot.
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub folder: PathBuf,
    /// A disk in place of the snapshot's: PATH[,ro][,serial=TEXT], a copy of the image as it was. Give all of them, in
    /// their order, or none.
    #[arg(long = "disk", value_name = "DISK", value_hint = ValueHint::FilePath)]
    pub disks: Vec<DiskConfig>,
    /// Use the disks although they were written to since. The guest's file systems may be damaged.
    #[arg(long)]
    pub changed_disks: bool,
    /// First read all of the memory and compare it with the checksums that it was saved with. Without this it is read as the
    /// guest touches it, and damage is the guest's to find.
    #[arg(long)]
    pub verify: bool,
    /// Serve a control socket there.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub control: Option<PathBuf>,
    /// At the end, print which MSRs reached userspace, how often, and who answered.
    #[arg(long)]
    pub msr_stats: bool,
    /// At the end, print where the time of the start went.
    #[arg(long)]
    pub boot_timing: bool,
    /// What is taken from the process before the guest runs.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// What `msr-vmm filter` takes.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// A VM's configuration, or a profile: a filter alone; - reads standard input.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present_any = ["config", "model", "profile"])]
    pub file: Option<PathBuf>,
    /// Where the configuration is from, in place of FILE.
    #[command(flatten)]
    pub source: ConfigArgs,
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
    #[arg(value_name = "MSR", add = ArgValueCandidates::new(candidates::msrs))]
    pub msr: String,
    /// Where the configuration is from.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
