//! CPUID modifiers: to the keys of `[cpu]` where there is one, else to `[[cpu.leaf]]`.

use std::collections::BTreeMap;

use msr_filter::CpuTemplate;

use super::{FirecrackerError, Leaf};
use crate::cpu::{Feature, LeafBits, Register, RegisterBits, Vendor, decided_elsewhere};
use crate::models::import::Imported;

/// What a template does to a register of CPUID.
pub(super) struct CpuidBits {
    leaf: u32,
    subleaf: u32,
    register: Register,
    pub(super) bits: RegisterBits,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Leaf 1's EAX: stepping, model, family, extended model and extended family.
const SIGNATURE: u32 = 0x0fff_0fff;
/// Leaf 1's ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;

/// Reads the modifiers, each register at most once.
pub(super) fn read(modifiers: &[Leaf]) -> Result<Vec<CpuidBits>, FirecrackerError> {
    let mut all: Vec<CpuidBits> = Vec::new();
    for Leaf {
        leaf,
        subleaf,
        modifiers,
        ..
    } in modifiers
    {
        let (leaf, subleaf) = (number(leaf)?, number(subleaf)?);
        for modifier in modifiers {
            let register = Register::by_name(&modifier.register)
                .ok_or_else(|| FirecrackerError::Register(modifier.register.clone()))?;
            let bitmap = &modifier.bitmap;
            let bits = bitmap
                .starts_with("0b")
                .then(|| RegisterBits::parse(bitmap));
            let bits = bits
                .flatten()
                .ok_or_else(|| FirecrackerError::Number(bitmap.clone()))?;
            let place = (leaf, subleaf, register);
            if all.iter().any(|b| (b.leaf, b.subleaf, b.register) == place) {
                return Err(FirecrackerError::Twice {
                    leaf,
                    subleaf,
                    register: modifier.register.clone(),
                });
            }
            all.push(CpuidBits {
                leaf,
                subleaf,
                register,
                bits,
            });
        }
    }
    Ok(all)
}

fn number(text: &str) -> Result<u32, FirecrackerError> {
    CpuTemplate::number(text).ok_or_else(|| FirecrackerError::Number(text.to_owned()))
}

/// Whether these are all of a CPU's leaves, with every bit given, and not changes to some.
pub(super) fn is_dump(cpuid: &[CpuidBits]) -> bool {
    cpuid.iter().all(|bits| bits.bits.mask == u32::MAX)
        && [0, 1, 0x8000_0000]
            .iter()
            .all(|leaf| cpuid.iter().any(|b| b.leaf == *leaf))
}

/// Puts all bits into the model, or notes why not.
pub(super) fn import(mut cpuid: Vec<CpuidBits>, imported: &mut Imported) {
    identity(&mut cpuid, imported);
    let mut left_out = BTreeMap::<&str, Vec<String>>::new();
    for CpuidBits {
        leaf,
        subleaf,
        register,
        mut bits,
    } in cpuid
    {
        if (leaf, register) == (1, Ecx) && bits.mask & HYPERVISOR != 0 {
            imported.model.cpu.hypervisor = bits.value & HYPERVISOR != 0;
            bits = bits.without(HYPERVISOR);
        }
        if let Some((decided, why)) = decided_elsewhere(leaf, subleaf, register) {
            if bits.mask & decided != 0 {
                let places = left_out.entry(why).or_default();
                let place = if decided == u32::MAX {
                    format!("{leaf:#x}")
                } else {
                    format!("{leaf:#x} {register} {decided:#x}")
                };
                if !places.contains(&place) {
                    places.push(place);
                }
            }
            bits = bits.without(decided);
        }
        let bits = features(leaf, subleaf, register, bits, imported);
        if bits.mask != 0 {
            let leaves = &mut imported.model.cpu.leaves;
            let same = |l: &LeafBits| (l.leaf.0, l.subleaf.0) == (leaf, subleaf);
            let at = leaves.iter().position(same).unwrap_or_else(|| {
                leaves.push(LeafBits::new(leaf, subleaf));
                leaves.len() - 1
            });
            leaves[at].give(register, bits);
        }
    }
    for (why, places) in left_out {
        imported.note(format!("CPUID {}: not imported, {why}.", places.join(", ")));
    }
}

/// Hides and shows the features among the bits, and returns the others.
fn features(
    leaf: u32,
    subleaf: u32,
    register: Register,
    mut bits: RegisterBits,
    imported: &mut Imported,
) -> RegisterBits {
    let cpu = &mut imported.model.cpu;
    for bit in (0..32)
        .filter(|bit| bits.mask >> bit & 1 == 1)
        .collect::<Vec<_>>()
    {
        let set = bits.value >> bit & 1 == 1;
        match Feature::at(leaf, subleaf, register, bit) {
            Some(feature) if set => cpu.show.push(feature),
            Some(feature) => cpu.hide.push(feature),
            None => continue,
        }
        bits = bits.without(1 << bit);
    }
    bits
}

/// Takes out of `cpuid` what says who the CPU is, where it is whole.
fn identity(cpuid: &mut Vec<CpuidBits>, imported: &mut Imported) {
    let given = |cpuid: &[CpuidBits], leaf, register, mask| {
        let at = |bits: &&CpuidBits| (bits.leaf, bits.register) == (leaf, register);
        let bits = cpuid.iter().find(at)?.bits;
        (bits.mask & mask == mask).then_some(bits.value & mask)
    };
    let take = |cpuid: &mut Vec<CpuidBits>, leaf, registers: &[Register], mask: u32| {
        for bits in cpuid.iter_mut() {
            if bits.leaf == leaf && registers.contains(&bits.register) {
                bits.bits = bits.bits.without(mask);
            }
        }
    };
    let cpu = &mut imported.model.cpu;
    if let Some(signature) = given(cpuid, 1, Eax, SIGNATURE) {
        cpu.set_signature(signature);
        take(cpuid, 1, &[Eax], SIGNATURE);
        // Where AMD repeats it, and Intel has 0.
        if matches!(given(cpuid, 0x8000_0001, Eax, u32::MAX), Some(repeated) if repeated == signature || repeated == 0)
        {
            take(cpuid, 0x8000_0001, &[Eax], u32::MAX);
        }
    }
    let words =
        |cpuid: &[CpuidBits], leaf| [Ebx, Edx, Ecx].map(|r| given(cpuid, leaf, r, u32::MAX));
    let vendor = words(cpuid, 0);
    if let [Some(ebx), Some(edx), Some(ecx)] = vendor {
        let text = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
        let text = String::from_utf8(text).ok();
        cpu.vendor = text.and_then(|text| Vendor::try_from(text).ok());
        if cpu.vendor.is_some() {
            take(cpuid, 0, &[Ebx, Ecx, Edx], u32::MAX);
            let repeated = words(cpuid, 0x8000_0000);
            if repeated == vendor || repeated == [Some(0); 3] {
                take(cpuid, 0x8000_0000, &[Ebx, Ecx, Edx], u32::MAX);
            }
        }
    }
    let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004];
    let registers = [Eax, Ebx, Ecx, Edx];
    let brand: Option<Vec<u32>> = leaves
        .iter()
        .flat_map(|leaf| registers.map(|register| given(cpuid, *leaf, register, u32::MAX)))
        .collect();
    let Some(words) = brand else { return };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    cpu.brand = Some(text.trim_end_matches('\0').to_owned());
    cpuid.retain(|bits| !leaves.contains(&bits.leaf));
}
