//! All tests that need a KVM, in one executable. Where they run in the outer VM, one boot of it serves the tests
//! of a module.
//!
//! Each module lists its tests in `trials()`. Arguments are libtest's: a filter, `--exact`,
//! `--list` and so on.

use std::process::ExitCode;

use guest_tests::assets;
use guest_tests::backend::{self, Backend};
use guest_tests::kernel::{Kernel, Release};
use libtest_mimic::{Arguments, Failed, Trial};

mod cli;
mod devices;
mod disk;
mod life;
mod linux;
mod micro;
mod models;
mod multiboot;
mod profiles;
mod smoke;
mod smp;
mod trace;

/// A test's body.
type Test = fn() -> Result<(), Failed>;

/// The body of a test that is run with the cloud kernel of each Debian release.
type TestOnKernel = fn(&Kernel) -> Result<(), Failed>;

/// The tests of a module, each once for every release: `module::release::name`. Soaks are left to `make soak`.
fn on_all_kernels(module: &str, tests: &[(&str, TestOnKernel)]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for release in Release::ALL {
        for &(name, test) in tests {
            let run = move || test(&assets::cloud_kernel(release)?);
            let trial = Trial::test(format!("{module}::{release}::{name}"), run);
            trials.push(trial.with_ignored_flag(name.starts_with("soak::")));
        }
    }
    trials
}

fn trials() -> Vec<Trial> {
    [
        smoke::trials(),
        micro::trials(),
        cli::trials(),
        life::trials(),
        linux::trials(),
        smp::trials(),
        models::trials(),
        multiboot::trials(),
        disk::trials(),
        profiles::trials(),
        devices::trials(),
        trace::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = trials();
    // Nothing to boot for: the summary says that no test ran.
    let any = trials.iter().any(|trial| !arguments.is_filtered_out(trial));
    if any && !arguments.list {
        match backend::choose() {
            Ok(Backend::Kvm) => {}
            Ok(Backend::Nested) => return in_outer_vms(&arguments, &trials),
            Err(error) => return backend::failure(&error),
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs the tests in outer VMs; the exit code is the first that is not success.
fn in_outer_vms(arguments: &Arguments, trials: &[Trial]) -> ExitCode {
    let passed_on = backend::harness_arguments(std::env::args().skip(1));
    let mut outcome = ExitCode::SUCCESS;
    for module in modules(arguments, trials) {
        let any = |wanted: &dyn Fn(&str) -> bool| {
            trials.iter().any(|trial| {
                let (name, prefix) = (trial.name(), module.as_deref().unwrap_or_default());
                name.starts_with(prefix) && !arguments.is_filtered_out(trial) && wanted(name)
            })
        };
        // Kernels are large; what does without one starts sooner.
        let pack =
            if any(&|name| name.starts_with(devices::PREFIX) || name.starts_with(trace::PREFIX)) {
                assets::pack_full
            } else if any(&|name| name.contains(&format!("::{}::", Release::Trixie))) {
                assets::pack_releases
            } else {
                assets::pack
            };
        let passed_on: Vec<String> = passed_on.iter().cloned().chain(module).collect();
        let status = backend::run_in_outer_vm(&passed_on, pack);
        if outcome == ExitCode::SUCCESS {
            outcome = status;
        }
    }
    outcome
}

/// What to run, one after the other: where no filter is given, each module by its prefix. Each gets an outer VM
/// of its own, so that none meets what another left behind.
fn modules(arguments: &Arguments, trials: &[Trial]) -> Vec<Option<String>> {
    if arguments.filter.is_some() {
        return vec![None];
    }
    let mut modules: Vec<Option<String>> = trials
        .iter()
        .filter(|trial| !arguments.is_filtered_out(trial))
        .filter_map(|trial| trial.name().split("::").next())
        .map(|name| Some(format!("{name}::")))
        .collect();
    modules.dedup();
    modules
}
