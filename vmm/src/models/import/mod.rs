//! Other programs' descriptions of CPUs, as CPU models.
//!
//! What a format says and a model cannot is told as a note, never dropped in silence.

pub mod bochs;
pub mod firecracker;
mod kvm_msrs;

use std::fmt;

use msr_bus::{DeviceConfig, U64};
use msr_filter::MsrRange;
use toml::{Table, Value};

use super::ModelFile;

/// A model made of something else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The model.
    pub model: ModelFile,
    /// What is different from the original, and why.
    pub notes: Vec<String>,
}

impl Imported {
    fn new(summary: impl Into<String>) -> Self {
        Self {
            model: ModelFile {
                summary: summary.into(),
                ..ModelFile::default()
            },
            notes: Vec::new(),
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Imported {
    /// The model file, with the notes as its first comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "# {note}")?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        // Tables of strings, integers and lists of them always serialize.
        let text = toml::to_string(&self.model).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

/// A device with these keys.
fn device(model: &str, keys: impl IntoIterator<Item = (&'static str, Value)>) -> DeviceConfig {
    DeviceConfig {
        model: model.to_owned(),
        name: None,
        keys: table(keys),
    }
}

fn table(keys: impl IntoIterator<Item = (&'static str, Value)>) -> Table {
    keys.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// A register's index as configurations write it: by name where it has one.
fn msr(index: u32) -> Value {
    Value::String(match msr_filter::names::name(index) {
        Some(name) => name.to_owned(),
        None => MsrRange::single(index).to_string(),
    })
}

fn value(value: u64) -> Value {
    Value::try_from(U64(value)).expect("a 64-bit value is written as a string")
}
