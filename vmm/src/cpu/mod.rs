//! What the guest sees of its CPUs: CPUID, MSRs at boot, topology.
//!
//! CPUID starts from what KVM supports on this host. On top of that come the [`CpuModel`] (identity and features), the
//! topology, which differs from vCPU to vCPU, and the frequency of the TSC.
//!
//! Manuals cited: Intel SDM, volume 2, "CPUID"; AMD APM, volume 3, appendix E.

mod cpuid;
mod features;
mod frequency;
mod identity;
mod leaves;
mod model;
pub mod msrs;
pub mod topology;
mod topology_leaves;
mod vendor;

pub use cpuid::{Cpuid, CpuidError, HostCpu, HostCpuError};
pub use features::{Feature, UnknownFeature};
pub use model::{CpuModel, CpuModelError};
pub use vendor::{Vendor, VendorError};
