//! A virtual machine from its configuration: everything is set up here, and nothing runs yet.

use std::io::{self, Write};
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use msr_bus::{DeviceContext, MsrDevice, MsrObserver, Topology, VcpuId};
use vm_device::DevicePio;
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiConfig, AcpiError};
use crate::boot::registers::RegistersError;
use crate::boot::{self, BootError, Loading};
use crate::clock::HostClock;
use crate::config::{Config, ConfigError, VmConfig};
use crate::control::Control;
use crate::cpu::msrs::{self, BootMsrsError};
use crate::cpu::topology::apic_id;
use crate::cpu::{CpuModelError, Cpuid, CpuidError, HostCpu, HostCpuError};
use crate::devices::boot_timer::BootTimer;
use crate::devices::power::{I8042, PowerManagement, ResetRegister};
use crate::devices::rtc::Rtc;
use crate::devices::serial::Console;
use crate::devices::virtio::block::{Block, DiskError};
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::{self, AttachError, MmioDevice, Slot, VirtioDevice};
use crate::ending::{EndingReceiver, EndingSender, endings};
use crate::layout;
use crate::memory::{self, MemoryError};
use crate::msr::{MsrPlan, PlanError, VcpuView};
use crate::running::RunningVm;
use crate::timing::{BootTiming, Moment, TimedOutput};
use crate::vcpu::Vcpu;

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The MSR configuration cannot be carried out.
    #[error(transparent)]
    Msr(#[from] PlanError),
    /// The guest's memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel, the initrd or the command line cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The CPU that the configuration asks for cannot be.
    #[error("[cpu]: {0}")]
    CpuModel(#[from] CpuModelError),
    /// CPUID cannot be what the configuration asks for.
    #[error("[cpu]: {0}")]
    Cpuid(#[from] CpuidError),
    /// KVM does not say what CPU it offers.
    #[error(transparent)]
    HostCpu(#[from] HostCpuError),
    /// A vCPU's registers cannot be set.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// A vCPU's MSRs cannot be set.
    #[error(transparent)]
    BootMsrs(#[from] BootMsrsError),
    /// The ACPI tables cannot be written.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A virtio device cannot be made part of the machine.
    #[error(transparent)]
    Virtio(#[from] AttachError),
    /// KVM cannot be opened.
    #[error("cannot open /dev/kvm: {0}; `msr-vmm check` says what is missing")]
    Open(kvm_ioctls::Error),
    /// KVM refused part of the set-up.
    #[error("{what} failed: {source}; `msr-vmm check` says what this KVM can do")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The host refused something else.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl VmError {
    /// Whether the user can mend it by asking for something else (exit status 2), or the host or its KVM
    /// refuses (1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Boot(_)
            | Self::CpuModel(_)
            | Self::Cpuid(_)
            | Self::Disk(_) => true,
            Self::Virtio(error) => matches!(error, AttachError::TooMany(_)),
            Self::Memory(error) => !matches!(error, MemoryError::Register(_)),
            Self::Msr(error) => error.is_usage(),
            _ => false,
        }
    }

    fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Collects what a VM is made of, beyond its configuration.
pub struct VmBuilder {
    config: Config,
    devices: Vec<Arc<dyn MsrDevice>>,
    observer: Option<Arc<dyn MsrObserver>>,
    output: Box<dyn Write + Send>,
    timing: Option<Arc<BootTiming>>,
}

impl VmBuilder {
    /// A VM of this configuration, whose console output goes nowhere.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            devices: Vec::new(),
            observer: None,
            output: Box::new(io::sink()),
            timing: None,
        }
    }

    /// Adds an MSR device to those of the configuration.
    #[must_use]
    pub fn msr_device(mut self, device: Arc<dyn MsrDevice>) -> Self {
        self.devices.push(device);
        self
    }

    /// Sets the observer that sees every MSR access that reaches userspace.
    #[must_use]
    pub fn msr_observer(mut self, observer: Arc<dyn MsrObserver>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Sets where the console's output goes.
    #[must_use]
    pub fn console_output(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Box::new(output);
        self
    }

    /// Sets where the times of the set-up and of the guest's boot are noted. The guest then has a boot timer
    /// ([`layout::BOOT_TIMER`]).
    #[must_use]
    pub fn boot_timing(mut self, timing: Arc<BootTiming>) -> Self {
        self.timing = Some(timing);
        self
    }

    /// Builds the VM, up to its first instruction.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn build(self) -> Result<Vm, VmError> {
        let timing = self.timing;
        let mark = |moment| timing.iter().for_each(|timing| timing.mark(moment));
        let config = self.config;
        let topology = config.vm.topology()?;
        let kernel = config.vm.kernel.as_deref().ok_or(ConfigError::NoKernel)?;
        let devices = virtio_devices(&config.vm)?;
        let clock = Arc::new(HostClock::new(topology.vcpus()));
        let context = DeviceContext {
            topology,
            cpu: config.cpu.cpu_identity()?,
            clock: clock.clone(),
        };
        let plan = MsrPlan::new(&config.msr, &self.devices, self.observer, &context)?;

        let memory = memory::map(&config.vm)?;
        let loading = Loading::start(
            memory.clone(),
            kernel.to_owned(),
            config.vm.initrd.clone(),
            timing.clone(),
        )
        .map_err(VmError::host("cannot start a thread"))?;
        mark(Moment::MsrPlan);

        let kvm = Kvm::new().map_err(VmError::Open)?;
        let vm = Arc::new(kvm.create_vm().map_err(VmError::kvm("KVM_CREATE_VM"))?);
        // Before the irqchip, whose creation leaves RCU callbacks pending. KVM waits out a grace period when a filter
        // is replaced; with callbacks pending that takes 10 ms and more, and without some microseconds.
        plan.install(&vm)?;
        mark(Moment::MsrFilter);
        memory::register(&vm, &memory)?;
        mark(Moment::Memory);
        create_interrupt_controllers(&vm)?;
        mark(Moment::InterruptControllers);

        let (ended, ending) = endings().map_err(VmError::host("cannot make an eventfd"))?;
        let virtio = virtio::attach(&vm, &memory, devices)?;
        let machine = Machine::new(&vm, &ended, self.output, virtio, timing.clone())?;
        mark(Moment::Devices);

        let fds = create_vcpus(&vm, topology)?;
        let host = HostCpu::query(&kvm, &fds[0])?;
        clock.set_tsc_khz(host.tsc_khz);
        let cpuid = Cpuid::new(&host, &config.cpu, topology)?;
        for (id, fd) in (0..).map(VcpuId).zip(&fds) {
            fd.set_cpuid2(&cpuid.for_vcpu(id))
                .map_err(VmError::kvm("KVM_SET_CPUID2"))?;
            msrs::set(fd)?;
        }
        mark(Moment::Vcpus);

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
            },
        )?;
        let mut cmdline = config.vm.cmdline.clone();
        if let Some(parameters) = cpuid.kernel_parameters() {
            cmdline = format!("{cmdline} {parameters}");
        }
        let entry = loading.finish()?.hand_over(&memory, &cmdline, Some(rsdp))?;
        boot::registers::set(&fds[0], &entry)?;
        mark(Moment::Built);

        let control = Arc::new(Control::new(fds.len()));
        let vcpus = (0..)
            .zip(fds)
            .map(|(id, fd)| Vcpu {
                fd,
                location: topology.locate(VcpuId(id)),
                memory: memory.clone(),
                bus: plan.bus.clone(),
                io: machine.io.clone(),
                control: control.clone(),
                ended: ended.clone(),
                one_msr: VcpuView::room(),
            })
            .collect();
        Ok(Vm {
            fd: vm,
            plan,
            vcpus,
            control,
            clock,
            machine,
            ended,
            ending,
            timing,
        })
    }
}

/// The devices behind ports, and what raises their interrupts.
pub(crate) struct Machine {
    pub(crate) io: Arc<IoManager>,
    pub(crate) console: Arc<Console>,
    pub(crate) power: Arc<PowerManagement>,
    pub(crate) virtio: Vec<Arc<MmioDevice>>,
}

impl Machine {
    fn new(
        vm: &Arc<VmFd>,
        ended: &EndingSender,
        output: Box<dyn Write + Send>,
        virtio: Vec<Arc<MmioDevice>>,
        timing: Option<Arc<BootTiming>>,
    ) -> Result<Self, VmError> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(VmError::host("cannot make an eventfd"))?;
        vm.register_irqfd(&irq, layout::COM1_IRQ)
            .map_err(VmError::kvm("KVM_IRQFD"))?;
        let output = match timing.clone() {
            Some(timing) => Box::new(TimedOutput { output, timing }),
            None => output,
        };
        let console = Console::new(irq, output).map_err(VmError::host("cannot make an eventfd"))?;
        let power = PowerManagement::new(vm.clone(), ended.clone());

        let mut io = IoManager::new();
        let mut add = |port, length, device: Arc<dyn DevicePio + Send + Sync>| {
            let range = PioRange::new(PioAddress(port), length)
                .expect("the layout's ports end below 0x10000");
            io.register_pio(range, device)
                .expect("the layout's ports do not overlap");
        };
        add(layout::COM1, 8, console.clone());
        add(layout::I8042, 5, Arc::new(I8042::new(ended.clone())));
        add(layout::RTC, 2, Arc::new(Rtc::new()));
        add(layout::PM1A_EVENT, 6, power.clone());
        add(
            layout::ACPI_RESET,
            1,
            Arc::new(ResetRegister(ended.clone())),
        );
        if let Some(timing) = timing {
            add(layout::BOOT_TIMER, 1, Arc::new(BootTimer(timing)));
        }
        for device in &virtio {
            let Slot { base, size, .. } = device.slot();
            let range = MmioRange::new(MmioAddress(base), size)
                .expect("the layout's slots end below 4 GiB");
            io.register_mmio(range, device.clone())
                .expect("the layout's slots do not overlap");
        }
        Ok(Self {
            io: Arc::new(io),
            console,
            power,
            virtio,
        })
    }
}

/// The virtio devices of the configuration, in the order in which they get slots.
fn virtio_devices(config: &VmConfig) -> Result<Vec<Box<dyn VirtioDevice>>, DiskError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        devices.push(Box::new(Block::open(disk)?));
    }
    if config.entropy {
        devices.push(Box::new(Entropy));
    }
    Ok(devices)
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

/// The PICs, the I/O APIC, the local APICs and the PIT, all in the kernel.
fn create_interrupt_controllers(vm: &VmFd) -> Result<(), VmError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(VmError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(VmError::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(VmError::kvm("KVM_CREATE_IRQCHIP"))?;
    // With the speaker port in the kernel too, its polling during calibration costs no exits.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(VmError::kvm("KVM_CREATE_PIT2"))
}

/// A VM that is ready to execute its first instruction.
pub struct Vm {
    pub(crate) fd: Arc<VmFd>,
    pub(crate) plan: MsrPlan,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) control: Arc<Control>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) machine: Machine,
    pub(crate) ended: EndingSender,
    pub(crate) ending: EndingReceiver,
    pub(crate) timing: Option<Arc<BootTiming>>,
}

impl Vm {
    /// A builder for a VM of this configuration.
    pub fn builder(config: Config) -> VmBuilder {
        VmBuilder::new(config)
    }

    /// The bus that answers MSR accesses, and the filter that makes KVM ask it.
    pub fn msr_plan(&self) -> &MsrPlan {
        &self.plan
    }

    /// Starts the vCPUs, a thread for each.
    ///
    /// # Errors
    ///
    /// [`VmError::Host`] where the host has no more threads; those already started have ended then.
    pub fn start(self) -> Result<RunningVm, VmError> {
        RunningVm::start(self)
    }
}
