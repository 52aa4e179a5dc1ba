//! The recording part of `msr-vmm run`: `--trace`, `--trace-kernel` and `--observe`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msr_bus::{DeviceModel, MsrObserver, Topology, VcpuId};
use msr_filter::MsrRange;
use msr_trace::{Header, Kernel, NotSeen, Record, Recorder, Recording, Summary};

use crate::builder::VmBuilder;
use crate::cli::Failure;
use crate::cli::plan::plan;
use crate::config::{Config, LoadedConfig};
use crate::cpu::topology::apic_id;
use crate::sandbox::{Role, ThreadFilters};
use crate::trace::{
    KernelTrace, Observe, Sink, TraceObserver, header, monotonic, not_seen_by_tracepoints,
    not_seen_without_help,
};
use crate::vm::Vm;

/// What of `run`'s arguments is about the trace.
#[derive(Debug)]
pub(crate) struct TraceOptions<'a> {
    pub(crate) file: &'a PathBuf,
    pub(crate) kernel: bool,
    /// `Some` of nothing in particular, or of ranges.
    pub(crate) observe: Option<&'a [MsrRange]>,
}

/// A trace of a VM that is being set up or runs.
pub(crate) struct RunTrace {
    file: File,
    path: PathBuf,
    kernel: bool,
    observed: Option<Vec<NotSeen>>,
    config: String,
    image: String,
    topology: Topology,
    recorder: Arc<Recorder>,
    observer: Arc<TraceObserver>,
    from_kernel: Option<KernelTrace<ToRecorder>>,
    recording: Option<Recording>,
}

impl RunTrace {
    /// Opens the file and adds the observing devices to `config`, which is the one that was loaded.
    pub(crate) fn new(
        options: &TraceOptions<'_>,
        loaded: &LoadedConfig,
        config: &mut Config,
        models: &[DeviceModel],
    ) -> Result<Self, Failure> {
        let topology = config.vm.topology().map_err(Failure::usage)?;
        let mut observed = None;
        if let Some(named) = options.observe {
            let observe = Observe::new(&plan(loaded, models)?, named).map_err(Failure::fault)?;
            config.msr.devices.extend(observe.devices);
            observed = Some(observe.not_seen);
        }
        let file = File::create(options.file).map_err(|error| {
            Failure::usage(format!("--trace {}: {error}", options.file.display()))
        })?;
        let recorder = Arc::new(Recorder::new(topology.vcpus()));
        let kernel = config.vm.kernel.as_deref();
        let image = kernel.map_or(String::new(), |path| {
            // For whoever reads the trace in another directory.
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            path.display().to_string()
        });
        Ok(Self {
            file,
            path: options.file.clone(),
            kernel: options.kernel,
            observed,
            config: toml::to_string(config).map_err(Failure::fault)?,
            image,
            topology,
            observer: Arc::new(TraceObserver::new(recorder.clone())),
            recorder,
            from_kernel: None,
            recording: None,
        })
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its records are left.
    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The observer that records.
    pub(crate) fn observer(&self) -> Arc<dyn MsrObserver> {
        self.observer.clone()
    }

    /// Has the VM give what records hold.
    pub(crate) fn observe(&self, builder: VmBuilder) -> VmBuilder {
        let observer = self.observer.clone();
        builder
            .instruction_pointers()
            .at_stop(move |cpu| observer.look_at_lstar(cpu))
    }

    /// Reads what only the host's files tell, and gives what the trace begins with. Belongs before the process leaves them.
    pub(crate) fn prepare(&mut self, vm: &Vm) -> Result<Header, Failure> {
        let kernel = self.kernel.then(|| {
            let numbers = (0..self.topology.vcpus()).map(|id| apic_id(&self.topology, VcpuId(id)));
            let sink = ToRecorder(self.recorder.clone());
            KernelTrace::start(&[std::process::id()], numbers.collect(), sink)
        });
        let kernel = kernel
            .transpose()
            .map_err(|error| Failure::fault(format!("--trace-kernel: {error}")))?;
        self.from_kernel = kernel;
        Ok(self.header(vm))
    }

    /// Begins to record, by a thread that enters its filter first. Belongs before the first vCPU runs.
    pub(crate) fn start(
        &mut self,
        header: &Header,
        filters: &ThreadFilters,
    ) -> Result<(), Failure> {
        let cannot = |error| Failure::fault(format!("--trace {}: {error}", self.path.display()));
        let file = self.file.try_clone().map_err(cannot)?;
        let filters = filters.clone();
        let confine = move || filters.enter(Role::Trace);
        let recorder = self.recorder.clone();
        let recording = Recording::start_with(file, header, recorder, monotonic, confine);
        self.recording = Some(recording.map_err(cannot)?);
        Ok(())
    }

    fn header(&self, vm: &Vm) -> Header {
        let mut header = header(self.topology.vcpus(), Some(vm.msr_plan()));
        header.topology = format!("{:?}", self.topology);
        header.config.clone_from(&self.config);
        header.kernel = Kernel {
            path: self.image.clone(),
            build_id: vm.kernel_build_id(),
        };
        header.with_rip = true;
        let spec = &vm.msr_plan().spec;
        header.not_seen = match &self.observed {
            _ if self.kernel => not_seen_by_tracepoints(Some(spec)),
            Some(observed) => observed.clone(),
            None => vec![not_seen_without_help()],
        };
        header
    }

    /// Ends the trace and says what it came to.
    pub(crate) fn finish(self) {
        if let Some(Err(error)) = self.from_kernel.map(KernelTrace::finish) {
            log::error!("--trace-kernel: {error}");
        }
        if let Some(recording) = self.recording {
            tell(&self.path, &recording.finish());
        }
    }
}

/// Says what the trace at `path` came to.
pub(crate) fn tell(path: &Path, outcome: &io::Result<Summary>) {
    let path = path.display();
    let text = match outcome {
        Ok(summary) => format!(
            "msr-vmm: {path}: {} records, {} lost, {} bytes\n",
            summary.records, summary.lost, summary.bytes
        ),
        Err(error) => format!("msr-vmm: the trace {path} is not whole: {error}\n"),
    };
    let _ = io::stderr().write_all(text.as_bytes());
}

/// KVM's records join those of the exits.
struct ToRecorder(Arc<Recorder>);

impl Sink for ToRecorder {
    fn record(&mut self, record: Record) {
        self.0.push(record);
    }

    fn lost(&mut self, vcpu: u16, count: u64) {
        self.0.lost_in_kernel(vcpu, count);
    }
}
