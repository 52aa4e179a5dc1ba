//! The Multiple APIC Description Table (5.2.12): local APICs, the I/O APIC, and how interrupts reach them.
//!
//! ISA interrupts are the I/O APIC pins of the same number, the PIT's among them: that is how KVM routes them unless it is
//! told otherwise, so there is no override of IRQ 0 here as there is on a PC.

use acpi_tables::sdt::Sdt;
use msr_bus::{Topology, VcpuId};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::cpu::topology::apic_id;
use crate::layout;

/// The revision of ACPI 6.5.
const REVISION: u8 = 6;
/// There is a pair of 8259s too, to be masked.
const PCAT_COMPAT: u32 = 1 << 0;
/// A processor that is there.
const ENABLED: u32 = 1 << 0;
/// The I/O APIC's id. KVM's has this one from reset on.
const IO_APIC_ID: u8 = 0;
/// All processors, in a structure about local APIC pins.
const ALL_PROCESSORS: u8 = 0xff;
/// The highest id that a Local APIC structure can hold; 255 addresses all of them.
const LOCAL_APIC_ID_MAX: u32 = 254;
/// Active high, level-triggered (table 5.26).
const ACTIVE_HIGH_LEVEL: u16 = 0b11_01;

pub(super) fn build(topology: &Topology) -> Sdt {
    let mut body = Vec::new();
    body.extend(layout::LOCAL_APIC.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for vcpu in 0..topology.vcpus() {
        processor(&mut body, vcpu, apic_id(topology, VcpuId(vcpu)));
    }

    // I/O APIC (5.2.12.3).
    body.extend([1, 12, IO_APIC_ID, 0]);
    body.extend(layout::IO_APIC.to_le_bytes());
    body.extend(0u32.to_le_bytes());

    // Interrupt Source Override (5.2.12.5): what is level-triggered on a bus (ISA, 0) of edges.
    body.extend([2, 10, 0, layout::SCI_IRQ as u8]);
    body.extend(layout::SCI_IRQ.to_le_bytes());
    body.extend(ACTIVE_HIGH_LEVEL.to_le_bytes());

    // Local APIC NMI (5.2.12.7): LINT1, with the bus's own polarity and trigger mode.
    body.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);

    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt
}

/// A processor whose ACPI uid is `uid`: that of its device in the DSDT.
fn processor(body: &mut Vec<u8>, uid: u32, apic_id: u32) {
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        // Processor Local APIC (5.2.12.2).
        (Ok(uid), Ok(id)) if apic_id <= LOCAL_APIC_ID_MAX => {
            body.extend([0, 8, uid, id]);
            body.extend(ENABLED.to_le_bytes());
        }
        // Processor Local x2APIC (5.2.12.12).
        _ => {
            body.extend([9, 16, 0, 0]);
            body.extend(apic_id.to_le_bytes());
            body.extend(ENABLED.to_le_bytes());
            body.extend(uid.to_le_bytes());
        }
    }
}
