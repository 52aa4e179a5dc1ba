//! `msr-vmm run`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use msr_bus::{DeviceModel, MsrObserver};

use crate::cli::args::RunArgs;
use crate::cli::msr_log::MsrLog;
use crate::cli::plan::{plan, warn};
use crate::cli::trace::{RunTrace, TraceOptions};
use crate::cli::{Failure, footprint, print, session};
use crate::sandbox::Role;
use crate::shutdown::ShutdownReason;
use crate::timing::{BootEvent, BootTiming};
use crate::vm::{Vm, VmError};
use msr_kvm::MsrStats;

/// Boots a guest and serves it until it ends.
///
/// `timing` counts from the start of the program.
pub(crate) fn run(
    args: RunArgs,
    timing: BootTiming,
    models: &[DeviceModel],
) -> Result<(), Failure> {
    let loaded = args.load()?;
    let config = &loaded.config;
    if args.print_config {
        // What cannot be a machine is not printed as one.
        warn(&loaded, &plan(&loaded, models)?);
        let text = toml::to_string(config).map_err(Failure::fault)?;
        return print(&text);
    }
    let failure = |error: VmError| Failure::of(&error, &loaded);
    let grace = Duration::from_secs(config.vm.grace.into());
    let topology = config
        .vm
        .topology()
        .map_err(|error| failure(error.into()))?;
    let stats = args
        .msr_stats
        .then(|| Arc::new(MsrStats::new(topology.vcpus())));
    let timing = args.boot_timing.then(|| Arc::new(timing));
    let signals = session::block_signals().map_err(Failure::fault)?;

    // Without the buffer of `Stdout`: the console has its own.
    let output = io::stdout().as_fd().try_clone_to_owned();
    let output = File::from(output.map_err(Failure::fault)?);
    let mut config = config.clone();
    let mut trace = args
        .trace
        .as_ref()
        .map(|file| {
            let options = TraceOptions {
                file,
                kernel: args.trace_kernel,
                observe: args.observe.as_deref(),
            };
            RunTrace::new(&options, &loaded, &mut config, models)
        })
        .transpose()?;
    let confined = args.confine(&config, models)?;
    let mut builder = Vm::builder(config)
        .console_output(output)
        .thread_filters(confined.filters.clone());
    for model in models {
        builder = builder.device_model(*model);
    }
    let observers = [
        stats.clone().map(|stats| stats as Arc<dyn MsrObserver>),
        trace.as_ref().map(RunTrace::observer),
        log::log_enabled!(log::Level::Trace).then(|| Arc::new(MsrLog) as Arc<dyn MsrObserver>),
    ];
    for observer in observers.into_iter().flatten() {
        builder = builder.msr_observer(observer);
    }
    if let Some(trace) = &trace {
        builder = trace.prepare(builder);
    }
    if let Some(timing) = &timing {
        timing.mark(BootEvent::Configured);
        builder = builder.boot_timing(timing.clone());
    }
    let built = session::interruptible(&signals, || builder.build()).map_err(Failure::fault)?;
    let vm = built.map_err(failure)?;
    warn(&loaded, vm.msr_plan());
    let terminal = session::open_terminal().map_err(Failure::fault)?;
    if let Some(trace) = &mut trace {
        trace.start(&vm)?;
    }
    confined.leave_host()?;
    let vm = vm.start().map_err(failure)?;
    confined.filters.enter(Role::Main);
    drop((args, loaded));
    footprint::shrink();
    let bus = vm.msr_bus().clone();
    let reason = session::serve(vm, terminal, signals, grace).map_err(Failure::fault)?;
    // The reason of the shutdown counts, whether or not anybody reads the tables.
    if let Some(trace) = trace {
        trace.finish();
    }
    if let Some(timing) = timing {
        timing.mark(BootEvent::Ended);
        let _ = write!(io::stderr(), "{timing}");
    }
    if let Some(stats) = stats {
        let _ = write!(io::stderr(), "{}", stats.table(&bus));
    }
    match reason {
        ShutdownReason::PowerOff | ShutdownReason::Reset => Ok(()),
        ShutdownReason::DebugExit(status) => Err(Failure {
            // What an exit status has room for, as with QEMU.
            status: status as u8,
            message: format!("the guest ended with status {status} by the debug-exit port"),
        }),
        ShutdownReason::Stopped => Err(Failure::fault(
            "stopped before the guest switched itself off",
        )),
        ShutdownReason::Fault(fault) => Err(Failure::fault(fault)),
    }
}
