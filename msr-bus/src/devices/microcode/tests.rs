//! The builders below follow the formats' definitions, not the code under test.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::testing::{FakeVcpu, ICE_LAKE, ZEN_3, context, context_of};
use crate::{CpuLocation, ExitReason, KernelMsrError, Topology, VcpuId};

const HYPERTHREADED: Topology = Topology {
    packages: 1,
    cores: 2,
    threads: 2,
};
/// Where tests put an update's first byte.
const AT: u64 = 0xffff_8880_1234_5000;

fn set(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn total(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4);
    words
        .map(|w| u32::from_le_bytes(w.try_into().unwrap()))
        .fold(0, u32::wrapping_add)
}

/// An Intel update in the making.
#[derive(Clone)]
struct Intel {
    header_version: u32,
    revision: u32,
    signature: u32,
    loader: u32,
    flags: u32,
    /// What the header says; 0 is the format's default of 2,000 bytes.
    data_size: u32,
    total_size: u32,
    /// Further signatures and flags.
    table: Vec<(u32, u32)>,
}

impl Intel {
    fn new(revision: u32) -> Self {
        Self {
            header_version: 1,
            revision,
            signature: ICE_LAKE.signature,
            loader: 1,
            flags: 1,
            data_size: 4096 - 48,
            total_size: 4096,
            table: Vec::new(),
        }
    }

    /// A table of entries, with the data cut to make room.
    fn with_table(mut self, table: &[(u32, u32)]) -> Self {
        self.table = table.to_vec();
        self.data_size = self.total_size - 48 - 20 - 12 * table.len() as u32;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let (data, whole) = match self.data_size {
            0 => (2000, 2048),
            size => (size, self.total_size),
        };
        let mut bytes: Vec<u8> = (0..whole).map(|i| (i * 7) as u8).collect();
        bytes[..48].fill(0);
        set(&mut bytes, 0, self.header_version);
        set(&mut bytes, 4, self.revision);
        set(&mut bytes, 8, 0x1118_2024);
        set(&mut bytes, 12, self.signature);
        set(&mut bytes, 20, self.loader);
        set(&mut bytes, 24, self.flags);
        set(&mut bytes, 28, self.data_size);
        set(&mut bytes, 32, self.total_size);
        let (main, table) = bytes.split_at_mut(48 + data as usize);
        let checksum = total(main).wrapping_neg();
        set(main, 16, checksum);
        if !self.table.is_empty() {
            table.fill(0);
            set(table, 0, self.table.len() as u32);
            for (entry, (signature, flags)) in table[20..].chunks_mut(12).zip(&self.table) {
                set(entry, 0, *signature);
                set(entry, 4, *flags);
                // Header and data with this entry in the header's place sum to 0, too.
                let here = self
                    .signature
                    .wrapping_add(self.flags)
                    .wrapping_add(checksum);
                set(entry, 8, here.wrapping_sub(*signature).wrapping_sub(*flags));
            }
            let checksum = total(table).wrapping_neg();
            set(table, 4, checksum);
        }
        bytes
    }
}

/// An AMD patch in the making.
#[derive(Clone)]
struct Amd {
    level: u32,
    id: u16,
    triads: u8,
    chipset: u32,
}

impl Amd {
    fn new(level: u32) -> Self {
        Self {
            level,
            id: 0xa011,
            triads: 32,
            chipset: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..64 + 28 * usize::from(self.triads))
            .map(|i| (i * 13) as u8)
            .collect();
        bytes[..64].fill(0);
        set(&mut bytes, 0, 0x1118_2024);
        set(&mut bytes, 4, self.level);
        bytes[8..10].copy_from_slice(&0x8004u16.to_le_bytes());
        bytes[10] = self.triads;
        let checksum = total(&bytes[64..]);
        set(&mut bytes, 12, checksum);
        set(&mut bytes, 16, self.chipset);
        bytes[24..26].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

/// A device and the guest memory its CPUs share.
struct Machine {
    device: Microcode,
    topology: Topology,
    update: Vec<u8>,
}

impl Machine {
    fn new(config: Config, cpu: CpuIdentity) -> Self {
        let device =
            Microcode::build("microcode".into(), config, &context_of(cpu, HYPERTHREADED)).unwrap();
        Self {
            device,
            topology: HYPERTHREADED,
            update: Vec::new(),
        }
    }

    fn intel(revision: u64) -> Self {
        let revision = U64(revision);
        Self::new(
            Config {
                revision,
                ..Config::default()
            },
            ICE_LAKE,
        )
    }

    fn amd(level: u64) -> Self {
        let revision = U64(level);
        Self::new(
            Config {
                revision,
                ..Config::default()
            },
            ZEN_3,
        )
    }

    fn with(mut self, update: Vec<u8>) -> Self {
        self.update = update;
        self
    }

    fn vcpu(&self, id: u32) -> FakeVcpu {
        let mut vcpu = FakeVcpu::new(VcpuId(id), self.topology);
        vcpu.memory.insert(AT, self.update.clone());
        vcpu
    }

    fn read(&self, cpu: u32, index: u32) -> Result<u64, GeneralProtection> {
        let reason = ExitReason::Filter;
        let cpu = &self.vcpu(cpu);
        self.device.read(&MsrAccess { index, reason, cpu })
    }

    fn write(&self, cpu: u32, index: u32, value: u64) -> Result<(), GeneralProtection> {
        let reason = ExitReason::Filter;
        let cpu = &self.vcpu(cpu);
        self.device.write(&MsrAccess { index, reason, cpu }, value)
    }

    /// The revision by the SDM's protocol: write 0, (CPUID,) read bits 63:32.
    fn revision(&self, cpu: u32) -> u64 {
        self.write(cpu, 0x8b, 0).unwrap();
        let value = self.read(cpu, 0x8b).unwrap();
        assert_eq!(value & 0xffff_ffff, 0);
        value >> 32
    }

    fn level(&self, cpu: u32) -> u64 {
        self.read(cpu, 0x8b).unwrap()
    }
}

#[test]
fn an_intel_update_raises_the_revision_of_its_core() {
    let machine = Machine::intel(0x100).with(Intel::new(0x0d00_0389).bytes());
    assert_eq!(machine.revision(0), 0x100);
    machine.write(1, 0x79, AT + 48).unwrap();
    let revisions = [0, 1, 2, 3].map(|cpu| machine.revision(cpu));
    assert_eq!(revisions, [0x0d00_0389, 0x0d00_0389, 0x100, 0x100]);
    // Loading it again has no side effects.
    assert_eq!(machine.write(0, 0x79, AT + 48), Ok(()));
    assert_eq!(machine.revision(0), 0x0d00_0389);
}

#[test]
fn sizes_of_zero_mean_2000_bytes_of_2048() {
    let update = Intel {
        data_size: 0,
        total_size: 0,
        ..Intel::new(5)
    };
    assert_eq!(update.bytes().len(), 2048);
    let machine = Machine::intel(1).with(update.bytes());
    machine.write(0, 0x79, AT + 48).unwrap();
    assert_eq!(machine.revision(0), 5);
}

#[test]
fn a_bad_intel_update_changes_nothing_and_does_not_fault() {
    let good = Intel::new(5);
    let with = |change: fn(&mut Intel)| {
        let mut update = good.clone();
        change(&mut update);
        update.bytes()
    };
    let damaged = |at: usize| {
        let mut bytes = good.bytes();
        bytes[at] ^= 1;
        bytes
    };
    let oversized = {
        let mut bytes = good.bytes();
        set(&mut bytes, 28, 0x7fff_f000);
        set(&mut bytes, 32, 0x8000_0000);
        bytes
    };
    let wrapping = {
        let mut bytes = good.bytes();
        set(&mut bytes, 28, u32::MAX - 3);
        bytes
    };
    for (why, bytes) in [
        ("header version", with(|u| u.header_version = 2)),
        ("loader revision", with(|u| u.loader = 2)),
        ("signature", with(|u| u.signature = 0x606a5)),
        ("processor flags", with(|u| u.flags = 0xfe)),
        ("no processor flag", with(|u| u.flags = 0)),
        ("older revision", with(|u| u.revision = 2)),
        ("damaged data", damaged(1000)),
        ("damaged last byte", damaged(4095)),
        ("damaged revision", damaged(4)),
        (
            "total of no whole KiB",
            with(|u| (u.data_size, u.total_size) = (4080 - 48, 4080)),
        ),
        ("data of no whole word", with(|u| u.data_size = 4046)),
        ("2 GiB", oversized),
        ("a data size that wraps around", wrapping),
    ] {
        let machine = Machine::intel(3).with(bytes);
        assert_eq!(machine.write(0, 0x79, AT + 48), Ok(()), "{why}");
        assert_eq!(machine.revision(0), 3, "{why}");
    }
}

#[test]
fn an_intel_update_that_is_not_wholly_mapped_faults_and_changes_nothing() {
    let bytes = Intel::new(5).bytes();
    for len in [0, 47, 48, 2048, 4095] {
        let machine = Machine::intel(3).with(bytes[..len].to_vec());
        let written = machine.write(0, 0x79, AT + 48);
        assert_eq!(written, Err(GeneralProtection), "{len} bytes mapped");
        assert_eq!(machine.revision(0), 3, "{len} bytes mapped");
    }
    let machine = Machine::intel(3).with(bytes);
    for address in [0, 47, 48, 0x1000, u64::MAX, u64::MAX - 47, AT - 1] {
        let written = machine.write(0, 0x79, address);
        assert_eq!(written, Err(GeneralProtection), "{address:#x}");
        assert_eq!(machine.revision(0), 3);
    }
}

#[test]
fn the_platform_id_is_read_only_and_selects_updates() {
    let config = Config {
        platform_id: Some(5),
        ..Config::default()
    };
    let update = Intel {
        flags: 0x20,
        ..Intel::new(5)
    };
    let machine = Machine::new(config, ICE_LAKE).with(update.bytes());
    assert_eq!(machine.read(0, 0x17), Ok(0x0014_0000_0000_0000));
    assert_eq!(machine.write(0, 0x17, 0), Err(GeneralProtection));
    machine.write(0, 0x79, AT + 48).unwrap();
    assert_eq!(machine.revision(0), 5);
}

#[test]
fn an_update_may_list_further_processors() {
    let listed = Intel {
        signature: 0x606a0,
        ..Intel::new(5)
    };
    for (table, revision) in [
        (&[(0x606a6, 1)][..], 5),
        (&[(0x606a5, 0xff), (0x606a6, 0x81)], 5),
        (&[(0x606a6, 0x80)], 3),
        (&[(0x606a5, 1)], 3),
    ] {
        let machine = Machine::intel(3).with(listed.clone().with_table(table).bytes());
        assert_eq!(machine.write(0, 0x79, AT + 48), Ok(()));
        assert_eq!(machine.revision(0), revision, "{table:x?}");
    }
}

/// Makes the whole sum to 0 again, by a word of the data.
fn reseal(bytes: &mut [u8]) {
    let word = u32::from_le_bytes(bytes[48..52].try_into().unwrap());
    let sum = total(bytes);
    set(bytes, 48, word.wrapping_sub(sum));
    assert_eq!(total(bytes), 0);
}

#[test]
fn a_damaged_table_spoils_the_update() {
    let good = Intel::new(5)
        .with_table(&[(0x606a4, 1), (0x606a5, 1)])
        .bytes();
    let table = good.len() - 20 - 24;
    // Where the damage is, as an offset into the table, and how the table's own sum is mended.
    for (what, at, value, mend) in [
        ("checksum", 4, 0, None),
        ("count too high", 0, 3, Some(16)),
        ("count too low", 0, 1, Some(16)),
        ("count that wraps around", 0, 0x1555_5557, Some(16)),
        ("an entry's checksum", 28, 0, Some(16)),
    ] {
        let mut bytes = good.clone();
        set(&mut bytes, table + at, value);
        if let Some(mend) = mend {
            let sum = total(&bytes[table..]);
            set(&mut bytes, table + mend, sum.wrapping_neg());
        }
        reseal(&mut bytes);
        let machine = Machine::intel(3).with(bytes);
        assert_eq!(machine.write(0, 0x79, AT + 48), Ok(()), "{what}");
        assert_eq!(machine.revision(0), 3, "{what}");
    }
    // Less than a table's header after the data.
    let mut bytes = Intel::new(5).bytes();
    set(&mut bytes, 28, 4096 - 48 - 16);
    reseal(&mut bytes);
    let machine = Machine::intel(3).with(bytes);
    machine.write(0, 0x79, AT + 48).unwrap();
    assert_eq!(machine.revision(0), 3);
}

#[test]
fn the_signature_register_keeps_what_is_written_only_without_an_update() {
    let fresh = Machine::intel(0);
    fresh.write(0, 0x8b, 0x1234_5678 << 32).unwrap();
    assert_eq!(fresh.read(0, 0x8b), Ok(0x1234_5678 << 32));
    assert_eq!(fresh.read(1, 0x8b), Ok(0), "each thread has its own");
    let updated = Machine::intel(7);
    updated.write(0, 0x8b, 0x1234_5678 << 32).unwrap();
    assert_eq!(updated.read(0, 0x8b), Ok(7 << 32));
    assert_eq!(updated.write(0, 0x8b, 1), Err(GeneralProtection));
}

#[test]
fn the_triggers_are_write_only() {
    assert_eq!(Machine::intel(1).read(0, 0x79), Err(GeneralProtection));
    assert_eq!(Machine::amd(1).read(0, 0xc001_0020), Err(GeneralProtection));
}

#[test]
fn each_vendor_claims_its_own_registers() {
    let claims = |machine: Machine| -> Vec<u32> {
        let ranges = machine.device.claims();
        ranges.into_iter().map(MsrRange::first).collect()
    };
    assert_eq!(claims(Machine::intel(0)), [0x17, 0x79, 0x8b]);
    assert_eq!(claims(Machine::amd(0)), [0x8b, 0xc001_0020]);
}

#[test]
fn an_amd_patch_raises_the_level_of_its_core() {
    let machine = Machine::amd(0x0a00_1100).with(Amd::new(0x0a00_1173).bytes());
    machine.write(2, 0xc001_0020, AT).unwrap();
    let levels = [0, 1, 2, 3].map(|cpu| machine.level(cpu));
    assert_eq!(levels, [0x0a00_1100, 0x0a00_1100, 0x0a00_1173, 0x0a00_1173]);
    assert_eq!(machine.write(3, 0xc001_0020, AT), Ok(()));
    assert_eq!(machine.level(3), 0x0a00_1173);
}

#[test]
fn an_amd_patch_without_triads_has_no_checksum() {
    let patch = Amd {
        triads: 0,
        ..Amd::new(5)
    };
    let machine = Machine::amd(1).with(patch.bytes());
    machine.write(0, 0xc001_0020, AT).unwrap();
    assert_eq!(machine.level(0), 5);
}

#[test]
fn a_bad_amd_patch_changes_nothing_and_does_not_fault() {
    let mut damaged = Amd::new(5).bytes();
    damaged[64 + 28 * 32 - 1] ^= 0x80;
    let stray_checksum = {
        let mut bytes = Amd {
            triads: 0,
            ..Amd::new(5)
        }
        .bytes();
        set(&mut bytes, 12, 1);
        bytes
    };
    let other = Amd {
        id: 0xa010,
        ..Amd::new(5)
    };
    let chipset = Amd {
        chipset: 0x1022_7400,
        ..Amd::new(5)
    };
    for (why, bytes) in [
        ("checksum", damaged),
        ("a checksum over nothing", stray_checksum),
        ("processor", other.bytes()),
        ("chipset", chipset.bytes()),
        ("older level", Amd::new(2).bytes()),
    ] {
        let machine = Machine::amd(3).with(bytes);
        assert_eq!(machine.write(0, 0xc001_0020, AT), Ok(()), "{why}");
        assert_eq!(machine.level(0), 3, "{why}");
    }
}

#[test]
fn an_amd_patch_that_is_not_wholly_mapped_faults_and_changes_nothing() {
    let bytes = Amd::new(5).bytes();
    for len in [0, 63, 64, bytes.len() - 1] {
        let machine = Machine::amd(3).with(bytes[..len].to_vec());
        let written = machine.write(0, 0xc001_0020, AT);
        assert_eq!(written, Err(GeneralProtection), "{len} bytes mapped");
        assert_eq!(machine.level(0), 3);
    }
    let machine = Machine::amd(3).with(bytes);
    for address in [0, u64::MAX, u64::MAX - 64] {
        assert_eq!(
            machine.write(0, 0xc001_0020, address),
            Err(GeneralProtection)
        );
    }
}

#[test]
fn the_patch_level_is_read_only() {
    assert_eq!(Machine::amd(3).write(0, 0x8b, 0), Err(GeneralProtection));
}

#[test]
fn the_equivalent_id_is_formed_from_the_signature() {
    // As the patches that AMD publishes for these processors have it.
    for (signature, id) in [
        (0x00a0_0f11, 0xa011),
        (0x0086_0f01, 0x8601),
        (0x0080_0f12, 0x8012),
        (0x0060_0f20, 0x6020),
    ] {
        assert_eq!(amd::equivalent_id(signature), id, "{signature:#x}");
    }
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let refusal = |config: Config| {
        Microcode::build("m".into(), config, &context(Topology::flat(1))).unwrap_err()
    };
    let amd = Config {
        vendor: Some(CpuVendor::Amd),
        signature: Some(U64(0x00a0_0f11)),
        ..Config::default()
    };
    for (config, message) in [
        (
            Config {
                vendor: Some(CpuVendor::Amd),
                ..Config::default()
            },
            "signature: needed, because the vendor is not that of the guest's CPU",
        ),
        (
            Config {
                platform_id: Some(8),
                ..Config::default()
            },
            "platform_id: 8 is not 0 to 7",
        ),
        (
            Config {
                equivalent_id: Some(U64(1)),
                ..Config::default()
            },
            "equivalent_id: only AMD has one",
        ),
        (
            Config {
                platform_id: Some(0),
                ..amd.clone()
            },
            "platform_id: only Intel has one",
        ),
        (
            Config {
                equivalent_id: Some(U64(0x1_0000)),
                ..amd.clone()
            },
            "equivalent_id: 0x10000 is not 16 bits",
        ),
        (
            Config {
                revision: U64(1 << 32),
                ..Config::default()
            },
            "revision: 0x100000000 is not 32 bits",
        ),
        (
            Config {
                signature: Some(U64(1 << 32)),
                ..Config::default()
            },
            "signature: 0x100000000 is not 32 bits",
        ),
    ] {
        assert_eq!(refusal(config), message);
    }
    assert!(Microcode::build("m".into(), amd, &context(Topology::flat(1))).is_ok());
}

#[test]
fn a_restored_device_answers_as_the_saved_one() {
    let saved = Machine::intel(0).with(Intel::new(5).bytes());
    saved.write(0, 0x79, AT + 48).unwrap();
    saved.write(3, 0x8b, 9 << 32).unwrap();
    let restored = Machine::intel(0);
    restored
        .device
        .restore(&saved.device.save().unwrap())
        .unwrap();
    let read = [0, 1, 2, 3].map(|cpu| restored.read(cpu, 0x8b).unwrap());
    assert_eq!(read, [5 << 32, 5 << 32, 0, 9 << 32]);
}

#[test]
fn a_state_of_another_topology_or_version_is_refused() {
    let device = Machine::intel(0).device;
    let small = Microcode::build("m".into(), Config::default(), &context(Topology::flat(2)));
    let other = small.unwrap().save().unwrap();
    let message = device.restore(&other).unwrap_err().to_string();
    assert!(
        message.contains("2 registers where there are 4"),
        "{message}"
    );
    let newer = DeviceState::encode(2, &0);
    assert!(matches!(
        device.restore(&newer),
        Err(RestoreError::Version { found: 2, .. })
    ));
}

/// A vCPU that counts how many pages are translated to read its memory.
struct Counting {
    vcpu: FakeVcpu,
    pages: Cell<u64>,
}

impl VcpuContext for Counting {
    fn id(&self) -> VcpuId {
        self.vcpu.id()
    }

    fn location(&self) -> CpuLocation {
        self.vcpu.location()
    }

    fn translate(&self, address: u64) -> Option<u64> {
        self.pages.set(self.pages.get() + 1);
        self.vcpu.translate(address)
    }

    fn read_physical(&self, address: u64, buf: &mut [u8]) -> bool {
        self.vcpu.read_physical(address, buf)
    }

    fn kernel_msr(&self, index: u32) -> Result<u64, KernelMsrError> {
        self.vcpu.kernel_msr(index)
    }

    fn set_kernel_msr(&self, index: u32, value: u64) -> Result<(), KernelMsrError> {
        self.vcpu.set_kernel_msr(index, value)
    }

    fn tsc(&self) -> u64 {
        self.vcpu.tsc()
    }
}

#[test]
fn no_update_has_more_pages_read_than_four_mebibytes_have() {
    // A multiple of 1024 with a whole number of entries next to 4 bytes of data.
    const TOTAL: u32 = 1365 * 3 * 1024;
    let largest = |data_size| Intel {
        data_size,
        total_size: TOTAL,
        ..Intel::new(5)
    };
    let table = |entries: u32| Intel {
        table: vec![(0x606a5, 1); entries as usize],
        ..largest(TOTAL - 48 - 20 - 12 * entries)
    };
    for (what, update, revision) in [
        ("data alone", largest(TOTAL - 48), 5),
        ("the longest table", table(339), 5),
        ("one entry too many", table(340), 3),
        ("a table alone", table((TOTAL - 48 - 4 - 20) / 12), 3),
    ] {
        for misaligned in 0..4 {
            let machine = Machine::intel(3);
            let mut vcpu = machine.vcpu(0);
            vcpu.memory.insert(AT + misaligned, update.bytes());
            let cpu = Counting {
                vcpu,
                pages: Cell::new(0),
            };
            let access = MsrAccess {
                index: 0x79,
                reason: ExitReason::Filter,
                cpu: &cpu,
            };
            let written = machine.device.write(&access, AT + misaligned + 48);
            assert_eq!(written, Ok(()), "{what}");
            assert_eq!(machine.revision(0), revision, "{what}");
            // Pieces that are not aligned to words lie in two pages each.
            let each = if misaligned == 0 { 1 } else { 2 };
            let pages = cpu.pages.get();
            assert!(pages <= each * 1024 + 4, "{what}: {pages} pages");
        }
    }
}

proptest! {
    #[test]
    fn one_changed_byte_always_spoils_an_intel_update(at in 0usize..4096, flip in 1u8..) {
        let mut bytes = Intel::new(5).with_table(&[(0x606a5, 1)]).bytes();
        bytes[at] ^= flip;
        let machine = Machine::intel(3).with(bytes);
        // A header that asks for more than there is ends at unmapped memory.
        let _ = machine.write(0, 0x79, AT + 48);
        prop_assert_eq!(machine.revision(0), 3);
    }

    #[test]
    fn no_header_makes_the_device_panic(
        header in prop::array::uniform32(any::<u32>()),
        valid in any::<u32>(),
        len in 0usize..8192,
    ) {
        let mut bytes = Intel::new(5).bytes();
        bytes.resize(len.max(128), 0);
        for (i, word) in header.into_iter().enumerate() {
            if valid >> i & 1 == 0 {
                set(&mut bytes, i * 4, word);
            }
        }
        let _ = Machine::intel(3).with(bytes.clone()).write(0, 0x79, AT + 48);
        let _ = Machine::amd(3).with(bytes).write(0, 0xc001_0020, AT);
    }
}
