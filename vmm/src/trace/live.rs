//! A trace that begins and ends while its VM runs.
//!
//! It is as whole as one that began with the VM: its header has the configuration and the filter in force at its start, the
//! vCPUs hand over instruction pointers as long as it is on, and the guest's `IA32_LSTAR`, by which its functions have names,
//! is read at once.
//!
//! Ending it takes three steps, so that no record is lost and none comes too late: the switch is turned off, each vCPU's thread
//! answers once more and so has left the observer, and the writer takes what has been pushed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::KVM_SYNC_X86_REGS;
use kvm_ioctls::Cap;
use msr_bus::VcpuId;
use msr_trace::{Header, Kernel, Recorder, Recording, Summary};

use super::header::{header_with, policy};
use super::not_seen::not_seen_without_help;
use super::observer::{TraceObserver, monotonic};
use super::switch::TraceSwitch;
use crate::running::RunningVm;

/// A trace that cannot begin or end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveTraceError {
    /// Another one is on.
    #[error("a trace into {} is on already; `trace stop` ends it", .0.display())]
    On(PathBuf),
    /// The VM was started with one.
    #[error("the trace into {} that --trace began is on until the guest ends", .0.display())]
    Whole(PathBuf),
    /// None is on.
    #[error("no trace is on; `trace start FILE` begins one")]
    Off,
    /// The file is there.
    #[error("{} exists; name a file that does not", .0.display())]
    Exists(PathBuf),
    /// The file cannot be made or written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The trace of a running VM: the one that is on, if one is.
#[derive(Debug)]
pub struct LiveTrace {
    switch: Arc<TraceSwitch>,
    state: State,
}

#[derive(Debug)]
enum State {
    Off,
    /// One that began with the VM and ends with it is on.
    Whole(PathBuf, Arc<Recorder>),
    On(Trace),
}

#[derive(Debug)]
struct Trace {
    path: PathBuf,
    recorder: Arc<Recorder>,
    recording: Recording,
    /// Whether the vCPUs hand over instruction pointers for this trace alone.
    desynchronize: bool,
}

impl LiveTrace {
    /// None is on. `switch` is among the VM's observers.
    pub fn new(switch: Arc<TraceSwitch>) -> Self {
        Self {
            switch,
            state: State::Off,
        }
    }

    /// One is on from the VM's start to its end, by `recorder` into the file at `path`, so that no other can be.
    pub fn whole(switch: Arc<TraceSwitch>, path: PathBuf, recorder: Arc<Recorder>) -> Self {
        Self {
            switch,
            state: State::Whole(path, recorder),
        }
    }

    /// Marks in the trace that is on, if one is, what was done to the VM from outside, and when by [`monotonic`].
    pub fn mark(&self, time: u64, text: String) {
        if let State::Whole(_, recorder) | State::On(Trace { recorder, .. }) = &self.state {
            recorder.mark(time, text);
        }
    }

    /// The file of the trace that is on.
    pub fn path(&self) -> Option<&Path> {
        match &self.state {
            State::Off => None,
            State::Whole(path, _) | State::On(Trace { path, .. }) => Some(path),
        }
    }

    /// Begins a trace of `vm` in a new file.
    ///
    /// # Errors
    ///
    /// [`LiveTraceError`]; there is no new file then.
    pub fn start(&mut self, vm: &RunningVm, path: &Path) -> Result<(), LiveTraceError> {
        match &self.state {
            State::Off => {}
            State::Whole(path, _) => return Err(LiveTraceError::Whole(path.clone())),
            State::On(trace) => return Err(LiveTraceError::On(trace.path.clone())),
        }
        let cannot = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => LiveTraceError::Exists(path.to_owned()),
            _ => LiveTraceError::Write {
                path: path.to_owned(),
                source,
            },
        };
        let file = File::create_new(path).map_err(cannot)?;
        let recorder = Arc::new(Recorder::new(vm.vcpus()));
        let synchronizes =
            vm.fd().check_extension_int(Cap::SyncRegs) as u32 & KVM_SYNC_X86_REGS != 0;
        let header = header(vm, synchronizes);
        let recording = Recording::start(file, &header, recorder.clone(), monotonic);
        let recording = recording.map_err(|error| {
            // It has no header, so it is no trace.
            let _ = fs::remove_file(path);
            cannot(error)
        })?;
        let observer = Arc::new(TraceObserver::new(recorder.clone()));
        let mut desynchronize = false;
        for vcpu in (0..vm.vcpus()).map(VcpuId) {
            let observer = observer.clone();
            let began = vm.on_vcpu(vcpu, move |vcpu| {
                let begins = synchronizes && !vcpu.msrs.synchronizes_registers();
                if begins {
                    vcpu.msrs.synchronize_registers(&mut vcpu.fd);
                }
                vcpu.msrs
                    .with_context(&vcpu.fd, |cpu| observer.look_at_lstar(cpu));
                begins
            });
            // One that has ended makes no more accesses.
            desynchronize |= began.unwrap_or(false);
        }
        self.switch.turn_on(observer);
        self.state = State::On(Trace {
            path: path.to_owned(),
            recorder,
            recording,
            desynchronize,
        });
        Ok(())
    }

    /// Ends the trace, and says where it is and what it came to.
    ///
    /// # Errors
    ///
    /// [`LiveTraceError::Off`], [`LiveTraceError::Whole`], and [`LiveTraceError::Write`] where the file is not whole.
    pub fn stop(&mut self, vm: &RunningVm) -> Result<(PathBuf, Summary), LiveTraceError> {
        match &self.state {
            State::Off => return Err(LiveTraceError::Off),
            State::Whole(path, _) => return Err(LiveTraceError::Whole(path.clone())),
            State::On(_) => {}
        }
        self.switch.turn_off();
        if let State::On(trace) = &self.state {
            let desynchronize = trace.desynchronize;
            for vcpu in (0..vm.vcpus()).map(VcpuId) {
                let _ = vm.on_vcpu(vcpu, move |vcpu| {
                    if desynchronize {
                        vcpu.msrs.desynchronize_registers(&mut vcpu.fd);
                    }
                });
            }
        }
        self.finish().unwrap_or(Err(LiveTraceError::Off))
    }

    /// Ends the trace, if one is on, of a VM whose vCPUs execute no more.
    pub fn finish(&mut self) -> Option<Result<(PathBuf, Summary), LiveTraceError>> {
        let State::On(trace) = std::mem::replace(&mut self.state, State::Off) else {
            return None;
        };
        self.switch.turn_off();
        let Trace {
            path, recording, ..
        } = trace;
        Some(match recording.finish() {
            Ok(summary) => Ok((path, summary)),
            Err(source) => Err(LiveTraceError::Write { path, source }),
        })
    }
}

fn header(vm: &RunningVm, with_rip: bool) -> Header {
    let filter = vm.filter_in_force();
    let policy = policy(&filter.spec, &filter.sources, vm.msr_bus());
    let mut header = header_with(vm.vcpus(), Some(policy));
    let config = &vm.save_context().config;
    if let Ok(topology) = config.vm.topology() {
        header.topology = format!("{topology:?}");
    }
    // It was written to a file before, or could have been.
    header.config = toml::to_string(config).unwrap_or_default();
    let path = config.vm.kernel.as_deref();
    header.kernel = Kernel {
        path: path.map_or(String::new(), |path| path.display().to_string()),
        build_id: vm.kernel_build_id(),
    };
    header.with_rip = with_rip;
    header.not_seen = vec![not_seen_without_help()];
    header
}
