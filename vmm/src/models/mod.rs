//! CPU models: who the guest's CPU is, which MSRs it has, and what they hold.
//!
//! A model is a part of a configuration in a file of its own, in the same format: `[cpu]` and `[msr]`, and a `summary`.
//! What KVM keeps for every CPU (long mode, memory types, machine checks) is allowed by the model's filter rules, what it
//! does not have the model's devices answer, and with `default = "deny"` every other MSR is #GP, whatever the host has.
//!
//! A configuration names a model with `model = "NAME"`, for one of [`BuiltIn::all`], or with a path, and its own keys are
//! laid over the model's: see [`overlay`].

#![forbid(unsafe_code)]

pub mod import;
mod overlay;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use msr_bus::{Document, DocumentError, nearest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use overlay::overlay;

use crate::cpu::CpuModel;
use msr_kvm::MsrConfig;

/// A model that comes with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltIn {
    /// What a configuration calls it.
    pub name: &'static str,
    /// The model file.
    pub text: &'static str,
}

const BUILT_IN: &[BuiltIn] = &[
    BuiltIn {
        name: "haswell-client",
        text: include_str!("../../models/haswell-client.toml"),
    },
    BuiltIn {
        name: "icelake-server",
        text: include_str!("../../models/icelake-server.toml"),
    },
    BuiltIn {
        name: "zen3-server",
        text: include_str!("../../models/zen3-server.toml"),
    },
];

impl BuiltIn {
    /// Every model that comes with the program, by name.
    pub fn all() -> &'static [Self] {
        BUILT_IN
    }
}

/// What a model file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct ModelFile {
    /// What the model is, in one line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Who the CPU is.
    pub cpu: CpuModel,
    /// Which MSRs it has.
    pub msr: MsrConfig,
}

msr_bus::toml_in_binary_formats!(ModelFile);

/// What a configuration writes as `model`: the name of a model that comes with the program, or the path of a file, which has
/// a `/` or ends in `.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(title = "a CPU model's name or a path")]
pub struct ModelName(String);

/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No model has the name.
    #[error(
        "there is no CPU model `{name}`; {}there are {}, and a file of your own is written as a path, such as ./{name}.toml",
        did_you_mean(name),
        names()
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// The file cannot be read, is not TOML, or has keys or values that mean nothing in a model.
    #[error("CPU model: {0}")]
    File(#[from] DocumentError),
}

fn did_you_mean(name: &str) -> String {
    let nearest = nearest(name, BUILT_IN.iter().map(|model| model.name));
    nearest.map_or(String::new(), |name| format!("did you mean `{name}`? "))
}

fn names() -> String {
    let names: Vec<_> = BUILT_IN.iter().map(|model| model.name).collect();
    names.join(", ")
}

impl ModelName {
    /// A model's name or path.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The path, if it is one.
    pub fn as_path(&self) -> Option<&Path> {
        (self.0.contains('/') || self.0.ends_with(".toml")).then(|| Path::new(&self.0))
    }

    /// The same model, named from a file in `folder`: a relative path is relative to that.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        match self.as_path().map(|path| folder.join(path)) {
            // A file next to the configuration stays a path.
            Some(path) if path.parent() == Some(Path::new("")) => {
                Self(Path::new(".").join(path).to_string_lossy().into_owned())
            }
            Some(path) => Self(path.to_string_lossy().into_owned()),
            None => self,
        }
    }

    /// The model's keys, found to be a model's.
    ///
    /// # Errors
    ///
    /// [`ModelError`].
    pub fn load(&self) -> Result<toml::Table, ModelError> {
        let file = match self.as_path() {
            Some(path) => Document::read(path)?,
            None => {
                let model = BUILT_IN.iter().find(|model| model.name == self.0);
                let unknown = || ModelError::Unknown {
                    name: self.0.clone(),
                };
                Document::new(&self.0, model.ok_or_else(unknown)?.text)
            }
        };
        // As what it is first: the table alone would take any key.
        file.parse::<ModelFile>()?;
        let mut table = file.table()?;
        table.remove("summary");
        Ok(table)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
