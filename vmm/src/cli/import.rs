//! `msr-vmm import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use crate::cli::{self, Failure};
use crate::models::import::{bochs, firecracker};

/// What `msr-vmm import` takes.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What the file is.
    #[arg(value_enum)]
    pub format: Format,
    /// The file.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// A format that models are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A custom CPU template of Firecracker's (JSON).
    Firecracker,
    /// A `msrs.def` of Bochs'.
    Bochs,
}

/// Prints the model that a file of another program's describes.
pub(crate) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", args.file.display()));
    let text = std::fs::read_to_string(&args.file).map_err(|error| wrong(&error))?;
    let imported = match args.format {
        Format::Firecracker => firecracker::import(&text).map_err(|error| wrong(&error))?,
        Format::Bochs => bochs::import(&text).map_err(|error| wrong(&error))?,
    };
    cli::print(&imported)
}
