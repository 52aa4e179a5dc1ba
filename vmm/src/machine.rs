//! The machine around the vCPUs: interrupt controllers, and the devices behind ports and addresses.

use std::io::Write;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use vm_device::DevicePio;
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vmm_sys_util::eventfd::EventFd;

use crate::config::{Config, ConfigError, VmConfig};
use crate::devices::boot_timer::BootTimer;
use crate::devices::debug_exit::DebugExit;
use crate::devices::pci::PciConfigSpace;
use crate::devices::power::{I8042, PowerManagement, ResetRegister};
use crate::devices::rtc::Rtc;
use crate::devices::serial::Console;
use crate::devices::virtio::block::{Block, DiskError};
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::{MmioDevice, Slot, VirtioDevice};
use crate::layout;
use crate::shutdown::ShutdownSender;
use crate::timing::{BootTiming, TimedOutput};
use crate::vm::VmError;

/// The devices behind ports, and what raises their interrupts.
pub(crate) struct Machine {
    pub(crate) io: Arc<IoManager>,
    pub(crate) console: Arc<Console>,
    pub(crate) power: Arc<PowerManagement>,
    pub(crate) rtc: Arc<Rtc>,
    pub(crate) pci: Arc<PciConfigSpace>,
    pub(crate) virtio: Vec<Arc<MmioDevice>>,
}

impl Machine {
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        shutdown: &ShutdownSender,
        output: Box<dyn Write + Send>,
        virtio: Vec<Arc<MmioDevice>>,
        config: &Config,
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
        let rtc = Arc::new(Rtc::new());
        let pci = Arc::new(PciConfigSpace::new(&config.cpu.pci));
        let power = PowerManagement::new(vm.clone(), shutdown.clone());

        let mut io = IoManager::new();
        if let Some(port) = config.vm.debug_exit {
            let device = Arc::new(DebugExit(shutdown.clone()));
            io.register_pio(debug_exit_range(port)?, device)
                .expect("it is the first");
        }
        let mut add = |port, length, device: Arc<dyn DevicePio + Send + Sync>| {
            let range = PioRange::new(PioAddress(port), length)
                .expect("the layout's ports end below 0x10000");
            io.register_pio(range, device)
                .expect("the layout's ports do not overlap");
        };
        add(layout::COM1, 8, console.clone());
        add(layout::I8042, 5, Arc::new(I8042::new(shutdown.clone())));
        add(layout::RTC, 2, rtc.clone());
        add(layout::PCI_CONFIG, 8, pci.clone());
        add(layout::PM1A_EVENT, 6, power.clone());
        add(
            layout::ACPI_RESET,
            1,
            Arc::new(ResetRegister(shutdown.clone())),
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
            rtc,
            pci,
            virtio,
        })
    }
}

/// The debug exit's ports, if no device of [`Machine::new`] has one of them.
fn debug_exit_range(port: u16) -> Result<PioRange, ConfigError> {
    const WIDTH: u16 = 4;
    const TAKEN: [(u16, u16); 7] = [
        (layout::COM1, 8),
        (layout::I8042, 5),
        (layout::RTC, 2),
        (layout::PCI_CONFIG, 8),
        (layout::PM1A_EVENT, 6),
        (layout::ACPI_RESET, 1),
        (layout::BOOT_TIMER, 1),
    ];
    let end = |first: u16, count: u16| u32::from(first) + u32::from(count);
    let taken = TAKEN.iter().any(|(first, count)| {
        u32::from(port) < end(*first, *count) && u32::from(*first) < end(port, WIDTH)
    });
    let range = PioRange::new(PioAddress(port), WIDTH);
    range
        .ok()
        .filter(|_| !taken)
        .ok_or(ConfigError::DebugExit(port))
}

/// The virtio devices of the configuration, in the order in which they get slots.
pub(crate) fn virtio_devices(config: &VmConfig) -> Result<Vec<Box<dyn VirtioDevice>>, DiskError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        devices.push(Box::new(Block::open(disk)?));
    }
    if config.entropy {
        devices.push(Box::new(Entropy::new(config.entropy_rate_limiter.as_ref())));
    }
    Ok(devices)
}

/// The PICs, the I/O APIC, the local APICs and the PIT, all in the kernel.
pub(crate) fn create_interrupt_controllers(vm: &VmFd) -> Result<(), VmError> {
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
