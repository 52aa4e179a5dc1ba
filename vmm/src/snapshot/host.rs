//! Whether this host can show the guest the CPU that it has seen.

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

/// A leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Leaf {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

/// The leaves of a vCPU's CPUID.
pub(crate) fn leaves(cpuid: &CpuId) -> Vec<Leaf> {
    let leaf = |entry: &kvm_bindings::kvm_cpuid_entry2| Leaf {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    cpuid.as_slice().iter().map(leaf).collect()
}

/// The most differences that are told.
const MOST: usize = 8;

/// What is other in CPUID here than what the guest has seen, in words.
pub(super) fn differences(saved: &[Leaf], here: &[Leaf]) -> Vec<String> {
    let find = |leaves: &[Leaf], leaf: &Leaf| {
        let same = |l: &&Leaf| (l.function, l.index) == (leaf.function, leaf.index);
        leaves.iter().find(same).copied()
    };
    let name = |leaf: &Leaf| format!("CPUID leaf {:#x}, {:#x}", leaf.function, leaf.index);
    let mut found = Vec::new();
    for leaf in saved {
        let Some(other) = find(here, leaf) else {
            found.push(format!("{} is not there", name(leaf)));
            continue;
        };
        for (register, saved, here) in [
            ("EAX", leaf.eax, other.eax),
            ("EBX", leaf.ebx, other.ebx),
            ("ECX", leaf.ecx, other.ecx),
            ("EDX", leaf.edx, other.edx),
        ] {
            if saved != here {
                let name = name(leaf);
                found.push(format!(
                    "{name} {register} was {saved:#x}, and is {here:#x}"
                ));
            }
        }
    }
    let new = here.iter().filter(|leaf| find(saved, leaf).is_none());
    found.extend(new.map(|leaf| format!("{} was not there", name(leaf))));
    if found.len() > MOST {
        let more = found.len() - MOST;
        found.truncate(MOST);
        found.push(format!("and {more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named_and_not_without_end() {
        let leaf = |function, eax| Leaf {
            function,
            index: 0,
            flags: 0,
            eax,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        assert_eq!(differences(&[leaf(1, 2)], &[leaf(1, 2)]), [""; 0]);
        assert_eq!(
            differences(&[leaf(1, 2), leaf(7, 0)], &[leaf(1, 3), leaf(0xd, 0)]),
            [
                "CPUID leaf 0x1, 0x0 EAX was 0x2, and is 0x3",
                "CPUID leaf 0x7, 0x0 is not there",
                "CPUID leaf 0xd, 0x0 was not there"
            ]
        );
        let many: Vec<Leaf> = (0..20).map(|n| leaf(n, 0)).collect();
        assert_eq!(differences(&many, &[])[MOST], "and 12 more");
    }
}
