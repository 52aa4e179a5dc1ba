//! Where things are in the guest's physical address space, its I/O ports and its interrupts.

/// The BIOS data area's word with the size of memory below the EBDA, in KiB. Programs look for what firmware left there, by
/// /dev/mem: the EBDA, and Intel's multiprocessor tables in the last KiB before it (MultiProcessor Specification 1.4, section 4).
pub const BASE_MEMORY_SIZE: u64 = 0x413;
/// The descriptor table at the kernel's first instruction.
pub const BOOT_GDT: u64 = 0x500;
/// The zero page, `struct boot_params` (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
pub const ZERO_PAGE: u64 = 0x7000;
/// The boot stack's top.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The page tables for entry in long mode.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The most the command line can take, its final NUL included.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// The Multiboot information of a kernel that is entered that way, with its memory map and command line behind it.
pub const MULTIBOOT_INFO: u64 = 0x9_0000;
/// The extended BIOS data area: the end of usable memory below 1 MiB.
pub const EBDA: u64 = 0x9_fc00;
/// The page of the generation identifier, before the ACPI tables.
pub const GENERATION_ID_PAGE: u64 = 0xd_f000;
/// The generation identifier, 16 bytes. It is not at the page's start, where an option ROM would be looked for.
pub const GENERATION_ID: u64 = GENERATION_ID_PAGE + 0x28;
/// The ACPI tables, from the RSDP on, in the BIOS area where nothing else is.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The end of the area for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// The start of memory above 1 MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The start of the hole below 4 GiB that holds memory-mapped devices; memory goes on at 4 GiB.
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// The end of that hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// The first virtio-mmio device's registers.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// The size of one virtio-mmio device's registers, and the distance to the next one's.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The I/O APIC, where KVM has it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The three pages that KVM on Intel needs for a TSS (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The page that KVM on Intel needs for an identity map (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// COM1's eight registers.
pub const COM1: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_IRQ: u32 = 4;
/// The i8042's data port; the command port is 4 further.
pub const I8042: u16 = 0x60;
/// The CMOS real-time clock's index port; the data port is the next.
pub const RTC: u16 = 0x70;
/// PCI configuration mechanism 1: CONFIG_ADDRESS and CONFIG_DATA, 4 bytes each.
pub const PCI_CONFIG: u16 = 0xcf8;
/// The ACPI PM1a event block: status and enable, 2 bytes each.
pub const PM1A_EVENT: u16 = 0x600;
/// The size of that block, in bytes.
pub const PM1A_EVENT_SIZE: u8 = 4;
/// The ACPI PM1a control block, 2 bytes.
pub const PM1A_CONTROL: u16 = 0x604;
/// The size of that block, in bytes.
pub const PM1A_CONTROL_SIZE: u8 = 2;
/// The value of SLP_TYP, bits 10 to 12 of PM1a control, that with SLP_EN (bit 13) turns the machine off.
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// The ACPI reset register, 1 byte.
pub const ACPI_RESET: u16 = 0x608;
/// The value that resets, written to [`ACPI_RESET`].
pub const ACPI_RESET_VALUE: u8 = 1;
/// The boot timer: under `--boot-timing`, the first byte written here says that the guest's init runs. Firecracker has
/// the like in memory; a port is less work for an init (/dev/port, or `ioperm` and OUT). Elsewhere the write is lost.
pub const BOOT_TIMER: u16 = 0x610;
/// The ACPI interrupt (SCI): level-triggered, active high. The line is high while a PM1a status bit and its enable bit
/// are both set.
pub const SCI_IRQ: u32 = 9;

/// The interrupt of the ACPI event device that tells of another generation identifier: a rising edge.
pub const GENERATION_IRQ: u32 = 5;

/// The virtio-mmio devices' interrupts, in the order in which devices get them: pins of the I/O APIC that
/// nothing else uses.
pub const VIRTIO_IRQS: [u32; 8] = [16, 17, 18, 19, 20, 21, 22, 23];
/// How many interrupts the I/O APIC has.
pub const GSI_COUNT: u32 = 24;
