//! The importers of Firecracker's CPU templates and of Bochs' `msrs.def`.
//!
//! What is imported is a CPU model file that is read back as the same model, whatever the original said.

use msr_vmm::models::ModelFile;
use msr_vmm::models::import::{Imported, bochs, firecracker};

fn check(imported: &Imported) {
    let printed = imported.to_string();
    match toml::from_str::<ModelFile>(&printed) {
        Ok(model) => assert_eq!(model, imported.model, "{printed}"),
        Err(error) => panic!("{printed}\n{error}"),
    }
}

/// Reads `data`, where it is text, as both.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match bochs::import(text) {
        Ok(imported) => check(&imported),
        Err(error) => drop(error.to_string()),
    }
    match firecracker::import(text) {
        Ok(imported) => check(&imported),
        Err(error) => drop(error.to_string()),
    }
}
