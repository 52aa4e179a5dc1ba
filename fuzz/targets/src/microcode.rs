//! Microcode updates of both vendors, in memory that may end anywhere.
//!
//! A core's revision never goes down, whatever is loaded, and an update that faults changes nothing.

use arbitrary::{Arbitrary, Unstructured};
use msr_bus::testing::{FakeVcpu, ICE_LAKE, ZEN_3, context_of};
use msr_bus::{
    CpuVendor, DeviceConfig, DeviceModel, ExitReason, GeneralProtection, MsrAccess, MsrDevice,
    Topology,
};

const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const PATCH_LOADER: u32 = 0xc001_0020;

#[derive(Arbitrary)]
struct Load {
    /// Where the update is in the guest's address space.
    base: u64,
    /// What the guest writes, relative to where the data is.
    off_by: i8,
    amd: bool,
    /// Whether the checksum is made right, so that the checks behind it are reached.
    mend: bool,
    /// A second load of the same.
    twice: bool,
}

const LOAD: usize = 16;

/// The last bytes of `data` say how the update before them is loaded.
pub fn run(data: &[u8]) {
    let (update, rest) = data.split_at(data.len() - data.len().min(LOAD));
    let Ok(load) = Load::arbitrary(&mut Unstructured::new(rest)) else {
        return;
    };
    let mut update = update.to_vec();
    if load.mend {
        mend(&mut update, load.amd);
    }
    let cpu = if load.amd { ZEN_3 } else { ICE_LAKE };
    let config = DeviceConfig {
        model: "microcode".to_owned(),
        name: None,
        keys: toml::Table::new(),
    };
    let device = config.build(DeviceModel::all(), &context_of(cpu, Topology::flat(1)));
    let device = device.expect("a device with default keys");
    let mut vcpu = FakeVcpu::default();
    vcpu.memory.insert(load.base, update);
    let (trigger, header) = match cpu.vendor {
        CpuVendor::Intel => (IA32_BIOS_UPDT_TRIG, 48),
        CpuVendor::Amd => (PATCH_LOADER, 0),
    };
    let address = load.base.wrapping_add(header);
    let addresses = [address, address.wrapping_add_signed(load.off_by.into())];
    for address in &addresses[..1 + usize::from(load.twice)] {
        let before = revision(&*device, &vcpu);
        let written = device.write(&access(&vcpu, trigger), *address);
        let after = revision(&*device, &vcpu);
        assert!(after >= before, "{before:#x} to {after:#x}");
        if written == Err(GeneralProtection) {
            assert_eq!(after, before);
        }
    }
}

fn access(vcpu: &FakeVcpu, index: u32) -> MsrAccess<'_> {
    MsrAccess {
        index,
        reason: ExitReason::Filter,
        cpu: vcpu,
    }
}

fn revision(device: &dyn MsrDevice, vcpu: &FakeVcpu) -> u64 {
    let value = device.read(&access(vcpu, IA32_BIOS_SIGN_ID));
    value.expect("the revision can always be read")
}

/// Intel: the words of the whole update sum up to 0; the checksum is the fifth. AMD: the fourth word is the sum of the
/// data's.
fn mend(update: &mut [u8], amd: bool) {
    let sum = |bytes: &[u8]| {
        let words = bytes.chunks_exact(4);
        words
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .fold(0, u32::wrapping_add)
    };
    let at = |update: &[u8], at: usize| {
        let word = update.get(at..at + 4)?;
        Some(u32::from_le_bytes(word.try_into().expect("four bytes")) as usize)
    };
    if amd {
        let length = update.get(10).map_or(0, |triads| usize::from(*triads) * 28);
        if let Some(sum) = update.get(64..64 + length).map(sum) {
            update[12..16].copy_from_slice(&sum.to_le_bytes());
        }
        return;
    }
    let total = match (at(update, 28), at(update, 32)) {
        (Some(0), _) => 2048,
        (_, Some(total)) => total,
        _ => return,
    };
    if total >= 48 && total <= update.len() {
        update[16..20].fill(0);
        let checksum = 0u32.wrapping_sub(sum(&update[..total]));
        update[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
}
