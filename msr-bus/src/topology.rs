//! The guest's CPU topology, and state that follows it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::VcpuId;

/// How the guest's vCPUs are arranged. vCPU numbers run through the threads of a core, then the cores of
/// a package, then the packages.
///
/// Where vCPUs can be added to a running guest (hotplug), this is the topology of the most there can be: devices make
/// room for all of them when they are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    /// Packages (sockets); at least 1.
    pub packages: u32,
    /// Cores in each package; at least 1.
    pub cores: u32,
    /// Threads in each core; at least 1.
    pub threads: u32,
}

/// Where one vCPU sits. `core` counts over the whole machine, not within the package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuLocation {
    /// The package's number.
    pub package: u32,
    /// The core's number, counted over all packages.
    pub core: u32,
    /// The thread's number, counted over all cores: the vCPU's number.
    pub thread: u32,
}

impl Topology {
    /// One package of `cores` single-threaded cores.
    pub const fn flat(cores: u32) -> Self {
        Self {
            packages: 1,
            cores,
            threads: 1,
        }
    }

    /// How many vCPUs there are, those that come later included.
    pub const fn vcpus(&self) -> u32 {
        self.packages
            .saturating_mul(self.cores)
            .saturating_mul(self.threads)
    }

    /// Where `vcpu` sits.
    pub const fn locate(&self, vcpu: VcpuId) -> CpuLocation {
        // No divisor is 0, whatever the fields hold.
        let threads = if self.threads == 0 { 1 } else { self.threads };
        let cores = if self.cores == 0 { 1 } else { self.cores };
        let core = vcpu.0 / threads;
        CpuLocation {
            package: core / cores,
            core,
            thread: vcpu.0,
        }
    }
}

/// Which CPUs share a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Each logical processor has its own.
    #[default]
    Thread,
    /// The threads of a core share one.
    Core,
    /// The cores of a package share one.
    Package,
}

impl Scope {
    /// How many copies of the register a machine has.
    pub const fn copies(self, topology: &Topology) -> u32 {
        match self {
            Self::Thread => topology.vcpus(),
            Self::Core => topology.packages.saturating_mul(topology.cores),
            Self::Package => topology.packages,
        }
    }

    /// Which of the copies the CPU at `location` sees.
    pub const fn copy(self, location: CpuLocation) -> u32 {
        match self {
            Self::Thread => location.thread,
            Self::Core => location.core,
            Self::Package => location.package,
        }
    }
}

/// One `T` for each thread, core or package.
#[derive(Debug)]
pub struct PerScope<T> {
    scope: Scope,
    copies: Box<[T]>,
}

impl<T> PerScope<T> {
    /// As many copies as `topology` has of `scope`, each made by `make` from its number.
    pub fn new(scope: Scope, topology: &Topology, make: impl FnMut(u32) -> T) -> Self {
        // At least one, so that `at` always has an answer.
        let copies = scope.copies(topology).max(1);
        Self {
            scope,
            copies: (0..copies).map(make).collect(),
        }
    }

    /// The copy that the CPU at `location` sees. A CPU outside the topology that this was made for shares the
    /// last copy.
    pub fn at(&self, location: CpuLocation) -> &T {
        let copy = self.scope.copy(location) as usize;
        &self.copies[copy.min(self.copies.len() - 1)]
    }

    /// Every copy, in the order of their numbers.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.copies.iter()
    }

    /// How many copies there are.
    #[allow(clippy::len_without_is_empty)] // there is always at least one
    pub fn len(&self) -> usize {
        self.copies.len()
    }
}

/// Time, as devices that model energy and frequency need it.
pub trait CpuClock: Send + Sync {
    /// Time since some fixed point, never running backwards.
    fn now(&self) -> Duration;

    /// The CPU time that `vcpu`'s thread has really got from the host, never running backwards.
    fn cpu_time(&self, vcpu: VcpuId) -> Duration;

    /// The frequency of the guest's TSC in kHz, where it is known. Devices ask when they need it: while they are made, the
    /// guest may have no vCPU yet.
    fn tsc_khz(&self) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_outside_the_topology_shares_the_last_copy() {
        let topology = Topology {
            packages: 2,
            cores: 2,
            threads: 1,
        };
        let outside = topology.locate(VcpuId(u32::MAX));
        for (scope, last) in [(Scope::Thread, 3), (Scope::Core, 3), (Scope::Package, 1)] {
            let copies = PerScope::new(scope, &topology, |number| number);
            assert_eq!(*copies.at(outside), last);
            assert_eq!(*copies.at(topology.locate(VcpuId(0))), 0);
        }
    }

    #[test]
    fn a_topology_without_cpus_has_one_copy_of_each_register() {
        let nothing = Topology {
            packages: 0,
            cores: 0,
            threads: 0,
        };
        let copies = PerScope::new(Scope::Core, &nothing, |number| number);
        assert_eq!(*copies.at(nothing.locate(VcpuId(5))), 0);
    }
}
