//! The topology as APIC ids carry it: thread, core and package numbers in bit fields, each as wide as its highest number
//! needs (Intel SDM, volume 3, "Detecting Hardware Multi-Threading Support and Topology").

use msr_bus::{Topology, VcpuId};

/// The widths of an APIC id's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicIdFields {
    /// How far to shift an APIC id right for its core's: the bits of the thread number.
    pub core_shift: u32,
    /// How far to shift an APIC id right for its package's: the bits of thread and core number.
    pub package_shift: u32,
}

impl ApicIdFields {
    /// The fields that `topology` needs.
    pub const fn of(topology: &Topology) -> Self {
        let core_shift = width(topology.threads);
        Self {
            core_shift,
            package_shift: core_shift + width(topology.cores),
        }
    }
}

/// The bits that `count` different numbers take.
const fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// The (x2)APIC id of `vcpu`.
///
/// KVM makes a vCPU's id its APIC id, so this is what `KVM_CREATE_VCPU` is called with. Where threads or cores are no power
/// of two, the ids have gaps.
pub const fn apic_id(topology: &Topology, vcpu: VcpuId) -> u32 {
    let fields = ApicIdFields::of(topology);
    let location = topology.locate(vcpu);
    let core = location.core % topology.cores;
    let thread = location.thread % topology.threads;
    (location.package << fields.package_shift) | (core << fields.core_shift) | thread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_as_wide_as_their_highest_number() {
        for ((packages, cores, threads), core_shift, package_shift, last) in [
            ((1, 1, 1), 0, 0, 0),
            ((1, 2, 1), 0, 1, 1),
            ((1, 1, 2), 1, 1, 1),
            ((1, 3, 1), 0, 2, 2),
            ((2, 3, 1), 0, 2, 6),
            ((2, 3, 2), 1, 3, 13),
            ((2, 4, 2), 1, 3, 15),
            ((4, 1, 1), 0, 0, 3),
            ((2, 5, 3), 2, 5, 50),
            ((1, 32, 1), 0, 5, 31),
            ((2, 129, 1), 0, 8, 0x180),
        ] {
            let topology = Topology {
                packages,
                cores,
                threads,
            };
            let fields = ApicIdFields::of(&topology);
            assert_eq!(
                (fields.core_shift, fields.package_shift),
                (core_shift, package_shift),
                "{topology:?}"
            );
            let id = apic_id(&topology, VcpuId(topology.vcpus() - 1));
            assert_eq!(id, last, "{topology:?}");
        }
    }

    #[test]
    fn a_power_of_two_of_each_has_no_gaps() {
        let topology = Topology {
            packages: 2,
            cores: 4,
            threads: 2,
        };
        for vcpu in 0..16 {
            assert_eq!(apic_id(&topology, VcpuId(vcpu)), vcpu);
        }
    }
}
