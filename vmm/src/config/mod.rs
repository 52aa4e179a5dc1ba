//! What the guest is to be, as a TOML file or the command line says it.
//!
//! [`Config`] and the types in it are the one definition of the file: serde reads and writes it by them, and their doc
//! comments and types make the JSON Schema, `man 5 msr-vmm.toml` and the words of errors (see [`mod@reference`]).

#![forbid(unsafe_code)]

mod error;
mod loaded;
mod memory_size;
pub mod reference;
#[cfg(test)]
mod tests;
mod vm;

use std::path::Path;

use msr_bus::Document;
use msr_kvm::{MsrConfig, is_built_in_profile};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cpu::CpuModel;
use crate::models::{self, ModelName};

pub use error::ConfigError;
pub use loaded::LoadedConfig;
pub use memory_size::{MemorySize, ParseMemorySizeError};
pub(crate) use vm::DEFAULT_CMDLINE;
pub use vm::{MAX_CPUS, MIN_MEMORY, TopologyConfig, VmConfig};

/// Everything `msr-vmm run` takes. `--config` reads it from a file, and `--print-config` prints it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Config {
    // There in what a file says, and gone from what `Config::load` makes of it.
    /// The CPU model that everything else is laid over: the name of one that comes with the program, or the path of a
    /// file, which has a `/` or ends in `.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// The machine.
    pub vm: VmConfig,
    /// What CPUID shows the guest.
    pub cpu: CpuModel,
    /// Who answers which MSR.
    pub msr: MsrConfig,
}

msr_bus::toml_in_binary_formats!(Config);

impl Config {
    /// Reads a configuration file and lays it over the CPU model that it names, if it names one. Relative paths in it are
    /// relative to the file's own folder, and absolute in what this returns.
    ///
    /// # Errors
    ///
    /// [`ConfigError::File`], and those of the model.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::load(Some(path), None)
    }

    /// The same, with a `model` that is taken instead of the file's, and with or without a file.
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file).
    pub fn load(path: Option<&Path>, model: Option<&ModelName>) -> Result<Self, ConfigError> {
        Ok(LoadedConfig::load(path, model)?.config)
    }

    /// The configuration whose file has these `keys`, over a model.
    fn over(self, model: &ModelName, mut keys: toml::Table) -> Result<Self, ConfigError> {
        keys.remove("model");
        let layered = models::overlay(keys, &format!("model {model}"), model.load()?);
        let layered = layered
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Layered {
                model: model.clone(),
                message: error.message().trim().replace('\n', "; "),
            });
        // The paths in `self` are relative to the file's folder already, and models have none.
        let mut layered: Self = layered?;
        layered.vm = self.vm;
        layered.msr.profile = self.msr.profile.or(layered.msr.profile);
        Ok(layered)
    }

    /// Makes every path absolute, so that the configuration means the same wherever it is written to and read
    /// from. Those that are not absolute are relative to `folder`, or without one to where the process is.
    pub(crate) fn resolve(&mut self, folder: &Path) -> Result<(), ConfigError> {
        let disks = self.vm.disks.iter_mut().map(|disk| &mut disk.path);
        let profile = self.msr.profile.as_mut();
        let files = [self.vm.kernel.as_mut(), self.vm.initrd.as_mut()]
            .into_iter()
            .chain([profile.filter(|profile| !is_built_in_profile(profile))])
            .flatten()
            .chain(disks);
        for file in files {
            let path = folder.join(&*file);
            *file =
                std::path::absolute(&path).map_err(|source| ConfigError::Path { path, source })?;
        }
        Ok(())
    }
}

/// What a configuration file says, as a configuration and as keys: only the keys tell what was said from what is a default.
fn parse(file: &Document, folder: &Path) -> Result<(Config, toml::Table), ConfigError> {
    let mut config: Config = file.parse().map_err(|error| wrong_kind(file, error))?;
    let keys = file.table()?;
    config.resolve(folder)?;
    config.model = config.model.map(|model| model.in_folder(folder));
    Ok((config, keys))
}

/// What is wrong with a file that is no configuration: that it is something else, if it is.
fn wrong_kind(file: &Document, error: msr_bus::DocumentError) -> ConfigError {
    let Ok(table) = file.table() else {
        return error.into();
    };
    let has = |key| table.contains_key(key);
    let what = if has("summary") {
        "is a CPU model, and not a configuration; give it with --model, or as `model` in a configuration"
    } else if has("default") || has("rule") {
        "is a profile, and not a configuration; give it with --profile, or as `profile` under [msr]"
    } else {
        return error.into();
    };
    ConfigError::OtherKind {
        file: file.name().to_owned(),
        what,
    }
}
