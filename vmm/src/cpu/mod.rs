//! What the guest sees of its CPUs: CPUID, MSRs at boot, topology.

pub mod msrs;
pub mod topology;
