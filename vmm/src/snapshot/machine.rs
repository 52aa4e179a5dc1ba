//! The state around the vCPUs.

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::{Kvm, VmFd};
use msr_bus::BusState;
use serde::{Deserialize, Serialize};

use super::error::{RestoreError, SnapshotError};
use super::host::Leaf;
use crate::config::Config;
use crate::devices::pci::PciConfigSpace;
use crate::devices::power::{PowerManagement, PowerState};
use crate::devices::rtc::Rtc;
use crate::devices::serial::{Console, ConsoleState};
use crate::devices::virtio::{MmioDevice, VirtioState};
use crate::memory::GuestMemoryMmap;

/// What a running VM keeps in order to be saved.
pub(crate) struct SaveContext {
    pub(crate) kvm: Kvm,
    pub(crate) config: Config,
    /// As each vCPU was given it; what KVM gives back has bits that depend on registers.
    pub(crate) cpuid: Vec<Vec<Leaf>>,
    pub(crate) tsc_khz: u32,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) rtc: Arc<Rtc>,
    pub(crate) pci: Arc<PciConfigSpace>,
    /// Held while a snapshot is made: two would take each other's dirty pages.
    pub(crate) saving: Mutex<()>,
}

/// The interrupt controllers, timers and clock that KVM keeps for the VM.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvmState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl KvmState {
    /// Everything but the clock, which belongs to the TSCs.
    pub(super) fn save(vm: &VmFd, clock: kvm_clock_data) -> Result<Self, SnapshotError> {
        let kvm = SnapshotError::kvm;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(kvm("KVM_GET_IRQCHIP"))
                .map(|()| chip)
        };
        Ok(Self {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))?,
            clock,
        })
    }

    /// The chips, into a VM that has them. The clock is for later: [`clock`](super::clock).
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), RestoreError> {
        let kvm = RestoreError::kvm;
        for (chip, id) in [
            (&self.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (&self.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (&self.ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            if chip.chip_id != id {
                return Err(RestoreError::Damaged(format!(
                    "interrupt controller {id} says that it is number {}",
                    chip.chip_id
                )));
            }
            vm.set_irqchip(chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(kvm("KVM_SET_PIT2"))
    }

    /// The clock behind kvmclock, in ns.
    pub(super) fn clock(&self) -> u64 {
        self.clock.clock
    }
}

/// The devices.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceStates {
    console: ConsoleState,
    power: PowerState,
    rtc_index: u8,
    pci_address: u32,
    virtio: Vec<VirtioState>,
    msr: BusState,
}

/// The devices of a machine.
pub(crate) struct Devices<'a> {
    pub(crate) console: &'a Console,
    pub(crate) power: &'a PowerManagement,
    pub(crate) rtc: &'a Rtc,
    pub(crate) pci: &'a PciConfigSpace,
    pub(crate) virtio: &'a [Arc<MmioDevice>],
    pub(crate) bus: &'a msr_bus::MsrBus,
}

impl Devices<'_> {
    pub(super) fn save(&self) -> DeviceStates {
        DeviceStates {
            console: self.console.save(),
            power: self.power.save(),
            rtc_index: self.rtc.index(),
            pci_address: self.pci.address(),
            virtio: self.virtio.iter().map(|device| device.save()).collect(),
            msr: self.bus.save(),
        }
    }

    /// Gives new devices their state. The virtio devices are paused then.
    pub(super) fn restore(&self, states: &DeviceStates) -> Result<(), RestoreError> {
        let damaged = |what: String| RestoreError::Damaged(what);
        if states.virtio.len() != self.virtio.len() {
            return Err(damaged(format!(
                "it has {} virtio devices, and its configuration {}",
                states.virtio.len(),
                self.virtio.len()
            )));
        }
        self.bus.restore(&states.msr)?;
        for (device, state) in self.virtio.iter().zip(&states.virtio) {
            device
                .restore(state)
                .map_err(|what| damaged(format!("{}: {what}", device.name())))?;
        }
        self.console
            .restore(&states.console)
            .map_err(|what| damaged(format!("console: {what}")))?;
        self.rtc.set_index(states.rtc_index);
        self.pci.set_address(states.pci_address);
        self.power.restore(&states.power);
        Ok(())
    }
}
