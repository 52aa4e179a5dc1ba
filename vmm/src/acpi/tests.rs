use super::*;

fn config(topology: Topology, virtio: &[VirtioMmio]) -> AcpiConfig<'_> {
    AcpiConfig {
        topology,
        virtio,
        i8042: false,
        pci_buses: &NO_BUSES,
    }
}

static NO_BUSES: BTreeSet<u8> = BTreeSet::new();

const DISK: VirtioMmio = VirtioMmio {
    base: layout::VIRTIO_MMIO as u32,
    size: layout::VIRTIO_MMIO_SIZE as u32,
    gsi: 16,
};

/// The tables, found as a guest finds them: each by its address in another.
struct Tables(Vec<u8>);

impl Tables {
    fn new(config: &AcpiConfig<'_>) -> Self {
        Self(build(config).unwrap())
    }

    fn bytes(&self, address: u64) -> &[u8] {
        &self.0[(address - layout::ACPI_TABLES) as usize..]
    }

    fn table(&self, address: u64) -> &[u8] {
        let length = u32::from_le_bytes(self.bytes(address)[4..8].try_into().unwrap());
        &self.bytes(address)[..length as usize]
    }

    fn rsdp(&self) -> &[u8] {
        &self.0[..36]
    }

    fn listed(&self, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.table(u64_at(self.rsdp(), 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        xsdt[36..]
            .chunks_exact(8)
            .map(|entry| self.table(u64_at(entry, 0)))
            .find(|table| &table[..4] == signature)
            .unwrap()
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.listed(b"FACP"), 140))
    }

    /// The MADT's structures: type and bytes.
    fn interrupts(&self) -> Vec<&[u8]> {
        let mut rest = &self.listed(b"APIC")[44..];
        let mut structures = Vec::new();
        while !rest.is_empty() {
            let (structure, next) = rest.split_at(usize::from(rest[1]));
            structures.push(structure);
            rest = next;
        }
        structures
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
    let tables = Tables::new(&config(Topology::flat(4), &[DISK]));
    assert_eq!(&tables.rsdp()[..8], b"RSD PTR ");
    assert_eq!(sum(&tables.rsdp()[..20]), 0);
    assert_eq!(sum(tables.rsdp()), 0);
    for table in [
        tables.table(u64_at(tables.rsdp(), 24)),
        tables.listed(b"FACP"),
        tables.listed(b"APIC"),
        tables.dsdt(),
    ] {
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
    }
    assert_eq!(&tables.dsdt()[..4], b"DSDT");
}

#[test]
fn the_facs_is_where_the_fadt_says_and_aligned() {
    let tables = Tables::new(&config(Topology::flat(1), &[]));
    let address = u64::from(u32_at(tables.listed(b"FACP"), 36));
    assert_eq!(address % 64, 0);
    assert_eq!(&tables.bytes(address)[..4], b"FACS");
    assert_eq!(u32_at(tables.bytes(address), 4), 64);
}

/// The offsets are those of table 5.9.
#[test]
fn the_fadt_describes_fixed_hardware_without_what_would_make_the_guest_wait() {
    let tables = Tables::new(&config(Topology::flat(1), &[]));
    let fadt = tables.listed(b"FACP");
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16_at(fadt, 46), 9, "SCI_INT");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD");
    assert_eq!(u32_at(fadt, 56), 0x600, "PM1a_EVT_BLK");
    assert_eq!(u32_at(fadt, 64), 0x604, "PM1a_CNT_BLK");
    assert_eq!(u32_at(fadt, 76), 0, "PM_TMR_BLK");
    assert_eq!(
        fadt[88..92],
        [4, 2, 0, 0],
        "PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR lengths"
    );
    assert_eq!(u16_at(fadt, 109), 0b10_0101, "IAPC_BOOT_ARCH");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 4, 0, "the power button is a fixed one");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    assert_eq!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_eq!(
        fadt[116..120],
        [1, 8, 0, 1],
        "RESET_REG: I/O port, one byte"
    );
    assert_eq!(u64_at(fadt, 120), 0x608, "RESET_REG");
    assert_eq!(fadt[128], 1, "RESET_VALUE");
}

#[test]
fn a_keyboard_controller_is_announced_only_where_there_is_one() {
    let mut config = config(Topology::flat(1), &[]);
    assert_eq!(u16_at(Tables::new(&config).listed(b"FACP"), 109) & 2, 0);
    config.i8042 = true;
    assert_eq!(u16_at(Tables::new(&config).listed(b"FACP"), 109) & 2, 2);
}

#[test]
fn the_madt_has_every_processor_by_its_apic_id() {
    let topology = Topology {
        packages: 2,
        cores: 3,
        threads: 1,
    };
    let tables = Tables::new(&config(topology, &[]));
    let madt = tables.listed(b"APIC");
    assert_eq!(u32_at(madt, 36), 0xfee0_0000);
    assert_eq!(u32_at(madt, 40), 1, "PCAT_COMPAT");
    let processors: Vec<(u8, u8)> = tables
        .interrupts()
        .iter()
        .filter(|s| s[0] == 0 && s[1] == 8 && u32_at(s, 4) == 1)
        .map(|s| (s[2], s[3]))
        .collect();
    assert_eq!(processors, [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6)]);
}

#[test]
fn apic_ids_above_254_take_an_x2apic_structure() {
    let topology = Topology {
        packages: 1,
        cores: 257,
        threads: 1,
    };
    let tables = Tables::new(&config(topology, &[]));
    let structures = tables.interrupts();
    assert_eq!(structures.iter().filter(|s| s[0] == 0).count(), 255);
    let x2apic: Vec<_> = structures
        .iter()
        .filter(|s| s[0] == 9)
        .map(|s| (s[1], u32_at(s, 4), u32_at(s, 8), u32_at(s, 12)))
        .collect();
    assert_eq!(x2apic, [(16, 255, 1, 255), (16, 256, 1, 256)]);
}

#[test]
fn the_sci_is_level_triggered_and_irq_0_is_pin_0() {
    let tables = Tables::new(&config(Topology::flat(1), &[]));
    let overrides: Vec<_> = tables
        .interrupts()
        .into_iter()
        .filter(|s| s[0] == 2)
        .collect();
    assert_eq!(overrides, [[2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0]]);
    let io_apic = tables
        .interrupts()
        .into_iter()
        .find(|s| s[0] == 1)
        .unwrap()
        .to_vec();
    assert_eq!((u32_at(&io_apic, 4), u32_at(&io_apic, 8)), (0xfec0_0000, 0));
}

#[test]
fn the_dsdt_has_soft_off_and_each_device_with_its_resources() {
    let second = VirtioMmio {
        base: 0xd000_1000,
        gsi: 17,
        ..DISK
    };
    let tables = Tables::new(&config(Topology::flat(2), &[DISK, second]));
    let dsdt = tables.dsdt();
    // Name (_S5_, Package () {5, 5, 0, 0})
    assert!(
        contains(dsdt, b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"),
        "{dsdt:02x?}"
    );
    assert!(contains(dsdt, b"C000") && contains(dsdt, b"C001") && !contains(dsdt, b"C002"));
    assert!(contains(dsdt, b"COM1") && contains(dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]));
    for device in [DISK, second] {
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(device.base.to_le_bytes());
        resources.extend(device.size.to_le_bytes());
        resources.extend([0x89, 6, 0, 0b0011, 1]);
        resources.extend(device.gsi.to_le_bytes());
        assert!(contains(dsdt, &resources), "{device:x?}");
    }
    assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 2);
    assert!(!contains(dsdt, PCI_ROOT), "no bus, no root");
    // Package () {0xdf028, 0}, and in _EVT: Notify (\\_SB.VGEN, 0x80).
    assert!(contains(dsdt, b"VM_Gen_Counter\0"));
    assert!(contains(dsdt, b"ADDR\x12\x08\x02\x0c\x28\xf0\x0d\x00\x00"));
    assert!(contains(dsdt, b"_EVT\x09\x86\\\x2e_SB_VGEN\x0a\x80"));
}

/// PNP0A03 as _HID has it (19.3.4): three letters of five bits, and four digits.
const PCI_ROOT: &[u8] = b"_HID\x0c\x41\xd0\x0a\x03";

#[test]
fn a_pci_bus_with_functions_is_the_root_of_its_own_hierarchy() {
    let buses = BTreeSet::from([0, 0x7e]);
    let tables = Tables::new(&AcpiConfig {
        pci_buses: &buses,
        ..config(Topology::flat(1), &[])
    });
    let dsdt = tables.dsdt();
    assert_eq!(dsdt.windows(9).filter(|w| *w == PCI_ROOT).count(), 2);
    assert!(contains(dsdt, b"PC00") && contains(dsdt, b"PC7E"));
    assert!(contains(dsdt, b"_BBN\x0a\x7e"));
    // A word address space of bus numbers (6.4.3.5.3): 0x7e to 0x7e, one of them.
    let numbers = [0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0x7e, 0, 0x7e, 0, 0, 0, 1, 0];
    assert!(contains(dsdt, &numbers), "{dsdt:02x?}");
}

#[test]
fn tables_that_outgrow_their_area_are_refused() {
    let error = build(&config(Topology::flat(4095), &[])).unwrap_err();
    assert!(
        matches!(error, AcpiError::TooLarge { room: 0x2_0000, .. }),
        "{error}"
    );
}

#[test]
fn a_guest_without_memory_there_is_refused() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
    let error = write(&memory, &config(Topology::flat(1), &[])).unwrap_err();
    assert!(matches!(error, AcpiError::Memory { .. }), "{error}");
}
