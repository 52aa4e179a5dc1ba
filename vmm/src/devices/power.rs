//! How a guest ends: the ACPI power management registers, the ACPI reset register and the i8042's reset line.

use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use crate::layout;
use crate::shutdown::{ShutdownReason, ShutdownSender};

/// `PWRBTN_STS` and `PWRBTN_EN` (ACPI 6.5, tables 4.11 and 4.12).
const POWER_BUTTON: u16 = 1 << 8;
/// `SCI_EN` (ACPI 6.5, table 4.13): interrupts are the operating system's, always.
const SCI_ENABLED: u16 = 1 << 0;
/// `SLP_EN` (ACPI 6.5, table 4.13).
const SLEEP_ENABLE: u16 = 1 << 13;
/// `SLP_TYP`, three bits from bit 10 on.
const SLEEP_TYPE_SHIFT: u16 = 10;

/// The PM1a event and control blocks (ACPI 6.5, section 4.8.3): the power button, and power-off by S5.
pub struct PowerManagement {
    state: Mutex<Pm1>,
    vm: Arc<VmFd>,
    shutdown: ShutdownSender,
    /// A guest may have it refused as often as it likes.
    refused: Once,
}

#[derive(Default)]
struct Pm1 {
    status: u16,
    enable: u16,
}

/// The registers, saved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PowerState {
    status: u16,
    enable: u16,
}

impl PowerManagement {
    /// The registers at reset.
    pub fn new(vm: Arc<VmFd>, shutdown: ShutdownSender) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            vm,
            shutdown,
            refused: Once::new(),
        })
    }

    /// Presses the power button, as a person would. What follows is the guest's decision.
    pub fn press_power_button(&self) {
        let mut pm1 = self.state();
        pm1.status |= POWER_BUTTON;
        self.update_interrupt(&pm1);
    }

    /// Whether the guest has enabled the power button's event: a driver waits for it.
    pub fn handles_power_button(&self) -> bool {
        self.state().enable & POWER_BUTTON != 0
    }

    pub(crate) fn save(&self) -> PowerState {
        let Pm1 { status, enable } = *self.state();
        PowerState { status, enable }
    }

    /// Takes the registers over, and sets the interrupt's level accordingly.
    pub(crate) fn restore(&self, state: &PowerState) {
        let mut pm1 = self.state();
        (pm1.status, pm1.enable) = (state.status, state.enable);
        self.update_interrupt(&pm1);
    }

    fn state(&self) -> MutexGuard<'_, Pm1> {
        // Two integers that are always consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The SCI is level-triggered: asserted as long as an enabled status bit is set.
    fn update_interrupt(&self, pm1: &Pm1) {
        if let Err(error) = self
            .vm
            .set_irq_line(layout::SCI_IRQ, pm1.status & pm1.enable != 0)
        {
            let told = || log::error!("cannot set the ACPI interrupt's level: {error}");
            self.refused.call_once(told);
        }
    }

    fn write_register(&self, register: u16, value: u16) {
        let mut pm1 = self.state();
        match register {
            layout::PM1A_EVENT => pm1.status &= !value,
            PM1A_ENABLE => pm1.enable = value,
            layout::PM1A_CONTROL => {
                let sleep_type = value >> SLEEP_TYPE_SHIFT & 0b111;
                if value & SLEEP_ENABLE != 0 && sleep_type == u16::from(layout::ACPI_S5_SLEEP_TYPE)
                {
                    self.shutdown.send(ShutdownReason::PowerOff);
                }
                return;
            }
            _ => return,
        }
        self.update_interrupt(&pm1);
    }

    fn read_register(&self, register: u16) -> u16 {
        let pm1 = self.state();
        match register {
            layout::PM1A_EVENT => pm1.status,
            PM1A_ENABLE => pm1.enable,
            layout::PM1A_CONTROL => SCI_ENABLED,
            _ => 0,
        }
    }
}

const PM1A_ENABLE: u16 = layout::PM1A_EVENT + 2;

impl DevicePio for PowerManagement {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let port = base.0 + offset;
        // Registers are 16 bits wide; ACPI also allows them to be accessed as bytes and together.
        for (port, byte) in (port..).zip(data) {
            *byte = self.read_register(port & !1).to_le_bytes()[usize::from(port & 1)];
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let port = base.0 + offset;
        for (register, bytes) in (port..).step_by(2).zip(data.chunks_exact(2)) {
            self.write_register(register, u16::from_le_bytes([bytes[0], bytes[1]]));
        }
    }
}

/// The reset register that the FADT describes.
pub struct ResetRegister(pub ShutdownSender);

impl DevicePio for ResetRegister {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        if data == [layout::ACPI_RESET_VALUE] {
            self.0.send(ShutdownReason::Reset);
        }
    }
}

/// An i8042 with no keyboard, for its command 0xfe: pulse the CPU's reset line.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

struct ResetLine(ShutdownSender);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.send(ShutdownReason::Reset);
        Ok(())
    }
}

impl I8042 {
    /// A controller whose reset line ends the guest.
    pub fn new(shutdown: ShutdownSender) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(shutdown))))
    }

    fn device(&self) -> MutexGuard<'_, I8042Device<ResetLine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DevicePio for I8042 {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.device().read(offset as u8);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let [byte] = data {
            let Ok(()) = self.device().write(offset as u8, *byte);
        }
    }
}
