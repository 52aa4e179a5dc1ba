//! Keys of MSR devices that change while the guest runs, with the interrupts that a change makes.
//!
//! A device asks for an interrupt ([`InterruptRequests`](msr_bus::InterruptRequests)); here it reaches the guest as the
//! local APIC's local vector table says (SDM volume 3A, "Local Vector Table"). The local APICs are KVM's, which has no way to
//! signal an entry of that table, so the entry is read (`KVM_GET_LAPIC`, on the vCPU's thread) and what it says is done: a
//! fixed vector is a message to that APIC (`KVM_SIGNAL_MSI`), an NMI is `KVM_NMI`. A masked entry, and other ways of
//! delivery, give nothing.

use kvm_bindings::{kvm_lapic_state, kvm_msi};
use msr_bus::{ConfigError, LiveKeys, Topology, VcpuId};

use crate::cpu::topology::apic_id;
use crate::running::RunningVm;

/// Where the thermal entry is among the APIC's registers.
const LVT_THERMAL: usize = 0x330;
/// No interrupt is delivered.
const MASKED: u32 = 1 << 16;
/// How it is delivered, 10:8.
const DELIVERY: u32 = 7 << 8;
const FIXED: u32 = 0 << 8;
const NMI: u32 = 4 << 8;
/// The first vector that is not an exception's or reserved by the APIC.
const FIRST_VECTOR: u8 = 16;
/// The address of messages to local APICs, for physical destinations (SDM volume 3A, "Message Address Register Format").
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// What an entry of the local vector table asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Nothing,
    Vector(u8),
    Nmi,
}

impl Delivery {
    fn of(entry: u32) -> Self {
        let vector = entry.to_le_bytes()[0];
        match entry & (MASKED | DELIVERY) {
            FIXED if vector >= FIRST_VECTOR => Self::Vector(vector),
            NMI => Self::Nmi,
            _ => Self::Nothing,
        }
    }
}

impl RunningVm {
    /// Changes keys of an MSR device, one of [`MsrPlan::live`](msr_kvm::MsrPlan::live), all of them or none, and delivers the
    /// interrupts that this makes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], as [`LiveKeys::set`].
    pub fn set_device(&self, device: &LiveKeys, changes: &toml::Table) -> Result<(), ConfigError> {
        device.set(changes)?;
        let vcpus = self.msr_plan().interrupts.take_thermal();
        if let Ok(topology) = self.save_context().config.vm.topology() {
            for vcpu in vcpus {
                self.deliver_thermal(vcpu, &topology);
            }
        }
        Ok(())
    }

    fn deliver_thermal(&self, vcpu: VcpuId, topology: &Topology) {
        let delivered = self.on_vcpu(vcpu, |vcpu| {
            let delivery = Delivery::of(thermal_entry(&vcpu.fd.get_lapic()?));
            if delivery == Delivery::Nmi {
                vcpu.fd.nmi()?;
            }
            Ok(delivery)
        });
        let sent = match delivered {
            Ok(Ok(Delivery::Vector(vector))) => {
                let message = kvm_msi {
                    address_lo: MSI_ADDRESS | u32::from(apic_id(topology, vcpu) as u8) << 12,
                    // Edge-triggered and fixed.
                    data: vector.into(),
                    ..Default::default()
                };
                self.fd().signal_msi(message).map(drop)
            }
            Ok(outcome) => outcome.map(drop),
            // A vCPU that has ended takes no interrupts.
            Err(_) => Ok(()),
        };
        if let Err(error) = sent {
            log::warn!("the thermal interrupt of {vcpu} is lost: {error}");
        }
    }
}

fn thermal_entry(lapic: &kvm_lapic_state) -> u32 {
    let bytes = [0, 1, 2, 3].map(|at| lapic.regs[LVT_THERMAL + at].cast_unsigned());
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_whether_and_how_it_is_delivered() {
        for (entry, delivery) in [
            (0x0001_00fa, Delivery::Nothing),
            (0x0000_00fa, Delivery::Vector(0xfa)),
            // It is being delivered already.
            (0x0000_10fa, Delivery::Vector(0xfa)),
            (0x0000_000f, Delivery::Nothing),
            (0x0000_0400, Delivery::Nmi),
            (0x0001_0400, Delivery::Nothing),
            // SMI and ExtINT.
            (0x0000_0200, Delivery::Nothing),
            (0x0000_0700, Delivery::Nothing),
        ] {
            assert_eq!(Delivery::of(entry), delivery, "{entry:#x}");
        }
    }

    #[test]
    fn the_entry_is_where_the_register_is() {
        let mut lapic = kvm_lapic_state::default();
        for (at, byte) in [(0x330, 0x78), (0x331, 0x56), (0x332, 0x34), (0x333, 0x12)] {
            lapic.regs[at] = byte;
        }
        assert_eq!(thermal_entry(&lapic), 0x1234_5678);
    }
}
