//! Decides where KVM tests run: in this process, where the host's KVM can boot Linux, or else in
//! the [outer VM](crate::nested), which runs the same executable with the same arguments.
//!
//! `BACKEND=kvm` and `BACKEND=nested` force either. Which it is, and why, is always printed.

use std::env;
use std::fmt;
use std::io::IsTerminal;
use std::process::ExitCode;

use msr_kvm::check::Report;

use crate::assets::{self, AssetError};
use crate::nested::error::OuterError;
use crate::nested::outer::OuterVm;

/// Set to `1` by [`run_in_outer_vm`] for what runs there.
const IN_OUTER_VM: &str = "MSR_OUTER_VM";

/// What of the host's environment the outer VM's program sees as well.
const FORWARDED: &[&str] = &[
    "RUST_BACKTRACE",
    "RUST_LOG",
    "PROPTEST_CASES",
    "SEED",
    "KILLS",
    "SNAPSHOTS",
    "HOSTILE_SECONDS",
    "VERBOSE",
];

/// Where KVM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Here: on the host, or already in the outer VM.
    Kvm,
    /// In an outer VM that is yet to be booted.
    Nested,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Nested => "nested",
        })
    }
}

/// Why there is no backend, or the nested one failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// `BACKEND` has a value without a meaning.
    #[error("BACKEND={0}: kvm or nested")]
    UnknownBackend(String),
    /// `BACKEND=kvm`, and there is no KVM.
    #[error("BACKEND=kvm, but /dev/kvm cannot be opened: {0}")]
    NoKvm(kvm_ioctls::Error),
    /// A file to be packed is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The outer VM brought back no status.
    #[error(transparent)]
    Outer(#[from] OuterError),
    /// The path of this executable is unknown.
    #[error("cannot find this executable: {0}")]
    OwnPath(std::io::Error),
}

/// Whether this process runs in the outer VM.
pub fn in_outer_vm() -> bool {
    env::var_os(IN_OUTER_VM).is_some_and(|value| value == "1")
}

/// Chooses the backend, and says on standard error which it is and why.
pub fn choose() -> Result<Backend, BackendError> {
    choose_for(msr_kvm::check::Report::missing_for_linux, "boots Linux")
}

fn choose_for(
    missing: impl FnOnce(&Report) -> Vec<String>,
    can: &str,
) -> Result<Backend, BackendError> {
    if in_outer_vm() {
        return Ok(Backend::Kvm);
    }
    let (backend, reason) = match env::var("BACKEND").ok().as_deref() {
        None | Some("") => match missing(&msr_kvm::check::probe()).into_iter().next() {
            None => (Backend::Kvm, format!("this host's KVM {can}")),
            Some(missing) => (Backend::Nested, missing),
        },
        Some("kvm") => {
            kvm_ioctls::Kvm::new().map_err(BackendError::NoKvm)?;
            (Backend::Kvm, "BACKEND=kvm".to_owned())
        }
        Some("nested") => (Backend::Nested, "BACKEND=nested".to_owned()),
        Some(other) => return Err(BackendError::UnknownBackend(other.to_owned())),
    };
    eprintln!("backend: {backend} ({reason})");
    Ok(backend)
}

/// For the first lines of a `main` that needs KVM: `None` to go on in this process, or the exit
/// code of the same executable, run with these arguments in the outer VM.
///
/// Errors end in exit code 1 and their text on standard error: a test that could not run has
/// failed.
///
/// `pack` puts into the outer VM what will be asked of [`assets`] there.
pub fn run_elsewhere(arguments: &[String], pack: Pack) -> Option<ExitCode> {
    elsewhere(choose(), arguments, pack)
}

/// The same for guests of a few instructions, which run on a KVM that cannot boot Linux.
pub fn run_tiny_guests_elsewhere(arguments: &[String], pack: Pack) -> Option<ExitCode> {
    let backend = choose_for(
        msr_kvm::check::Report::missing_for_micro_guests,
        "runs tiny guests",
    );
    elsewhere(backend, arguments, pack)
}

fn elsewhere(
    backend: Result<Backend, BackendError>,
    arguments: &[String],
    pack: Pack,
) -> Option<ExitCode> {
    match backend {
        Ok(Backend::Kvm) => None,
        Ok(Backend::Nested) => Some(run_in_outer_vm(arguments, pack, None)),
        Err(error) => Some(failure(&error)),
    }
}

/// Says why no test ran, and gives the exit code for that.
pub fn failure(error: &BackendError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Puts files into an outer VM: [`crate::pack`] has them.
pub type Pack = fn(&mut OuterVm) -> Result<(), AssetError>;

/// Runs this executable in the outer VM, with what `pack` packs at hand, and returns its exit code.
///
/// `name` tells it from other outer VMs that run at the same time.
pub fn run_in_outer_vm(arguments: &[String], pack: Pack, name: Option<&str>) -> ExitCode {
    in_outer_vm_with(arguments, pack, name).map_or_else(|error| failure(&error), ExitCode::from)
}

fn in_outer_vm_with(
    arguments: &[String],
    pack: Pack,
    name: Option<&str>,
) -> Result<u8, BackendError> {
    let own = env::current_exe().map_err(BackendError::OwnPath)?;
    let own_name = own
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let guest_path = format!("/bin/{own_name}");
    let mut vm = OuterVm::new(std::iter::once(&guest_path).chain(arguments));
    vm.file(guest_path.as_str(), own)
        .cwd("/work")
        .env(IN_OUTER_VM, "1");
    for variable in FORWARDED {
        if let Ok(value) = env::var(variable) {
            vm.env(*variable, value);
        }
    }
    if let Some(name) = name {
        vm.named(name);
    }
    pack(&mut vm)?;
    Ok(vm.run(&assets::outer_kernel()?)?)
}

/// Arguments for a libtest-compatible harness in the outer VM, from those given to this process:
/// one test at a time, as each boots VMs of its own on emulated CPUs, and colours only where this
/// process's standard output is a terminal.
pub fn harness_arguments(given: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut arguments: Vec<String> = given.into_iter().collect();
    let has = |arguments: &[String], flag: &str| arguments.iter().any(|a| a.starts_with(flag));
    if !has(&arguments, "--test-threads") {
        arguments.push("--test-threads=1".to_owned());
    }
    if !has(&arguments, "--color") {
        let colour = if std::io::stdout().is_terminal() {
            "always"
        } else {
            "never"
        };
        arguments.push(format!("--color={colour}"));
    }
    arguments
}
