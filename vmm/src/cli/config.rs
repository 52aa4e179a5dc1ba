//! `msr-vmm config`: the reference of configuration files.

use clap::{Args, CommandFactory};
use msr_bus::DeviceModel;

use crate::cli::args::Cli;
use crate::cli::{Failure, print};
use crate::config::reference;

/// What `msr-vmm config` takes.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct ConfigCommandArgs {
    /// Print the JSON Schema instead, for editors.
    #[arg(long)]
    pub schema: bool,
    /// Print this help and the reference.
    #[arg(short, long)]
    pub help: bool,
}

/// Prints the reference, or the schema.
pub(crate) fn config(args: &ConfigCommandArgs, models: &[DeviceModel]) -> Result<(), Failure> {
    if args.schema && !args.help {
        let schema = reference::json_schema(models);
        let text = serde_json::to_string_pretty(&schema).map_err(Failure::fault)?;
        return print(&format!("{text}\n"));
    }
    let text = reference::text(models);
    if !args.help {
        return print(&text);
    }
    let mut command = Cli::command();
    command.build();
    let help = command
        .find_subcommand_mut("config")
        .map(|config| config.render_long_help().to_string());
    print(&format!("{}\n{text}", help.unwrap_or_default()))
}
