//! Why an outer VM brought no exit status back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::choice::ChoiceError;
use crate::assets::AssetError;

/// Why the outer VM brought back no exit status.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// A file to be packed cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file on the host.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An executable, the kernel or a module is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// There is no QEMU to choose.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// QEMU cannot be started or watched.
    #[error("cannot run QEMU: {0}")]
    Qemu(#[source] io::Error),
    /// The guest of a trial cannot be made.
    #[error("cannot make a guest to try this QEMU with: {0}")]
    Trial(String),
    /// No guest boots under this QEMU, whatever the paging.
    #[error(
        "no guest boots under QEMU {version}; QEMU= names another, OUTER_PAGING=nested|shadow decides how to use it\n{failures}"
    )]
    NoGuestBoots {
        /// The version.
        version: String,
        /// What happened with each paging, a paragraph each.
        failures: String,
    },
    /// The init could not run the program.
    #[error("outer VM: {0}")]
    Init(String),
    /// The VM ended before the program did: a kernel panic, a crash of its init or of QEMU.
    #[error("the outer VM ended without a status after {stage} ({qemu}); its console:\n{console}")]
    NoStatus {
        /// The last thing it got done.
        stage: &'static str,
        /// How QEMU ended.
        qemu: String,
        /// The end of the kernel's console.
        console: String,
    },
    /// It gave no sign of life.
    #[error("the outer VM hangs: no sign of life for {} s after {stage}; its registers:\n{registers}\nits console:\n{console}", silent.as_secs())]
    Silent {
        /// Since when.
        silent: Duration,
        /// The last thing it got done.
        stage: &'static str,
        /// What QEMU says of the CPUs.
        registers: String,
        /// The end of the kernel's console.
        console: String,
    },
    /// The program neither ended nor did anything.
    #[error(
        "the program in the outer VM is stuck: no CPU had work for {seconds} s; the CPUs:\n{registers}\nwhat each task waits for:\n{console}"
    )]
    Stuck {
        /// For how long.
        seconds: u64,
        /// What QEMU says of the CPUs.
        registers: String,
        /// What the kernel says of its tasks.
        console: String,
    },
    /// The safety limit passed.
    #[error("the outer VM was stopped after {} s; its console:\n{console}", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The end of the kernel's console.
        console: String,
    },
}
