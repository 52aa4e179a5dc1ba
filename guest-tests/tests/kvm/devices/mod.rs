//! MSR devices and CPU models, judged by Linux's own drivers and standard tools: Debian's full kernel for those that it
//! alone has, the cloud kernel for the rest, each of Debian 12 and of Debian 13.
//!
//! A guest takes its time to boot, so that tests of the same machine share a boot: see [`shared`].

use libtest_mimic::Trial;

mod baseline;
mod faults;
mod icelake;
mod live;
mod models;
mod scenario;
mod shared;
mod zen3;

/// What the names of all these tests begin with: they need the full kernel.
pub(crate) const PREFIX: &str = "devices::";

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = icelake::trials();
    trials.extend(faults::trials());
    trials.extend(live::trials());
    trials.extend(scenario::trials());
    trials.extend(zen3::trials());
    trials.extend(models::trials());
    trials
}
