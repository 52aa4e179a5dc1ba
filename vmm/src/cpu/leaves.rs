//! A set of CPUID leaves that can be edited.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The first leaf of the range that hypervisors use.
const HYPERVISOR_FIRST: u32 = 0x4000_0000;
const HYPERVISOR_LAST: u32 = 0x4fff_ffff;

/// What CPUID leaves in the four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) eax: u32,
    pub(super) ebx: u32,
    pub(super) ecx: u32,
    pub(super) edx: u32,
}

/// The leaves, in no particular order. A leaf that is not there reads as zero.
#[derive(Clone, Debug)]
pub(super) struct Leaves {
    entries: Vec<kvm_cpuid_entry2>,
}

impl Leaves {
    pub(super) fn new(cpuid: &CpuId) -> Self {
        Self {
            entries: cpuid.as_slice().to_vec(),
        }
    }

    pub(super) fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }

    /// What a leaf and subleaf read as.
    pub(super) fn get(&self, leaf: u32, subleaf: u32) -> Registers {
        self.entries
            .iter()
            .find(|entry| is(entry, leaf, subleaf))
            .map_or_else(Registers::default, |entry| Registers {
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
            })
    }

    /// Makes a leaf without subleaves read as `registers`.
    pub(super) fn set(&mut self, leaf: u32, registers: Registers) {
        self.put(leaf, 0, 0, registers);
    }

    /// Makes a subleaf read as `registers`.
    pub(super) fn set_subleaf(&mut self, leaf: u32, subleaf: u32, registers: Registers) {
        self.put(leaf, subleaf, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, registers);
    }

    fn put(&mut self, leaf: u32, subleaf: u32, flags: u32, registers: Registers) {
        self.entries.retain(|entry| !is(entry, leaf, subleaf));
        self.entries.push(kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf,
            flags,
            eax: registers.eax,
            ebx: registers.ebx,
            ecx: registers.ecx,
            edx: registers.edx,
            ..kvm_cpuid_entry2::default()
        });
    }

    /// Edits a leaf, or subleaf, that is there; nothing happens to one that is not.
    pub(super) fn edit(
        &mut self,
        leaf: u32,
        subleaf: u32,
        edit: impl FnOnce(&mut kvm_cpuid_entry2),
    ) {
        if let Some(entry) = self.entries.iter_mut().find(|e| is(e, leaf, subleaf)) {
            edit(entry);
        }
    }

    /// Edits the registers of a leaf, or subleaf, that is there.
    pub(super) fn edit_registers(
        &mut self,
        leaf: u32,
        subleaf: u32,
        edit: impl FnOnce(&mut Registers),
    ) {
        let mut registers = self.get(leaf, subleaf);
        edit(&mut registers);
        self.edit(leaf, subleaf, |entry| {
            entry.eax = registers.eax;
            entry.ebx = registers.ebx;
            entry.ecx = registers.ecx;
            entry.edx = registers.edx;
        });
    }

    /// Every subleaf of `leaf` that is there.
    pub(super) fn subleaves(&mut self, leaf: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.entries.iter_mut().filter(move |e| e.function == leaf)
    }

    /// Removes `leaf` with its subleaves.
    pub(super) fn remove(&mut self, leaf: u32) {
        self.entries.retain(|entry| entry.function != leaf);
    }

    /// Removes what KVM says of itself.
    pub(super) fn remove_hypervisor(&mut self) {
        let range = HYPERVISOR_FIRST..=HYPERVISOR_LAST;
        self.entries
            .retain(|entry| !range.contains(&entry.function));
    }

    /// Removes the leaves of `leaf`'s range (basic or extended) beyond it, and says that it is the last.
    pub(super) fn end_at(&mut self, leaf: u32) {
        let range = leaf & 0xf000_0000;
        self.entries
            .retain(|entry| entry.function & 0xf000_0000 != range || entry.function <= leaf);
        self.edit(range, 0, |entry| entry.eax = leaf);
    }

    /// Says that `leaf`'s range (basic or extended) goes at least as far as `leaf`.
    pub(super) fn reach(&mut self, leaf: u32) {
        self.edit(leaf & 0xf000_0000, 0, |entry| {
            entry.eax = entry.eax.max(leaf);
        });
    }

    /// The last leaf of the basic range.
    pub(super) fn last_basic(&self) -> u32 {
        self.get(0, 0).eax
    }
}

/// Where a leaf has no subleaves, KVM's entry has index 0 and answers whatever ECX is.
fn is(entry: &kvm_cpuid_entry2, leaf: u32, subleaf: u32) -> bool {
    entry.function == leaf
        && (entry.index == subleaf || entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0)
}

#[cfg(test)]
impl Leaves {
    /// Leaves given as (leaf, subleaf, [eax, ebx, ecx, edx]).
    pub(super) fn of(leaves: &[(u32, u32, [u32; 4])]) -> Self {
        let mut all = Self {
            entries: Vec::new(),
        };
        for &(leaf, subleaf, [eax, ebx, ecx, edx]) in leaves {
            let registers = Registers { eax, ebx, ecx, edx };
            let has_subleaves = leaves.iter().filter(|l| l.0 == leaf).count() > 1;
            if has_subleaves || matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d) {
                all.set_subleaf(leaf, subleaf, registers);
            } else {
                all.set(leaf, registers);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_without_subleaves_answers_for_each() {
        let leaves = Leaves::of(&[(1, 0, [1, 2, 3, 4])]);
        assert_eq!(leaves.get(1, 7), leaves.get(1, 0));
        assert_eq!(leaves.get(1, 0).edx, 4);
    }

    #[test]
    fn a_subleaf_answers_for_itself() {
        let leaves = Leaves::of(&[(4, 0, [1, 0, 0, 0]), (4, 1, [2, 0, 0, 0])]);
        assert_eq!(leaves.get(4, 1).eax, 2);
        assert_eq!(leaves.get(4, 2), Registers::default());
    }

    #[test]
    fn a_range_is_cut_and_extended_on_its_own() {
        let mut leaves = Leaves::of(&[
            (0, 0, [0xd, 0, 0, 0]),
            (0xd, 0, [1, 0, 0, 0]),
            (0x8000_0000, 0, [0x8000_001f, 0, 0, 0]),
            (0x8000_0008, 0, [1, 0, 0, 0]),
            (0x8000_001f, 0, [1, 0, 0, 0]),
        ]);
        leaves.end_at(0x8000_0008);
        leaves.reach(0x16);
        leaves.reach(0x5);
        assert_eq!(leaves.last_basic(), 0x16);
        assert_eq!(leaves.get(0x8000_0000, 0).eax, 0x8000_0008);
        assert_eq!(leaves.get(0x8000_0008, 0).eax, 1);
        assert_eq!(leaves.get(0x8000_001f, 0).eax, 0);
        assert_eq!(leaves.get(0xd, 0).eax, 1);
    }
}
