//! A virtual machine from its configuration.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use msr_bus::{DeviceModel, MsrDevice, MsrObserver, Topology, VcpuContext, VcpuId};

use crate::acpi::{self, AcpiConfig};
use crate::boot::{self, Loading};
use crate::config::{Config, ConfigError, DEFAULT_CMDLINE};
use crate::control::Control;
use crate::cpu::topology::apic_id;
use crate::cpu::{ByEffect, Cpuid, HostCpu, OnUnoffered, Unoffered};
use crate::cpu::{msrs, pmu};
use crate::devices::virtio::block::DiskConfig;
use crate::devices::{generation_id, virtio};
use crate::machine::{Machine, create_interrupt_controllers, virtio_devices};
use crate::memory;
use crate::sandbox::ThreadFilters;
use crate::shutdown::shutdown_channel;
use crate::snapshot::{self, Devices, SaveContext, Snapshot};
use crate::timing::{BootEvent, BootTiming};
use crate::vcpu::Vcpu;
use crate::vm::{Vm, VmError};
use msr_kvm::{LostRule, MsrPlan, PlanError, RefusedMsrs, VmMsrs};
use vm_memory::{Bytes, GuestAddress};

/// Collects what a VM is made of, beyond its configuration.
pub struct VmBuilder {
    config: Config,
    models: Vec<DeviceModel>,
    devices: Vec<Arc<dyn MsrDevice>>,
    observers: Vec<Arc<dyn MsrObserver>>,
    output: Box<dyn Write + Send>,
    timing: Option<Arc<BootTiming>>,
    instruction_pointers: bool,
    at_stop: Option<AtStop>,
    filters: ThreadFilters,
    snapshot: Option<Snapshot>,
    changed_disks: bool,
}

/// What a vCPU's thread does last; see [`VmBuilder::at_stop`].
pub(crate) type AtStop = Arc<dyn Fn(&dyn VcpuContext) + Send + Sync>;

impl fmt::Debug for VmBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmBuilder")
            .field("config", &self.config)
            .field("models", &self.models)
            .finish_non_exhaustive()
    }
}

impl VmBuilder {
    /// A VM of this configuration, whose console output goes nowhere.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            models: DeviceModel::all().to_vec(),
            devices: Vec::new(),
            observers: Vec::new(),
            output: Box::new(io::sink()),
            timing: None,
            instruction_pointers: false,
            at_stop: None,
            filters: ThreadFilters::default(),
            snapshot: None,
            changed_disks: false,
        }
    }

    /// Adds a device model to those that the configuration can ask for by their `type`. A model with a name that
    /// there is already takes its place.
    #[must_use]
    pub fn device_model(mut self, model: DeviceModel) -> Self {
        self.models.retain(|other| other.name() != model.name());
        self.models.push(model);
        self
    }

    /// The VM that `snapshot` has saved, to be carried on. MSR devices that were added to it by
    /// [`msr_device`](Self::msr_device) must be added again.
    pub fn restore(snapshot: Snapshot) -> Self {
        Self {
            snapshot: Some(snapshot.clone()),
            ..Self::new(snapshot.config().clone())
        }
    }

    /// Gives a restored VM other disks, as many as it had and each as large: copies of those that it had.
    /// One without a rate limit has that of the disk whose place it takes.
    #[must_use]
    pub fn disks(mut self, disks: Vec<DiskConfig>) -> Self {
        let before = std::mem::replace(&mut self.config.vm.disks, disks);
        for (disk, before) in self.config.vm.disks.iter_mut().zip(before) {
            disk.rate_limiter = disk.rate_limiter.take().or(before.rate_limiter);
        }
        self
    }

    /// Restores a VM although its disks were written to since. What the guest keeps in memory of them is wrong then.
    #[must_use]
    pub fn changed_disks(mut self) -> Self {
        self.changed_disks = true;
        self
    }

    /// Adds an MSR device to those of the configuration.
    #[must_use]
    pub fn msr_device(mut self, device: Arc<dyn MsrDevice>) -> Self {
        self.devices.push(device);
        self
    }

    /// Adds an observer that sees every MSR access that reaches userspace.
    #[must_use]
    pub fn msr_observer(mut self, observer: Arc<dyn MsrObserver>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Sets where the console's output goes.
    #[must_use]
    pub fn console_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Box::new(output);
        self
    }

    /// Sets where the times of the set-up and of the guest's boot are noted. The guest then has a boot timer
    /// ([`BOOT_TIMER`](crate::layout::BOOT_TIMER)).
    #[must_use]
    pub fn boot_timing(mut self, timing: Arc<BootTiming>) -> Self {
        self.timing = Some(timing);
        self
    }

    /// Has KVM hand over the instruction pointer with every exit (`KVM_CAP_SYNC_REGS`), so that an observer can ask
    /// for it. It costs a copy of the general registers an exit. Without that capability, which Linux has since 4.17, there is
    /// none.
    #[must_use]
    pub fn instruction_pointers(mut self) -> Self {
        self.instruction_pointers = true;
        self
    }

    /// Sets what each vCPU's thread does last, when the vCPU executes no more.
    #[must_use]
    pub fn at_stop(mut self, what: impl Fn(&dyn VcpuContext) + Send + Sync + 'static) -> Self {
        self.at_stop = Some(Arc::new(what));
        self
    }

    /// Sets the system-call filters that the VM's threads enter in [`Vm::start`]; none unless set. [`Sandbox::thread_filters`](crate::sandbox::Sandbox::thread_filters) makes them.
    #[must_use]
    pub fn thread_filters(mut self, filters: ThreadFilters) -> Self {
        self.filters = filters;
        self
    }

    /// Builds the VM, up to its first instruction.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn build(self) -> Result<Vm, VmError> {
        let timing = self.timing;
        let mark = |event| timing.iter().for_each(|timing| timing.mark(event));
        let mut config = self.config;
        config.vm.check()?;
        let topology = config.vm.topology()?;
        if let Some(snapshot) = &self.snapshot {
            snapshot.check_disks(&config.vm, self.changed_disks)?;
        }
        // Read once: the file may change until a snapshot is restored.
        let profile = config.msr.profile_layer().map_err(PlanError::from)?;
        config.msr.layers.extend(profile);
        config.msr.profile = None;
        let devices = virtio_devices(&config.vm)?;
        let mut plan = MsrPlan::builder(topology, config.cpu.cpu_identity()?)
            .config(&config.msr, &self.models)?;
        for device in self.devices {
            plan = plan.device(device);
        }
        for observer in self.observers {
            plan = plan.observer(observer);
        }
        if self.instruction_pointers {
            plan = plan.instruction_pointers();
        }
        let plan = plan.build()?;
        warn_of_lost(&plan.lost);

        let (memory, loading) = match &self.snapshot {
            Some(snapshot) => (snapshot.map_memory(&config.vm)?, None),
            None => {
                let kernel = config.vm.kernel.clone().ok_or(ConfigError::NoKernel)?;
                let memory = memory::map(&config.vm)?;
                let loading = Loading::start(
                    memory.clone(),
                    kernel,
                    config.vm.kaslr,
                    config.vm.initrd.clone(),
                    timing.clone(),
                );
                let loading = loading.map_err(VmError::host("cannot start a thread"))?;
                (memory, Some(loading))
            }
        };
        mark(BootEvent::MsrPlan);

        let kvm = open_kvm().map_err(VmError::Open)?;
        let vm = Arc::new(create_vm(&kvm)?);
        // Before the irqchip, whose creation leaves RCU callbacks pending. KVM waits out a grace period when a filter
        // is replaced; with callbacks pending that takes 10 ms and more, and without some microseconds.
        let guest_memory = memory.clone();
        let msrs = VmMsrs::install(&vm, plan, move |address, buf: &mut [u8]| {
            guest_memory.read_slice(buf, GuestAddress(address)).is_ok()
        })?;
        mark(BootEvent::MsrFilter);
        memory::register(&vm, &memory)?;
        mark(BootEvent::Memory);
        create_interrupt_controllers(&vm)?;
        mark(BootEvent::InterruptControllers);

        let (shutdown, shutdown_receiver) =
            shutdown_channel().map_err(VmError::host("cannot make an eventfd"))?;
        let virtio = virtio::attach(&vm, &memory, devices)?;
        let machine = Machine::new(&vm, &shutdown, self.output, virtio, &config, timing.clone())?;
        mark(BootEvent::Devices);

        let fds = create_vcpus(&vm, topology)?;
        let host = HostCpu::query(&kvm, &fds[0])?;
        let has_msr = |index| msrs.plan().has_msr(index);
        let cpuid = Cpuid::new(&host, &config.cpu, topology, &has_msr)?;
        warn_of_unoffered(cpuid.unoffered(), config.cpu.unoffered);
        let mut leaves = Vec::with_capacity(fds.len());
        for (id, fd) in (0..).map(VcpuId).zip(&fds) {
            let cpuid = cpuid.for_vcpu(id);
            fd.set_cpuid2(&cpuid)
                .map_err(VmError::kvm("KVM_SET_CPUID2"))?;
            msrs::set(fd)?;
            // The vCPUs are alike.
            if id == VcpuId(0) && config.cpu.pmu == Some(true) {
                let vendor = config.cpu.cpu_identity()?.vendor;
                pmu::require(vendor, &host.supported, fd)?;
            }
            let refused = msrs.plan().set_initial(fd)?;
            if id == VcpuId(0) && !refused.is_empty() {
                log::warn!(
                    "this host's KVM does not take initial values of the CPU model; the guest goes without: {}",
                    RefusedMsrs(&refused)
                );
            }
            leaves.push(snapshot::leaves(&cpuid));
        }
        let tsc_khz = match &self.snapshot {
            Some(snapshot) => {
                snapshot.check_cpuid(&leaves)?;
                snapshot.set_tsc_khz(&fds, host.tsc_khz)?
            }
            None => host.tsc_khz,
        };
        msrs.clock().set_tsc_khz(tsc_khz);
        mark(BootEvent::Vcpus);

        if let Some(snapshot) = &self.snapshot {
            let devices = Devices {
                console: &machine.console,
                power: &machine.power,
                rtc: &machine.rtc,
                pci: &machine.pci,
                virtio: &machine.virtio,
                bus: msrs.bus(),
            };
            snapshot.restore(&kvm, &vm, &fds, &devices, &msrs.plan().live)?;
        }
        generation_id::renew(&memory)
            .map_err(VmError::host("cannot make a generation identifier"))?;
        if self.snapshot.is_some() {
            generation_id::notify(&vm).map_err(VmError::kvm("KVM_IRQ_LINE"))?;
        }
        let mut loaded = None;
        if let Some(loading) = loading {
            let pci_buses: BTreeSet<u8> = config
                .cpu
                .pci
                .iter()
                .map(|function| function.address.bus)
                .collect();
            let rsdp = acpi::write(
                &memory,
                &AcpiConfig {
                    topology,
                    virtio: &machine
                        .virtio
                        .iter()
                        .map(|d| d.slot().into())
                        .collect::<Vec<_>>(),
                    i8042: false,
                    pci_buses: &pci_buses,
                },
            )?;
            let images = loading.finish()?;
            let mut cmdline = config.vm.cmdline.clone();
            if !images.is_linux() {
                // The default is for Linux.
                if cmdline == DEFAULT_CMDLINE {
                    cmdline.clear();
                }
            } else if let Some(parameters) = cpuid.kernel_parameters() {
                cmdline = format!("{cmdline} {parameters}");
            }
            let entry = images.write_boot_data(&memory, &cmdline, Some(rsdp))?;
            boot::registers::set(&fds[0], &entry)?;
            loaded = Some(images);
        }
        mark(BootEvent::Built);

        let save_context = SaveContext {
            kvm,
            config,
            cpuid: leaves,
            tsc_khz,
            memory: memory.clone(),
            rtc: machine.rtc.clone(),
            pci: machine.pci.clone(),
            saving: Mutex::default(),
        };
        let control = Arc::new(Control::new(fds.len()));
        let vcpus = (0..)
            .zip(fds)
            .map(|(id, mut fd)| {
                Ok(Vcpu {
                    msrs: msrs.vcpu(VcpuId(id), &mut fd)?,
                    fd,
                    memory: memory.clone(),
                    io: machine.io.clone(),
                    control: control.clone(),
                    shutdown: shutdown.clone(),
                    exits: 0,
                    at_stop: self.at_stop.clone(),
                })
            })
            .collect::<Result<Vec<_>, VmError>>()?;
        Ok(Vm {
            fd: vm,
            images: loaded,
            msrs,
            vcpus,
            control,
            machine,
            shutdown,
            shutdown_receiver,
            timing,
            filters: self.filters,
            save_context: Arc::new(save_context),
            restored: self.snapshot.is_some(),
        })
    }
}

/// Opens /dev/kvm, whatever signals come meanwhile.
fn open_kvm() -> Result<Kvm, kvm_ioctls::Error> {
    loop {
        match Kvm::new() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other,
        }
    }
}

/// Makes a VM, whatever signals come meanwhile.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(VmError::kvm("KVM_CREATE_VM")),
        }
    }
}

/// Tells of the configuration's own rules that allow what its model or profile denies. What those deny of each other is what
/// combining them is for, and `msr-vmm` tells that.
pub(crate) fn warn_of_lost(lost: &[LostRule]) {
    for lost in lost.iter().filter(|lost| lost.is_of_user()) {
        log::warn!("{lost}");
    }
}

/// Tells of features that KVM does not offer, before the guest may hang of one.
fn warn_of_unoffered(unoffered: &[Unoffered], then: OnUnoffered) {
    if then == OnUnoffered::Hide && !unoffered.is_empty() {
        let names: Vec<&str> = unoffered.iter().map(|u| u.name.as_str()).collect();
        let names = names.join(", ");
        log::warn!(
            "this host's KVM does not offer features of the CPU model, which are hidden: {names}"
        );
        return;
    }
    for line in ByEffect(unoffered).lines() {
        log::warn!("this host's KVM does not offer features that the guest is shown: {line}");
    }
}

/// One vCPU for each thread of the topology; KVM wants the APIC ID as its number.
fn create_vcpus(vm: &VmFd, topology: Topology) -> Result<Vec<VcpuFd>, VmError> {
    (0..topology.vcpus())
        .map(|id| {
            vm.create_vcpu(apic_id(&topology, VcpuId(id)).into())
                .map_err(VmError::kvm("KVM_CREATE_VCPU"))
        })
        .collect()
}
