//! Guests that do their worst, and hosts that fail: guests of a few instructions, which run on every KVM there is. They run
//! in an outer VM only where the host has none.

use std::env;
use std::process::ExitCode;

use guest_tests::backend;
use guest_tests::pack;
use libtest_mimic::Arguments;

mod client;
mod failures;
mod sandbox;
mod storm;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials: Vec<_> = failures::trials()
        .into_iter()
        .chain(sandbox::trials())
        .chain(storm::trials())
        .collect();
    let any = trials.iter().any(|trial| !arguments.is_filtered_out(trial));
    if any && !arguments.list {
        let passed_on = backend::harness_arguments(env::args().skip(1));
        if let Some(status) = backend::run_tiny_guests_elsewhere(&passed_on, pack::basics) {
            return status;
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
