//! The `msr-vmm` command.

mod args;
mod filter;
mod input;
mod run;
mod session;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

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
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::new()
        .filter_level(cli.log)
        .format_timestamp_millis()
        .format_target(false)
        .init();
    let outcome = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Check { json } => check(json),
        Command::Filter(args) => filter::filter(&args),
        Command::Explain(args) => filter::explain(&args),
        Command::Devices { model, json } => filter::devices(model.as_deref(), json),
        Command::Completions { shell } => {
            args::completions(shell);
            Ok(())
        }
        Command::Man { folder } => args::man(&folder).map_err(Failure::fault),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            eprintln!("msr-vmm: {message}");
            ExitCode::from(status)
        }
    }
}

fn check(_json: bool) -> Result<(), Failure> {
    let report = crate::check::probe();
    print!("{report}");
    if report.can_boot_linux() {
        Ok(())
    } else {
        Err(Failure::fault("this KVM cannot boot Linux"))
    }
}
