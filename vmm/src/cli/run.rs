//! `msr-vmm run`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use msr_bus::{MsrEvent, MsrObserver};

use crate::cli::args::RunArgs;
use crate::cli::trace::{RunTrace, TraceOptions};
use crate::cli::{Failure, models, print, session};
use crate::sandbox::Role;
use crate::shutdown::ShutdownReason;
use crate::timing::{BootEvent, BootTiming};
use crate::vm::{Vm, VmError};
use msr_kvm::MsrStats;

/// Boots a guest and serves it until it ends.
///
/// `timing` counts from the start of the program.
pub(crate) fn run(args: RunArgs, timing: BootTiming) -> Result<(), Failure> {
    let mut config = args.config().map_err(Failure::usage)?;
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
    let mut trace = args
        .trace
        .as_ref()
        .map(|file| {
            let options = TraceOptions {
                file,
                kernel: args.trace_kernel,
                observe: args.observe.as_deref(),
            };
            RunTrace::new(&options, &mut config)
        })
        .transpose()?;
    let confined = args.confine(&config)?;
    let mut builder = Vm::builder(config)
        .console_output(output)
        .thread_filters(confined.filters.clone());
    for model in models() {
        builder = builder.device_model(*model);
    }
    let observers = [
        stats.clone().map(|stats| stats as Arc<dyn MsrObserver>),
        trace.as_ref().map(RunTrace::observer),
    ];
    if let Some(observer) = Observers::of(observers.into_iter().flatten().collect()) {
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
    let vm = built.map_err(|error| match &args.config {
        Some(path) if matches!(error, VmError::Msr(_)) => failure(error).in_config(path),
        _ => failure(error),
    })?;
    let terminal = session::open_terminal().map_err(Failure::fault)?;
    if let Some(trace) = &mut trace {
        trace.start(&vm)?;
    }
    confined.leave_host()?;
    let vm = vm.start().map_err(failure)?;
    confined.filters.enter(Role::Main);
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

/// Observers of one bus, each of which sees every access.
struct Observers(Vec<Arc<dyn MsrObserver>>);

impl Observers {
    /// One observer for all of these; `None` of none.
    fn of(mut observers: Vec<Arc<dyn MsrObserver>>) -> Option<Arc<dyn MsrObserver>> {
        match observers.len() {
            0 | 1 => observers.pop(),
            _ => Some(Arc::new(Self(observers))),
        }
    }
}

impl MsrObserver for Observers {
    fn observe(&self, event: &MsrEvent<'_>) {
        for observer in &self.0 {
            observer.observe(event);
        }
    }
}

fn failure(error: VmError) -> Failure {
    if error.is_usage() {
        Failure::usage(error)
    } else {
        Failure::fault(error)
    }
}
