//! Completion of the command line in shells.
//!
//! A shell asks the program itself (clap's dynamic engine): the script that a shell loads holds no names, so that nothing in
//! it grows old, and the device models are those of the program at hand.

use std::path::Path;
use std::sync::OnceLock;

use clap::{CommandFactory, ValueEnum};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};
use msr_bus::DeviceModel;

use crate::cli::Failure;
use crate::cli::args::Cli;

/// The environment variable by which a shell asks.
const ASKED: &str = "MSR_VMM_COMPLETE";

/// The models that completion offers. clap's candidates come from functions without state.
static MODELS: OnceLock<Vec<DeviceModel>> = OnceLock::new();

/// A shell that can complete the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// For ~/.bashrc: `source <(msr-vmm completions bash)`.
    Bash,
    /// For ~/.zshrc, after compinit: `source <(msr-vmm completions zsh)`.
    Zsh,
    /// For ~/.config/fish/completions/msr-vmm.fish: `msr-vmm completions fish | source`.
    Fish,
}

/// Answers a shell that asks for completions, and ends the program then.
pub(crate) fn answer(models: &[DeviceModel]) {
    // Without the variable, which is the rule, nothing is built.
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let _ = MODELS.set(models.to_vec());
    CompleteEnv::with_factory(Cli::command)
        .var(ASKED)
        .complete();
}

/// Prints what a shell is to load.
pub(crate) fn print(shell: Shell) -> Result<(), Failure> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    // The program that was run, by the name by which it was found, or the path.
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program);
    let program = match program.components().count() {
        0 | 1 => program.to_owned(),
        _ => std::path::absolute(program).map_err(Failure::fault)?,
    };
    // A program with devices of its own has a name of its own.
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let mut script = Vec::new();
    completer
        .write_registration(ASKED, &name, &name, &program.to_string_lossy(), &mut script)
        .map_err(Failure::fault)?;
    super::print(&String::from_utf8_lossy(&script))
}

/// What completion offers for a value.
pub(crate) mod candidates {
    use std::ffi::OsStr;

    use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
    use msr_filter::names;

    use super::MODELS;
    use crate::models::BuiltIn;

    /// The MSRs that have a name.
    pub(crate) fn msrs() -> Vec<CompletionCandidate> {
        names::iter()
            .map(|(index, name)| {
                CompletionCandidate::new(name).help(Some(format!("{index:#x}").into()))
            })
            .collect()
    }

    /// The MSR device models.
    pub(crate) fn devices() -> Vec<CompletionCandidate> {
        let models = MODELS.get().into_iter().flatten();
        models
            .map(|model| CompletionCandidate::new(model.name()).help(Some(model.summary().into())))
            .collect()
    }

    /// The CPU models that come with the program, and files.
    pub(crate) fn cpu_models(typed: &OsStr) -> Vec<CompletionCandidate> {
        with_files(typed, BuiltIn::all().iter().map(|model| model.name))
    }

    /// The profiles that come with the program, and files.
    pub(crate) fn profiles(typed: &OsStr) -> Vec<CompletionCandidate> {
        with_files(typed, msr_kvm::built_in_profiles().map(|(name, _)| name))
    }

    fn with_files(
        typed: &OsStr,
        names: impl Iterator<Item = &'static str>,
    ) -> Vec<CompletionCandidate> {
        let start = typed.to_string_lossy();
        names
            .filter(|name| name.starts_with(&*start))
            .map(CompletionCandidate::new)
            .chain(PathCompleter::file().complete(typed))
            .collect()
    }
}
