//! All tests that need a KVM, in one executable. Where they run in the outer VM, one boot of it serves the tests
//! of a module.
//!
//! Each module lists its tests in `trials()`. Arguments are libtest's: a filter, `--exact`,
//! `--list` and so on.

use std::collections::VecDeque;
use std::env;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use guest_tests::assets;
use guest_tests::backend::{self, Backend, Pack};
use guest_tests::kernel::{Kernel, Release};
use guest_tests::pack;
use libtest_mimic::{Arguments, Failed, Trial};

mod cli;
mod clients;
mod clones;
mod devices;
mod disk;
mod life;
mod linux;
mod micro;
mod models;
mod multiboot;
mod needs;
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

/// After the quickest, which tell most, the modules that take longest, so that none of these runs alone at the end.
fn trials() -> Vec<Trial> {
    [
        smoke::trials(),
        trace::trials(),
        devices::trials(),
        clients::trials(),
        disk::trials(),
        linux::trials(),
        clones::trials(),
        profiles::trials(),
        life::trials(),
        smp::trials(),
        models::trials(),
        multiboot::trials(),
        needs::trials(),
        cli::trials(),
        micro::trials(),
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

/// Runs the tests in outer VMs, several at a time where no filter is given; the exit code is the first that is not
/// success.
fn in_outer_vms(arguments: &Arguments, trials: &[Trial]) -> ExitCode {
    let at_a_time = match outer_vms_at_a_time() {
        Ok(number) => number,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let modules = modules(arguments, trials);
    let jobs = modules
        .into_iter()
        .map(|module| Job::new(arguments, trials, module));
    let waiting = Mutex::new(jobs.collect::<VecDeque<_>>());
    let next = || waiting.lock().ok()?.pop_front();
    let outcome = Mutex::new(ExitCode::SUCCESS);
    thread::scope(|scope| {
        for _ in 0..at_a_time.get() {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let status = job.run();
                    let mut outcome = outcome.lock().expect("no holder of the lock panics");
                    if *outcome == ExitCode::SUCCESS {
                        *outcome = status;
                    }
                }
            });
        }
    });
    outcome.into_inner().expect("no holder of the lock panics")
}

/// How many outer VMs run at the same time: one a core, as most guests have one CPU, and no more than four, each of
/// which takes up to 3 GiB. `OUTER_VMS=` says otherwise.
fn outer_vms_at_a_time() -> Result<NonZeroUsize, String> {
    match env::var("OUTER_VMS").ok().filter(|text| !text.is_empty()) {
        Some(text) => text
            .parse()
            .map_err(|_| format!("OUTER_VMS={text}: a number from 1")),
        None => Ok(thread::available_parallelism()
            .map_or(NonZeroUsize::MIN, |cores| cores.min(MOST_OUTER_VMS))),
    }
}

/// See [`outer_vms_at_a_time`].
const MOST_OUTER_VMS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// What one outer VM is booted for.
struct Job {
    arguments: Vec<String>,
    pack: Pack,
    /// The module, unless this is the only job.
    name: Option<String>,
}

impl Job {
    /// The tests of a module, or those that the arguments name.
    fn new(arguments: &Arguments, trials: &[Trial], module: Option<String>) -> Self {
        let prefix = module.as_ref().map(|module| format!("{module}::"));
        let any = |wanted: &dyn Fn(&str) -> bool| {
            trials.iter().any(|trial| {
                let name = trial.name();
                name.starts_with(prefix.as_deref().unwrap_or_default())
                    && !arguments.is_filtered_out(trial)
                    && wanted(name)
            })
        };
        // Kernels are large; what does without one starts sooner.
        let pack = if any(&|name| name.starts_with(clients::PREFIX)) {
            pack::clients
        } else if any(&|name| name.starts_with(devices::PREFIX) || name.starts_with(trace::PREFIX))
        {
            pack::full
        } else if any(&|name| {
            name.starts_with(needs::PREFIX) || name.contains(&format!("::{}::", Release::Trixie))
        }) {
            pack::releases
        } else {
            pack::basics
        };
        let mut passed_on = backend::harness_arguments(env::args().skip(1));
        passed_on.extend(prefix);
        Self {
            arguments: passed_on,
            pack,
            name: module,
        }
    }

    fn run(&self) -> ExitCode {
        backend::run_in_outer_vm(&self.arguments, self.pack, self.name.as_deref())
    }
}

/// What to run: where no filter is given, each module by its name. Each gets an outer VM of its own, so that none
/// meets what another left behind.
fn modules(arguments: &Arguments, trials: &[Trial]) -> Vec<Option<String>> {
    if arguments.filter.is_some() {
        return vec![None];
    }
    let mut modules: Vec<Option<String>> = trials
        .iter()
        .filter(|trial| !arguments.is_filtered_out(trial))
        .filter_map(|trial| trial.name().split("::").next())
        .map(|name| Some(name.to_owned()))
        .collect();
    modules.dedup();
    modules
}
