//! The topology in CPUID: what is the same for each vCPU, and its APIC id.

use msr_bus::{Topology, VcpuId};

use super::leaves::{Leaves, Registers};
use super::topology::{ApicIdFields, apic_id};

// Leaf 1.
/// EDX: EBX has a count of logical processors.
const HTT: u32 = 1 << 28;
/// ECX: x2APIC mode, for APIC ids beyond 8 bits.
const X2APIC: u32 = 1 << 21;
/// Leaf 0x80000001, ECX on AMD: the threads counted by leaf 1 may be cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaves 0x8000_001d and 0x8000_001e are there (AMD64 APM vol. 3, CPUID Fn8000_0001_ECX).
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

// Leaves 0xb and 0x1f, ECX.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The subleaves of 0xb and 0x1f: a level of threads, one of cores, and the end of the list.
const LEVELS: u32 = 3;

/// Describes `topology` but for what tells one vCPU from another.
pub(super) fn write(leaves: &mut Leaves, topology: &Topology, is_amd: bool) {
    let fields = ApicIdFields::of(topology);
    let per_package = topology.cores * topology.threads;
    // What APIC ids have room for, which is what leaves 1 and 4 count.
    let ids_per_core = 1 << fields.core_shift;
    let ids_per_package = 1 << fields.package_shift;

    leaves.edit(1, 0, |entry| {
        entry.ebx = entry.ebx & 0xff00_ffff | (ids_per_package).min(0xff) << 16;
        set(&mut entry.edx, HTT, per_package > 1);
    });
    for cache in leaves.subleaves(0x4).filter(|cache| cache.eax & 0x1f != 0) {
        let core_ids = (ids_per_package / ids_per_core).min(64) - 1;
        let sharing = sharing(cache.eax, ids_per_core, ids_per_package);
        cache.eax = cache.eax & 0x3fff | sharing << 14 | core_ids << 26;
    }
    let levels = [
        (fields.core_shift, topology.threads, LEVEL_THREAD),
        (fields.package_shift, per_package, LEVEL_CORE),
        (0, 0, 0),
    ];
    let extended = leaves.last_basic() >= 0x1f;
    leaves.remove(0xb);
    leaves.remove(0x1f);
    for leaf in [0xb, 0x1f] {
        if leaf == 0x1f && !extended {
            continue;
        }
        for (subleaf, (shift, count, level)) in (0..LEVELS).zip(levels) {
            leaves.set_subleaf(
                leaf,
                subleaf,
                Registers {
                    eax: shift,
                    ebx: count & 0xffff,
                    ecx: level | subleaf,
                    edx: 0,
                },
            );
        }
    }
    leaves.reach(0xb);
    if is_amd {
        write_amd(leaves, topology, fields);
    }
}

fn write_amd(leaves: &mut Leaves, topology: &Topology, fields: ApicIdFields) {
    let per_package = topology.cores * topology.threads;
    leaves.edit(0x8000_0001, 0, |entry| {
        set(&mut entry.ecx, CMP_LEGACY, per_package > 1);
        // Leaf 0x8000_001e is this file's own, so it can be announced whatever the host has. Without it Linux
        // takes AMD's threads for cores.
        if topology.threads > 1 {
            entry.ecx |= TOPOLOGY_EXTENSIONS;
        }
    });
    leaves.edit(0x8000_0008, 0, |entry| {
        let id_size = fields.package_shift.min(0xf);
        entry.ecx = entry.ecx & !0xf0ff | id_size << 12 | (per_package - 1).min(0xff);
    });
    for cache in leaves
        .subleaves(0x8000_001d)
        .filter(|cache| cache.eax & 0x1f != 0)
    {
        let sharing = sharing(cache.eax, 1 << fields.core_shift, 1 << fields.package_shift);
        cache.eax = cache.eax & 0x3fff | sharing << 14;
    }
}

/// How many APIC ids share a cache, minus 1, for the 12 bits of leaves 4 and 0x8000001d: a core's for the first and second
/// level, a package's beyond.
fn sharing(cache_eax: u32, ids_per_core: u32, ids_per_package: u32) -> u32 {
    let level = cache_eax >> 5 & 0x7;
    let ids = if level < 3 {
        ids_per_core
    } else {
        ids_per_package
    };
    ids.min(0x1000) - 1
}

/// Puts in what tells `vcpu` from the others.
pub(super) fn write_vcpu(leaves: &mut Leaves, topology: &Topology, vcpu: VcpuId, is_amd: bool) {
    let id = apic_id(topology, vcpu);
    leaves.edit(1, 0, |entry| {
        entry.ebx = entry.ebx & 0x00ff_ffff | (id & 0xff) << 24;
        entry.ecx |= X2APIC;
    });
    for leaf in [0xb, 0x1f] {
        for level in leaves.subleaves(leaf) {
            level.edx = id;
        }
    }
    if is_amd {
        let location = topology.locate(vcpu);
        let core = location.core % topology.cores;
        leaves.set(
            0x8000_001e,
            Registers {
                eax: id,
                ebx: (topology.threads - 1).min(0xff) << 8 | core & 0xff,
                // One node for each package.
                ecx: location.package & 0xff,
                edx: 0,
            },
        );
    }
}

fn set(register: &mut u32, bit: u32, value: bool) {
    if value {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Leaves {
        Leaves::of(&[
            (0, 0, [0x1f, 0, 0, 0]),
            (1, 0, [0, 0x7740_0800, 0, HTT]),
            (4, 0, [0xffff_c121, 0x01c0_003f, 63, 0]),
            (4, 1, [0xffff_c143, 0x03c0_003f, 1023, 0]),
            (4, 2, [0xffff_c163, 0x03c0_003f, 16383, 0]),
            (4, 3, [0, 0, 0, 0]),
            (0x8000_0001, 0, [0; 4]),
            (0x8000_0008, 0, [0x3030, 0, 0x1_7fff, 0]),
            (0x8000_001d, 0, [0xffff_c121, 0x01c0_003f, 63, 0]),
            (0x8000_001d, 3, [0xffff_c163, 0x03c0_003f, 16383, 0]),
        ])
    }

    fn of((packages, cores, threads): (u32, u32, u32), vcpu: u32, is_amd: bool) -> Leaves {
        let topology = Topology {
            packages,
            cores,
            threads,
        };
        let mut leaves = host();
        write(&mut leaves, &topology, is_amd);
        write_vcpu(&mut leaves, &topology, VcpuId(vcpu), is_amd);
        leaves
    }

    /// What the SDM's algorithms find: (threads in a core, ids in a package, HTT), by leaves 1 and 4.
    #[test]
    fn leaves_1_and_4_count_the_ids_that_the_topology_takes() {
        for (shape, vcpu, id, ids_per_core, ids_per_package) in [
            ((1, 1, 1), 0, 0, 1, 1),
            ((1, 2, 1), 1, 1, 1, 2),
            ((1, 1, 2), 1, 1, 2, 2),
            ((1, 4, 2), 7, 7, 2, 8),
            ((2, 3, 1), 5, 6, 1, 4),
            ((2, 3, 2), 11, 13, 2, 8),
            ((1, 32, 1), 31, 31, 1, 32),
            ((1, 100, 2), 199, 199, 2, 256),
        ] {
            let leaves = of(shape, vcpu, false);
            let leaf = leaves.get(1, 0);
            assert_eq!(leaf.ebx >> 24, id, "{shape:?}");
            assert_eq!(leaf.ebx >> 16 & 0xff, ids_per_package.min(255), "{shape:?}");
            assert_eq!(leaf.ebx & 0xffff, 0x0800, "CLFLUSH size is kept");
            assert_eq!(leaf.edx & HTT != 0, ids_per_package > 1, "{shape:?}");
            for (cache, ids) in [(0, ids_per_core), (1, ids_per_core), (2, ids_per_package)] {
                let eax = leaves.get(4, cache).eax;
                assert_eq!((eax >> 14 & 0xfff) + 1, ids, "{shape:?}, cache {cache}");
                assert_eq!((eax >> 26) + 1, (ids_per_package / ids_per_core).min(64));
            }
            assert_eq!(
                leaves.get(4, 2).eax & 0x3fff,
                0x0163,
                "type and level are kept"
            );
            assert_eq!(leaves.get(4, 3).eax, 0, "the end of the list stays");
        }
    }

    #[test]
    fn leaf_0xb_has_levels_with_shifts_counts_and_the_id() {
        for leaf in [0xb, 0x1f] {
            let leaves = of((2, 3, 2), 11, false);
            let levels = [0, 1, 2].map(|subleaf| {
                let level = leaves.get(leaf, subleaf);
                (level.eax, level.ebx, level.ecx, level.edx)
            });
            assert_eq!(
                levels,
                [(1, 2, 0x100, 13), (3, 6, 0x201, 13), (0, 0, 2, 13)],
                "{leaf:#x}"
            );
        }
    }

    #[test]
    fn leaf_0x1f_is_there_only_where_leaves_go_that_far() {
        let mut leaves = Leaves::of(&[(0, 0, [0xd, 0, 0, 0])]);
        write(&mut leaves, &Topology::flat(2), false);
        assert_eq!(leaves.get(0x1f, 0), Registers::default());
        assert_eq!(leaves.get(0xb, 1).ebx, 2);
        assert_eq!(leaves.last_basic(), 0xd);
    }

    #[test]
    fn amds_leaves_say_the_same() {
        let leaves = of((2, 3, 2), 11, true);
        let features = leaves.get(0x8000_0001, 0).ecx;
        assert_eq!(features, CMP_LEGACY | TOPOLOGY_EXTENSIONS);
        assert_eq!(leaves.get(0x8000_0008, 0).ecx, 0x1_3f05);
        assert_eq!(leaves.get(0x8000_001d, 0).eax >> 14, 1);
        assert_eq!(leaves.get(0x8000_001d, 3).eax >> 14, 7);
        let topology = leaves.get(0x8000_001e, 0);
        assert_eq!((topology.eax, topology.ebx, topology.ecx), (13, 0x102, 1));
        let single = of((1, 1, 1), 0, true);
        assert_eq!(single.get(0x8000_0001, 0).ecx, 0);
        assert_eq!(single.get(0x8000_0008, 0).ecx & 0xf0ff, 0);
    }

    #[test]
    fn amds_threads_are_announced_even_where_the_host_has_none() {
        for (shape, announced) in [((1, 2, 2), true), ((1, 4, 1), false)] {
            let ecx = of(shape, 0, true).get(0x8000_0001, 0).ecx;
            assert_eq!(ecx & TOPOLOGY_EXTENSIONS != 0, announced, "{shape:?}");
        }
    }
}
