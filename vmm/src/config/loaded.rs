//! A configuration and the file it is from.

use std::fmt::Display;
use std::path::Path;

use msr_bus::Document;
use msr_kvm::PlanError;

use super::{Config, ConfigError, parse};
use crate::models::ModelName;
use crate::vm::VmError;

/// A configuration, and the file it is from, so that messages about the one can point into the other.
#[derive(Clone, Debug, Default)]
pub struct LoadedConfig {
    /// The configuration, over its model.
    pub config: Config,
    /// The file, where there is one.
    pub file: Option<Document>,
}

impl LoadedConfig {
    /// Reads a configuration file, if there is one, and lays it over the `model`, or over the one that the file names.
    ///
    /// # Errors
    ///
    /// [`ConfigError::File`], [`ConfigError::OtherKind`], and those of the model.
    pub fn load(path: Option<&Path>, model: Option<&ModelName>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Self::over(Config::default(), toml::Table::new(), model, None);
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::of(Document::read(path)?, folder, model)
    }

    /// The same of a file that is read already. Relative paths in it are relative to `folder`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn of(
        file: Document,
        folder: &Path,
        model: Option<&ModelName>,
    ) -> Result<Self, ConfigError> {
        let (config, keys) = parse(&file, folder)?;
        Self::over(config, keys, model, Some(file))
    }

    fn over(
        mut config: Config,
        keys: toml::Table,
        model: Option<&ModelName>,
        file: Option<Document>,
    ) -> Result<Self, ConfigError> {
        let model = model.cloned().or(config.model.take());
        if let Some(model) = model {
            config = config.over(&model, keys)?;
        }
        Ok(Self { config, file })
    }

    /// The message of an error about the configuration, with the place in the file where that says what is wrong.
    pub fn describe(&self, error: &VmError) -> String {
        let key = error.key();
        match error {
            // The place says which device it is.
            VmError::Msr(PlanError::Device { source, .. }) => self.locate(key.as_deref(), source),
            error => self.locate(key.as_deref(), error),
        }
    }

    /// A message about a key of the configuration, with its place where it is the file that says it.
    pub fn locate(&self, key: Option<&str>, message: impl Display) -> String {
        let place = || {
            let file = self.file.as_ref()?;
            let key = self.in_file(file, key?)?;
            Some(file.error(&key, &message).to_string())
        };
        place().unwrap_or_else(|| message.to_string())
    }

    /// What the file calls a key of the configuration; `None` where it comes from elsewhere.
    fn in_file(&self, file: &Document, key: &str) -> Option<String> {
        if let Some(rest) = key.strip_prefix("msr.device[") {
            let (number, rest) = rest.split_once(']')?;
            let device = self.config.msr.devices.get(number.parse::<usize>().ok()?)?;
            let name = device.name.as_ref().unwrap_or(&device.model);
            let table = file.table().ok()?;
            let devices = table.get("msr")?.get("device")?.as_array()?;
            let is_it = |said: &toml::Value| {
                let text = |key| said.get(key).and_then(toml::Value::as_str);
                text("type") == Some(&device.model) && text("name").or(text("type")) == Some(name)
            };
            let number = devices.iter().position(is_it)?;
            return Some(format!("msr.device[{number}]{rest}"));
        }
        file.has(key).then(|| key.to_owned())
    }
}
