//! The Differentiated System Description Table (5.2.11.1): sleep states and devices, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID, VirtioMmio};
use crate::layout;

/// The revision that makes integers 64 bits wide.
const REVISION: u8 = 2;
/// The hardware id of a processor device (8.4).
const PROCESSOR: &str = "ACPI0007";
/// The hardware id of a virtio-mmio device (Linux, drivers/virtio/virtio_mmio.c).
const VIRTIO_MMIO: &str = "LNRO0005";

/// The compatible ID of a generation identifier (Microsoft, "Virtual Machine Generation ID").
const GENERATION_COUNTER: &str = "VM_Gen_Counter";
/// What a generation identifier is notified of when it has changed (the same).
const GENERATION_CHANGED: u8 = 0x80;
/// The hardware id of a generic event device (5.6.9.1).
const EVENT_DEVICE: &str = "ACPI0013";

/// How many devices of a kind there can be: names have a letter and three hexadecimal digits.
pub(super) const NAMES: usize = 0x1000;

pub(super) fn build(config: &AcpiConfig<'_>) -> Sdt {
    let mut aml = Vec::new();
    // Soft-off (7.4.2.6): what the guest writes to SLP_TYP of PM1a control, and of PM1b, which is not there.
    let s5 = layout::ACPI_S5_SLEEP_TYPE;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8])).to_aml_bytes(&mut aml);

    let mut devices = Vec::new();
    for vcpu in 0..config.topology.vcpus() {
        processor(&mut devices, vcpu);
    }
    serial_port(&mut devices);
    for (device, number) in config.virtio.iter().zip(0..) {
        virtio(&mut devices, device, number);
    }
    generation_id(&mut devices);
    for bus in config.pci_buses {
        pci_root(&mut devices, *bus);
    }
    aml.extend(Scope::raw("_SB_".into(), devices));

    let mut dsdt = Sdt::new(*b"DSDT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The processor whose MADT structure has this uid.
fn processor(aml: &mut Vec<u8>, uid: u32) {
    let path = format!("C{uid:03X}");
    Device::new(
        path.as_str().into(),
        vec![
            &Name::new("_HID".into(), &PROCESSOR),
            &Name::new("_UID".into(), &uid),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::COM1, layout::COM1, 1, 8),
                    &edge_interrupt(layout::COM1_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn virtio(aml: &mut Vec<u8>, device: &VirtioMmio, number: u32) {
    let path = format!("V{number:03X}");
    Device::new(
        path.as_str().into(),
        vec![
            &Name::new("_HID".into(), &VIRTIO_MMIO),
            &Name::new("_UID".into(), &number),
            // It sees memory as the processors do (6.2.17).
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, device.base, device.size),
                    &edge_interrupt(device.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The generation identifier (QEMU, docs/specs/vmgenid.rst), found by its compatible ID, and the event device whose interrupt
/// notifies it (5.6.9).
fn generation_id(aml: &mut Vec<u8>) {
    let (low, high) = (layout::GENERATION_ID as u32, 0u8);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"MSRV0001"),
            &Name::new("_CID".into(), &GENERATION_COUNTER),
            &Name::new("_DDN".into(), &GENERATION_COUNTER),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(aml);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &EVENT_DEVICE),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&edge_interrupt(layout::GENERATION_IRQ)]),
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &GENERATION_CHANGED)],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The root of a PCI bus that has neither bridges nor windows of memory or ports (PCI Firmware Specification 3.3, section 4.1.2).
fn pci_root(aml: &mut Vec<u8>, bus: u8) {
    let path = format!("PC{bus:02X}");
    let number = u16::from(bus);
    Device::new(
        path.as_str().into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &bus),
            &Name::new("_BBN".into(), &bus),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&AddressSpace::new_bus_number(number, number)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// An interrupt that its device consumes: a rising edge, not shared. An irqfd without a resample event raises such.
fn edge_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
