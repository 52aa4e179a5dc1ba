//! All tests that need a KVM, in one executable, so that one boot of the outer VM serves them all.
//!
//! Each module lists its tests in `trials()`. Arguments are libtest's: a filter, `--exact`,
//! `--list` and so on.

use std::process::ExitCode;

use guest_tests::{assets, backend};
use libtest_mimic::{Arguments, Failed, Trial};

mod cli;
mod devices;
mod disk;
mod life;
mod linux;
mod micro;
mod profiles;
mod smoke;
mod smp;

/// A test's body.
type Test = fn() -> Result<(), Failed>;

fn trials() -> Vec<Trial> {
    [
        smoke::trials(),
        micro::trials(),
        cli::trials(),
        life::trials(),
        linux::trials(),
        smp::trials(),
        disk::trials(),
        profiles::trials(),
        devices::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = trials();
    // Nothing to boot for: the summary says that no test ran.
    let mut chosen = trials
        .iter()
        .filter(|trial| !arguments.is_filtered_out(trial))
        .peekable();
    if chosen.peek().is_some() && !arguments.list {
        // The full kernel is large; what does without it starts sooner.
        let full = chosen.any(|trial| trial.name().starts_with(devices::PREFIX));
        let pack = if full {
            assets::pack_full
        } else {
            assets::pack
        };
        let passed_on = backend::harness_arguments(std::env::args().skip(1));
        if let Some(status) = backend::run_elsewhere(&passed_on, pack) {
            return status;
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
