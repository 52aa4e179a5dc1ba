//! The `msr-vmm` command.

mod args;
mod explain;
mod filter;
mod import;
mod input;
mod run;
mod sandbox;
mod session;
mod terminal;
pub mod trace;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Parser;
use msr_bus::DeviceModel;

use crate::timing::{BootEvent, BootTiming};

pub use args::{Cli, Command};

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

    /// What is wrong is in this file's MSR part, which the message does not say yet.
    pub(crate) fn in_config(mut self, path: &Path) -> Self {
        self.message = format!("config {}: {}", path.display(), self.message);
        self
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

/// The device models of this command: those that come with `msr-bus`, and its own.
static MODELS: OnceLock<Vec<DeviceModel>> = OnceLock::new();

/// The device models that a configuration can ask for.
pub(crate) fn models() -> &'static [DeviceModel] {
    MODELS.get_or_init(|| DeviceModel::all().to_vec())
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    main_with([])
}

/// As [`main`], with device models of one's own beside those of `msr-bus`: in `run`, `explain`, `filter`, `devices`, CPU
/// models and completions alike. A model with a name that there is already takes its place.
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
    // A process has one command line, so this is the first call.
    let _ = MODELS.set(models);
    let timing = BootTiming::since_exec();
    timing.mark(BootEvent::Main);
    let cli = Cli::parse();
    env_logger::Builder::new()
        .filter_level(cli.log)
        .format_timestamp_millis()
        .format_target(false)
        .init();
    let outcome = match cli.command {
        Command::Run(args) => run::run(*args, timing),
        Command::Check { json } => check(json),
        Command::Filter(args) => filter::filter(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Devices { model, json } => devices(model.as_deref(), json),
        Command::Import(args) => import::import(&args),
        Command::Decode(args) => trace::decode(&args),
        Command::Trace(command) => trace::trace(&command),
        Command::Learn(args) => trace::learn(&args),
        #[cfg(feature = "trace-tools")]
        Command::Report(args) => trace::report(&args),
        #[cfg(feature = "trace-tools")]
        Command::Top(args) => trace::top(&args),
        Command::Sandbox { command } => sandbox::command(&command),
        Command::Completions { shell } => print(&args::completions(shell)),
        Command::Man { folder } => args::man(&folder).map_err(Failure::fault),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            // The status tells it where standard error cannot.
            let _ = writeln!(io::stderr(), "msr-vmm: {message}");
            ExitCode::from(status)
        }
    }
}

/// Prints what this host's KVM can do. Status 0 where it boots Linux.
fn check(json: bool) -> Result<(), Failure> {
    let report = msr_kvm::check::probe();
    let (missing, warnings) = (report.missing_for_linux(), report.warnings());
    if json {
        let report = serde_json::json!({
            "micro_guests": report.can_run_micro_guests(),
            "linux": report.can_boot_linux(),
            "missing": missing,
            "warnings": warnings,
        });
        print(&format!("{report}\n"))?;
    } else {
        print(&report)?;
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Failure::fault("this host's KVM cannot boot Linux"))
    }
}

/// Prints the device models and their keys.
fn devices(model: Option<&str>, json: bool) -> Result<(), Failure> {
    let all = models();
    let chosen: Vec<&DeviceModel> = all
        .iter()
        .filter(|m| model.is_none_or(|name| m.name() == name))
        .collect();
    if let (Some(name), []) = (model, chosen.as_slice()) {
        let names: Vec<&str> = all.iter().map(DeviceModel::name).collect();
        let names = names.join(", ");
        return Err(Failure::usage(format!(
            "there is no device type `{name}`: there are {names}"
        )));
    }
    if json {
        return print(&format!("{}\n", serde_json::json!(chosen)));
    }
    let texts: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    print(&texts.join("\n"))
}
