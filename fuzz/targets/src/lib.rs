//! What the fuzzers run.
//!
//! A target is a function of bytes. It panics when the code under test breaks a promise: a property that its module
//! names, or the promise that no input makes the code panic, hang or take memory without bound. `fuzz/` runs the
//! functions under libFuzzer (`make fuzz`); `tests/corpus.rs` runs them over the committed corpora with the other
//! tests, on the stable toolchain.
//!
//! Structured inputs are read from the bytes with [`arbitrary`]: a short input is a short sequence of steps.

pub mod acpi;
pub mod block;
pub mod config;
pub mod control;
pub mod devices;
pub mod filter;
pub mod import;
pub mod kernel;
mod memfd;
pub mod microcode;
pub mod payload;
pub mod ports;
pub mod snapshot;
pub mod state;
pub mod syntax;
pub mod trace;
pub mod virtio;

/// A target: its name, which is also that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("acpi", acpi::run),
    ("block", block::run),
    ("config", config::run),
    ("control", control::run),
    ("devices", devices::run),
    ("filter", filter::run),
    ("import", import::run),
    ("kernel", kernel::run),
    ("microcode", microcode::run),
    ("payload", payload::run),
    ("ports", ports::run),
    ("snapshot", snapshot::run),
    ("state", state::run),
    ("syntax", syntax::run),
    ("trace", trace::run),
    ("virtio", virtio::run),
];
