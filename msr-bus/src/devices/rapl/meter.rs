//! The energy counters of a machine.

use crate::Topology;

/// What an energy counter measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meter {
    /// A whole package, but for its memory.
    Package(u32),
    /// The cores of a package, Intel's power plane 0.
    Cores(u32),
    /// The graphics of a package, Intel's power plane 1.
    Graphics(u32),
    /// The memory of a package.
    Dram(u32),
    /// One core, by its number in the machine.
    Core(u32),
}

impl Meter {
    /// The vCPUs whose cores it covers.
    pub(super) fn vcpus(self, topology: &Topology) -> std::ops::Range<u32> {
        let (number, size) = match self {
            Self::Core(core) => (core, topology.threads),
            Self::Package(p) | Self::Cores(p) | Self::Graphics(p) | Self::Dram(p) => {
                (p, topology.cores * topology.threads)
            }
        };
        number * size..(number + 1) * size
    }
}
