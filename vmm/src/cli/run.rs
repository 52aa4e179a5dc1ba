//! `msr-vmm run` and `msr-vmm restore`.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use msr_bus::{DeviceModel, MsrObserver};
use nix::sys::signalfd::SignalFd;

use crate::builder::{VmBuilder, warn_of_lost};
use crate::cli::args::{RestoreArgs, RunArgs};
use crate::cli::msr_log::MsrLog;
use crate::cli::plan::{plan, warn};
use crate::cli::sandbox::Confined;
use crate::cli::trace::{RunTrace, TraceOptions, tell};
use crate::cli::{Failure, footprint, print, session};
use crate::config::LoadedConfig;
use crate::control_socket::{ControlSocket, Files};
use crate::sandbox::Role;
use crate::scenario::{PreparedScenarios, WatchedOutput, Watches};
use crate::shutdown::ShutdownReason;
use crate::snapshot::Snapshot;
use crate::timing::{BootEvent, BootTiming};
use crate::trace::{LiveTrace, TraceSwitch};
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
    if args.print_config {
        // What cannot be a machine is not printed as one.
        let plan = plan(&loaded, models)?;
        warn(&loaded, &plan);
        warn_of_lost(&plan.lost);
        let text = toml::to_string(&loaded.config).map_err(Failure::fault)?;
        return print(&text);
    }
    let signals = session::block_signals().map_err(Failure::fault)?;
    let mut config = loaded.config.clone();
    let trace = args
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
    // Before the process may make no more files.
    let control = listen(args.control.as_deref())?;
    let confined = args.confine(&config, models)?;
    let machine = Machine {
        loaded,
        models,
        control,
        msr_stats: args.msr_stats,
        timing: args.boot_timing.then(|| Arc::new(timing)),
    };
    drop(args);
    machine.serve(Vm::builder(config), signals, trace, &confined)
}

/// Carries on the VM of a snapshot and serves it until it ends.
///
/// `timing` counts from the start of the program.
pub(crate) fn restore(
    args: &RestoreArgs,
    timing: BootTiming,
    models: &[DeviceModel],
) -> Result<(), Failure> {
    let snapshot = Snapshot::read(&args.folder).map_err(Failure::usage)?;
    if args.verify {
        snapshot.verify().map_err(Failure::usage)?;
    }
    let loaded = LoadedConfig {
        config: snapshot.config().clone(),
        file: None,
    };
    let machine = Machine {
        loaded,
        models,
        control: listen(args.control.as_deref())?,
        msr_stats: args.msr_stats,
        timing: args.boot_timing.then(|| Arc::new(timing)),
    };
    let mut builder = VmBuilder::restore(snapshot);
    if !args.disks.is_empty() {
        builder = builder.disks(args.disks.clone());
    }
    if args.changed_disks {
        builder = builder.changed_disks();
    }
    let signals = session::block_signals().map_err(Failure::fault)?;
    let confined = args.confine(&machine.loaded.config, models)?;
    machine.serve(builder, signals, None, &confined)
}

/// The control socket, where one is asked for.
fn listen(path: Option<&Path>) -> Result<Option<ControlSocket>, Failure> {
    let socket = path.map(ControlSocket::bind).transpose();
    socket.map_err(Failure::usage)
}

/// What both commands know of the VM and what is wanted of it.
struct Machine<'a> {
    loaded: LoadedConfig,
    models: &'a [DeviceModel],
    /// Where other processes steer it.
    control: Option<ControlSocket>,
    msr_stats: bool,
    timing: Option<Arc<BootTiming>>,
}

impl Machine<'_> {
    fn serve(
        self,
        builder: VmBuilder,
        signals: SignalFd,
        mut trace: Option<RunTrace>,
        confined: &Confined,
    ) -> Result<(), Failure> {
        let failure = |error: VmError| Failure::of(&error, &self.loaded);
        let config = &self.loaded.config.vm;
        let grace = Duration::from_secs(config.grace.into());
        let topology = config.topology().map_err(|error| failure(error.into()))?;
        // Who steers the VM may ask for them at any time.
        let counted = self.msr_stats || self.control.is_some();
        let stats = counted.then(|| Arc::new(MsrStats::new(topology.vcpus())));

        // Without the buffer of `Stdout`: the console has its own.
        let output = io::stdout().as_fd().try_clone_to_owned();
        let output = File::from(output.map_err(Failure::fault)?);
        let scenarios = self.loaded.config.msr.scenarios.clone();
        // Who steers the VM may start some at any time.
        let watched = self.control.is_some() || !scenarios.is_empty();
        let watches = watched.then(Watches::new).transpose();
        let watches = watches.map_err(Failure::fault)?;
        let mut builder = match &watches {
            Some(watches) => {
                builder.console_output(WatchedOutput::new(output, watches.console.clone()))
            }
            None => builder.console_output(output),
        };
        builder = builder.thread_filters(confined.filters.clone());
        for model in self.models {
            builder = builder.device_model(*model);
        }
        // With a trace from the start there is none to be switched on.
        let switched = self.control.is_some() && trace.is_none();
        let switch = Arc::new(TraceSwitch::default());
        let accesses = watches.as_ref().map(|watches| watches.accesses.clone());
        let observers = [
            switched.then(|| switch.clone() as Arc<dyn MsrObserver>),
            stats.clone().map(|stats| stats as Arc<dyn MsrObserver>),
            trace.as_ref().map(RunTrace::observer),
            log::log_enabled!(log::Level::Trace).then(|| Arc::new(MsrLog) as Arc<dyn MsrObserver>),
            // After the trace, so that what a step waited for is in it before the step's mark.
            accesses.map(|accesses| accesses as Arc<dyn MsrObserver>),
        ];
        for observer in observers.into_iter().flatten() {
            builder = builder.msr_observer(observer);
        }
        if let Some(trace) = &trace {
            builder = trace.observe(builder);
        }
        if let Some(timing) = &self.timing {
            timing.mark(BootEvent::Configured);
            builder = builder.boot_timing(timing.clone());
        }
        let built = session::interruptible(&signals, || builder.build()).map_err(Failure::fault)?;
        let vm = built.map_err(failure)?;
        warn(&self.loaded, vm.msr_plan());
        let terminal = session::open_terminal().map_err(Failure::fault)?;
        let header = trace.as_mut().map(|trace| trace.prepare(&vm)).transpose()?;
        let scenarios = watches.map(|watches| PreparedScenarios::new(watches, scenarios));
        confined.leave_host()?;
        if let (Some(trace), Some(header)) = (&mut trace, &header) {
            trace.start(header, &confined.filters)?;
        }
        let vm = vm.start().map_err(failure)?;
        confined.filters.enter(Role::Main);
        drop(self.loaded);
        footprint::shrink();
        let bus = vm.msr_bus().clone();
        let live_trace = match &trace {
            Some(trace) => {
                LiveTrace::whole(switch, trace.path().to_owned(), trace.recorder().clone())
            }
            None => LiveTrace::new(switch),
        };
        let live_trace = Rc::new(RefCell::new(live_trace));
        let control = self.control.zip(stats.clone());
        let control = control.map(|(socket, stats)| session::Control {
            socket: if confined.is_confined() {
                socket.leave_path()
            } else {
                socket
            },
            stats,
            files: if confined.is_confined() {
                Files::Under(confined.snapshots.clone())
            } else {
                Files::Any
            },
        });
        let steering = session::Steering {
            control,
            trace: live_trace.clone(),
            scenarios,
        };
        let reason =
            session::serve(vm, terminal, signals, grace, steering).map_err(Failure::fault)?;
        // The reason of the shutdown counts, whether or not anybody reads the tables.
        if let Some(trace) = trace {
            trace.finish();
        }
        match live_trace.borrow_mut().finish() {
            Some(Ok((path, summary))) => tell(&path, &Ok(summary)),
            Some(Err(error)) => log::error!("the trace is not whole: {error}"),
            None => {}
        }
        if let Some(timing) = self.timing {
            timing.mark(BootEvent::Ended);
            let _ = write!(io::stderr(), "{timing}");
        }
        if let Some(stats) = stats.filter(|_| self.msr_stats) {
            let _ = write!(io::stderr(), "{}", stats.table(&bus));
        }
        exit(reason)
    }
}

/// What a guest's end is for the process.
fn exit(reason: ShutdownReason) -> Result<(), Failure> {
    match reason {
        ShutdownReason::PowerOff | ShutdownReason::Reset => Ok(()),
        ShutdownReason::DebugExit(status) => Err(debug_exit(status)),
        ShutdownReason::Stopped => Err(Failure::fault(
            "stopped before the guest switched itself off",
        )),
        ShutdownReason::Fault(fault) => Err(Failure::fault(fault)),
    }
}

/// A guest that gave the process its exit status.
pub(crate) fn debug_exit(status: u32) -> Failure {
    Failure {
        // What an exit status has room for, as with QEMU.
        status: status as u8,
        message: format!("the guest ended with status {status} by the debug-exit port"),
    }
}
