//! The Fixed ACPI Description Table (5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

// IA-PC Boot Architecture Flags (table 5.11).
/// There are devices on an ISA-like bus: the serial port.
const LEGACY_DEVICES: u16 = 1 << 0;
/// There is a keyboard controller.
const KEYBOARD_8042: u16 = 1 << 1;
/// There is no VGA hardware to probe.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// There is no CMOS RTC that a driver could use: the one there has no interrupt.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// A latency (in us) that says that a C-state is not supported: above 100 for C2, above 1000 for C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

pub(super) fn build(config: &AcpiConfig<'_>, facs: u32, dsdt: u32) -> FADT {
    let keyboard = if config.i8042 { KEYBOARD_8042 } else { 0 };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .dsdt_64(dsdt.into())
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        // WBINVD works, and C1 (HLT) on every processor: both must be so where this is not hardware-reduced ACPI.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // A power button that is not flagged here is a fixed-feature one; a sleep button that is flagged is not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = (layout::SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVENT).into();
    fadt.pm1_evt_len = layout::PM1A_EVENT_SIZE;
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = layout::PM1A_CONTROL_SIZE;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch =
        (LEGACY_DEVICES | VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT | keyboard).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        layout::ACPI_RESET.into(),
    );
    fadt.reset_value = layout::ACPI_RESET_VALUE;
    fadt.finalize()
}
