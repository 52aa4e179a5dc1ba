//! The `msr-vmm` command.

mod args;
mod completions;
mod config;
mod ctl;
mod examples;
mod explain;
mod filter;
mod footprint;
mod import;
mod input;
mod logging;
mod man;
mod msr_log;
mod plan;
mod rule_warnings;
mod run;
mod sandbox;
mod session;
mod terminal;
pub mod trace;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use msr_bus::{DeviceModel, nearest};

use crate::config::LoadedConfig;
use crate::timing::{BootEvent, BootTiming};
use crate::vm::VmError;

pub use args::{Cli, Command};

use args::CheckArgs;

/// The exit status for a guest or host fault.
const FAULT: u8 = 1;
/// The exit status for a command line or a configuration that is wrong.
const USAGE: u8 = 2;

/// A command that failed: what to print, and the exit status.
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// The command line or the configuration is wrong.
    pub(crate) fn usage(error: impl ToString) -> Self {
        Self {
            status: USAGE,
            message: error.to_string(),
        }
    }

    /// The guest or the host failed.
    pub(crate) fn fault(error: impl ToString) -> Self {
        Self {
            status: FAULT,
            message: error.to_string(),
        }
    }

    /// A file cannot be written: the path is wrong, or the disk is full.
    pub(crate) fn cannot_write(path: &Path, error: &io::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::StorageFull => FAULT,
            _ => USAGE,
        };
        let message = format!("cannot write {}: {error}", path.display());
        Self { status, message }
    }

    /// A configuration cannot be carried out; the message says where in its file.
    pub(crate) fn of(error: &VmError, loaded: &LoadedConfig) -> Self {
        Self {
            status: if error.is_usage() { USAGE } else { FAULT },
            message: loaded.describe(error),
        }
    }
}

/// Prints what a command was asked for. A reader that has seen enough is no error; a full disk is.
pub(crate) fn print(text: &impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::fault(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    main_with([])
}

/// As [`main`], with device models of one's own beside those of `msr-bus`: in `run`, `explain`, `filter`, `devices`,
/// the configuration's reference and schema, man pages and completions alike. A model with a name that there is already takes its place.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// # mod mailbox { pub use msr_bus::devices::scratch::Scratch as Mailbox; }
/// fn main() -> ExitCode {
///     msr_vmm::cli::main_with([msr_bus::DeviceModel::of::<mailbox::Mailbox>()])
/// }
/// ```
pub fn main_with(own: impl IntoIterator<Item = DeviceModel>) -> ExitCode {
    let own: Vec<DeviceModel> = own.into_iter().collect();
    let mut models = DeviceModel::all().to_vec();
    models.retain(|model| own.iter().all(|own| own.name() != model.name()));
    models.extend(own);
    let models = &models[..];
    let timing = BootTiming::since_exec();
    timing.mark(BootEvent::Main);
    completions::answer(models);
    let cli = Cli::parse();
    logging::start(cli.log, cli.log_format);
    let outcome = match cli.command {
        Command::Run(args) => run::run(*args, timing, models),
        Command::Restore(args) => run::restore(&args, timing, models),
        Command::Ctl(args) => ctl::ctl(&args),
        Command::Check(args) => check(&args, models),
        Command::Filter(args) => filter::filter(&args, models),
        Command::Explain(args) => explain::explain(&args, models),
        Command::Devices { model, json } => devices(models, model.as_deref(), json),
        Command::Import(args) => import::import(&args, models),
        Command::Decode(args) => trace::decode(&args),
        Command::Trace(command) => trace::trace(&command),
        Command::Learn(args) => trace::learn(&args),
        #[cfg(feature = "trace-tools")]
        Command::Report(args) => trace::report(&args),
        #[cfg(feature = "trace-tools")]
        Command::Top(args) => trace::top(&args),
        Command::Sandbox { command } => sandbox::command(&command, models),
        Command::Completions { shell } => completions::print(shell),
        Command::Config(args) => config::config(&args, models),
        Command::Man { folder } => man::write(&folder, models),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            logging::last_words(cli.log_format, &message);
            ExitCode::from(status)
        }
    }
}

/// Prints what this host's KVM can do. Status 0 where it boots Linux.
fn check(args: &CheckArgs, models: &[DeviceModel]) -> Result<(), Failure> {
    // What a configuration has wrong is wrong whatever the host can do.
    let mut of_config = Vec::new();
    if args.source.is_given() {
        let loaded = args.source.load()?;
        let plan = plan::plan(&loaded, models)?;
        of_config = plan::warnings(&plan, plan::vendor(&loaded));
    }
    let report = msr_kvm::check::probe();
    let (missing, mut warnings) = (report.missing_for_linux(), report.warnings());
    if args.json {
        warnings.extend(of_config);
        let report = serde_json::json!({
            "micro_guests": report.can_run_micro_guests(),
            "linux": report.can_boot_linux(),
            "missing": missing,
            "warnings": warnings,
        });
        print(&format!("{report}\n"))?;
    } else {
        print(&report)?;
        for warning in of_config {
            print(&format!("warning: {warning}\n"))?;
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Failure::fault("this host's KVM cannot boot Linux"))
    }
}

/// Prints the device models and their keys.
fn devices(all: &[DeviceModel], model: Option<&str>, json: bool) -> Result<(), Failure> {
    let chosen: Vec<&DeviceModel> = all
        .iter()
        .filter(|m| model.is_none_or(|name| m.name() == name))
        .collect();
    if let (Some(name), []) = (model, chosen.as_slice()) {
        let names: Vec<&str> = all.iter().map(DeviceModel::name).collect();
        let advice = match nearest(name, names.iter().copied()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        return Err(Failure::usage(format!(
            "there is no device type `{name}`; {advice}"
        )));
    }
    if json {
        return print(&format!("{}\n", serde_json::json!(chosen)));
    }
    let texts: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    print(&texts.join("\n"))
}
