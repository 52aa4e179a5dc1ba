//! `msr-vmm run`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use msr_bus::MsrObserver;

use crate::cli::args::RunArgs;
use crate::cli::{Failure, print, session};
use crate::shutdown::ShutdownReason;
use crate::timing::{BootEvent, BootTiming};
use crate::vm::{Vm, VmError};
use msr_kvm::MsrStats;

/// Boots a guest and serves it until it ends.
///
/// `timing` counts from the start of the program.
pub(crate) fn run(args: RunArgs, timing: BootTiming) -> Result<(), Failure> {
    let config = args.config().map_err(Failure::usage)?;
    if args.print_config {
        let text = toml::to_string(&config).map_err(Failure::fault)?;
        return print(&text);
    }
    let grace = Duration::from_secs(config.vm.grace.into());
    let cpus = config.vm.topology().map_err(Failure::usage)?.vcpus();
    let stats = args.msr_stats.then(|| Arc::new(MsrStats::new(cpus)));
    let timing = args.boot_timing.then(|| Arc::new(timing));
    let signals = session::block_signals().map_err(Failure::fault)?;

    // Without the buffer of `Stdout`: the console has its own.
    let output = io::stdout().as_fd().try_clone_to_owned();
    let output = File::from(output.map_err(Failure::fault)?);
    let mut builder = Vm::builder(config).console_output(output);
    if let Some(stats) = &stats {
        builder = builder.msr_observer(stats.clone() as Arc<dyn MsrObserver>);
    }
    if let Some(timing) = &timing {
        timing.mark(BootEvent::Configured);
        builder = builder.boot_timing(timing.clone());
    }
    let vm = builder.build().map_err(|error| match &args.config {
        Some(path) if matches!(error, VmError::Msr(_)) => failure(error).in_config(path),
        _ => failure(error),
    })?;
    let terminal = session::open_terminal().map_err(Failure::fault)?;
    let vm = vm.start().map_err(failure)?;
    let bus = vm.msr_bus().clone();
    let reason = session::serve(vm, terminal, signals, grace).map_err(Failure::fault)?;
    // The reason of the shutdown counts, whether or not anybody reads the tables.
    if let Some(timing) = timing {
        timing.mark(BootEvent::Ended);
        let _ = write!(io::stderr(), "{timing}");
    }
    if let Some(stats) = stats {
        let _ = write!(io::stderr(), "{}", stats.table(&bus));
    }
    match reason {
        ShutdownReason::PowerOff | ShutdownReason::Reset => Ok(()),
        ShutdownReason::Stopped => Err(Failure::fault(
            "stopped before the guest switched itself off",
        )),
        ShutdownReason::Fault(fault) => Err(Failure::fault(fault)),
    }
}

fn failure(error: VmError) -> Failure {
    if error.is_usage() {
        Failure::usage(error)
    } else {
        Failure::fault(error)
    }
}
