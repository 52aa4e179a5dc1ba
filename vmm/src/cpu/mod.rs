//! What the guest sees of its CPUs: CPUID, MSRs at boot, topology.
//!
//! CPUID starts from what KVM supports on this host. On top of that come the [`CpuModel`] (identity and features), the
//! topology, which differs from vCPU to vCPU, and the frequency of the TSC.
//!
//! Manuals cited: Intel SDM, volume 2, "CPUID"; AMD APM, volume 3, appendix E.

#![forbid(unsafe_code)]

mod cpuid;
mod features;
mod frequency;
mod identity;
mod leaf_bits;
mod leaves;
mod model;
pub mod msrs;
mod offered;
mod pci;
pub(crate) mod pmu;
pub mod topology;
mod topology_leaves;
mod vendor;

pub use cpuid::{Cpuid, CpuidError, HostCpu, HostCpuError};
pub(crate) use features::Register;
pub use features::{Feature, UnknownFeature};
pub(crate) use leaf_bits::decided_elsewhere;
pub use leaf_bits::{LeafBits, LeafNumber, RegisterBits};
pub use model::{CpuModel, CpuModelError, OnUnoffered};
pub use offered::{ByEffect, Effect, Unoffered};
pub use pci::{ParsePciError, PciAddress, PciFunction, PciId, PciRegister};
pub use pmu::NoPmu;
pub use vendor::{Vendor, VendorError};
