//! What can be wrong with a configuration.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use msr_bus::DocumentError;

use super::vm::APIC_ID_MAX;
use super::{MAX_CPUS, MIN_MEMORY, MemorySize};
use crate::models::{ModelError, ModelName};

/// A configuration that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read, is not TOML, or has keys or values that mean nothing.
    #[error(transparent)]
    File(#[from] DocumentError),
    /// The file is of another kind.
    #[error("{file} {what}")]
    OtherKind {
        /// The file.
        file: String,
        /// What it is, and what to do with it.
        what: &'static str,
    },
    /// A path in it cannot be made absolute.
    #[error("no file can be at `{path}`: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The CPU model cannot be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Model and configuration are well-formed each, and not one over the other.
    #[error("the configuration laid over CPU model {model}: {message}")]
    Layered {
        /// The model's name or path.
        model: ModelName,
        /// What is wrong.
        message: String,
    },
    /// There is no kernel to boot.
    #[error("no kernel given: use --kernel FILE, or `kernel = \"FILE\"` under [vm] in the config")]
    NoKernel,
    /// A vCPU's APIC id does not fit 8 bits.
    #[error(
        "vm.topology of {packages} packages x {cores} cores x {threads} threads has APIC ids up to {last}, and the highest is {APIC_ID_MAX}: \
         each field of an APIC id is as wide as a power of two, so use powers of two, or fewer packages"
    )]
    ApicId {
        /// Packages.
        packages: u32,
        /// Cores in each package.
        cores: u32,
        /// Threads in each core.
        threads: u32,
        /// The highest APIC id.
        last: u32,
    },
    /// The debug-exit port is another device's.
    #[error(
        "vm.debug_exit is {0:#x}, and the 4 ports from there on are not all free; from 0xf4 on they are"
    )]
    DebugExit(u16),
    /// The number of vCPUs is out of range.
    #[error("vm.cpus is {0}; it takes a whole number from 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// No kernel fits.
    #[error("vm.memory is {0}; a guest needs at least {MIN_MEMORY}")]
    Memory(MemorySize),
    /// The same file is two disks, and the guest could write to one of them.
    #[error(
        "vm.disk: {} and {} are the same file; a disk that the guest writes to can be given once only",
        first.display(), second.display()
    )]
    DiskTwice {
        /// The path that comes first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A number of a rate limit is out of range.
    #[error("{key} is {value}; it takes a whole number from {} to {}", range.start(), range.end())]
    RateLimiter {
        /// The key, such as `vm.disk[0].rate_limiter.ops.size`.
        key: String,
        /// What it says.
        value: u64,
        /// What it takes.
        range: RangeInclusive<u64>,
    },
    /// The topology does not have as many CPUs as there are.
    #[error(
        "vm.topology has {packages} packages x {cores} cores x {threads} threads; they must be as many as vm.cpus, {cpus}"
    )]
    Topology {
        /// Packages.
        packages: u32,
        /// Cores in each package.
        cores: u32,
        /// Threads in each core.
        threads: u32,
        /// vCPUs in all.
        cpus: u32,
    },
}

impl ConfigError {
    /// The key that is wrong, such as `vm.cpus`, if it is one.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Cpus(_) => Some("vm.cpus"),
            Self::Memory(_) => Some("vm.memory"),
            Self::Topology { .. } | Self::ApicId { .. } => Some("vm.topology"),
            Self::DebugExit(_) => Some("vm.debug_exit"),
            Self::DiskTwice { .. } => Some("vm.disk"),
            Self::RateLimiter { key, .. } => Some(key),
            _ => None,
        }
    }
}
