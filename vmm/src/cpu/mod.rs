//! What the guest sees of its CPUs: CPUID, MSRs at boot, topology.
