//! ACPI tables: what the guest is told of processors, interrupts, power and devices that it cannot find by itself.
//!
//! The hardware model is ACPI's fixed one, not the hardware-reduced one: status, enable and control registers of PM1a at
//! I/O ports, which give `poweroff`, and a *fixed* power button. The guest never has to enable ACPI mode (`SMI_CMD` is
//! 0), has no PM timer, no general-purpose events and no CMOS RTC, and is told so. A generic event device has the one event that is
//! not the power button's: another [generation identifier](crate::layout::GENERATION_ID).
//!
//! Sections cited are those of the ACPI specification, release 6.5.

#![forbid(unsafe_code)]

mod dsdt;
mod fadt;
mod madt;

use std::collections::BTreeSet;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use msr_bus::Topology;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::devices::virtio::Slot;
use crate::layout;
use crate::memory::GuestMemoryMmap;

const OEM_ID: [u8; 6] = *b"MSRVMM";
const OEM_TABLE_ID: [u8; 8] = *b"MSRVMM  ";
const OEM_REVISION: u32 = 1;
/// What a table's address is a multiple of; the FACS asks for the most (5.2.10).
const ALIGNMENT: usize = 64;

/// The machine that the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// How the vCPUs are arranged.
    pub topology: Topology,
    /// The virtio-mmio devices.
    pub virtio: &'a [VirtioMmio],
    /// Whether there is an i8042 that a keyboard could be attached to. Without one the guest does not wait for it; it
    /// resets by the reset register either way.
    pub i8042: bool,
    /// The PCI buses that have functions to be found, each the root of a hierarchy of its own.
    pub pci_buses: &'a BTreeSet<u8>,
}

/// Where a virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// The physical address of its registers.
    pub base: u32,
    /// The size of its registers, in bytes.
    pub size: u32,
    /// Its interrupt, raised as an edge (by an irqfd, say) and shared with no other device.
    pub gsi: u32,
}

impl From<Slot> for VirtioMmio {
    fn from(slot: Slot) -> Self {
        Self {
            // All slots are in the hole below 4 GiB, so nothing is cut off.
            base: slot.base as u32,
            size: slot.size as u32,
            gsi: slot.gsi,
        }
    }
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// They take more than the area for them.
    #[error(
        "the ACPI tables take {size} bytes; there is room for {room} at {:#x}",
        layout::ACPI_TABLES
    )]
    TooLarge {
        /// Their size, in bytes.
        size: usize,
        /// The size of the area, in bytes.
        room: usize,
    },
    /// The guest has no memory where they go.
    #[error("cannot write the ACPI tables at {address:#x}: {error}")]
    Memory {
        /// Their address.
        address: u64,
        /// What the memory says.
        error: GuestMemoryError,
    },
    /// There are more devices of one kind than their names in the DSDT can tell apart.
    #[error(
        "the ACPI tables cannot describe {count} {what}: {} are the most",
        dsdt::NAMES
    )]
    TooMany {
        /// The kind.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
}

/// Writes the tables to [`layout::ACPI_TABLES`] and gives the RSDP's address, for the zero page.
///
/// # Errors
///
/// [`AcpiError`].
pub fn write(memory: &GuestMemoryMmap, config: &AcpiConfig<'_>) -> Result<GuestAddress, AcpiError> {
    let tables = build(config)?;
    let address = GuestAddress(layout::ACPI_TABLES);
    memory
        .write_slice(&tables, address)
        .map_err(|error| AcpiError::Memory {
            address: address.0,
            error,
        })?;
    Ok(address)
}

/// The tables as they are in memory from [`layout::ACPI_TABLES`] on, the RSDP first.
fn build(config: &AcpiConfig<'_>) -> Result<Vec<u8>, AcpiError> {
    for (what, count) in [
        ("vCPUs", config.topology.vcpus() as usize),
        ("virtio-mmio devices", config.virtio.len()),
    ] {
        if count > dsdt::NAMES {
            return Err(AcpiError::TooMany { what, count });
        }
    }
    let mut area = Area::with_rsdp();
    let facs = area.add(&FACS::new());
    let dsdt = area.add(&dsdt::build(config));
    let fadt = area.add(&fadt::build(config, facs, dsdt));
    let madt = area.add(&madt::build(&config.topology));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.into());
    xsdt.add_entry(madt.into());
    let xsdt = area.add(&xsdt);
    area.finish(xsdt)
}

/// The memory that the tables are laid out in.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    fn with_rsdp() -> Self {
        Self {
            bytes: vec![0; Rsdp::len()],
        }
    }

    /// Appends `table` and gives its address.
    fn add(&mut self, table: &dyn Aml) -> u32 {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        table.to_aml_bytes(&mut self.bytes);
        // An area that outgrows its room, and with it 32 bits, is refused by `finish`.
        layout::ACPI_TABLES as u32 + at as u32
    }

    fn finish(mut self, xsdt: u32) -> Result<Vec<u8>, AcpiError> {
        let room = (layout::ACPI_TABLES_END - layout::ACPI_TABLES) as usize;
        let size = self.bytes.len();
        if size > room {
            return Err(AcpiError::TooLarge { size, room });
        }
        let mut rsdp = Vec::new();
        Rsdp::new(OEM_ID, xsdt.into()).to_aml_bytes(&mut rsdp);
        self.bytes[..rsdp.len()].copy_from_slice(&rsdp);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests;
