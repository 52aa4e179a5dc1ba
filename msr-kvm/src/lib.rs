//! Puts [`msr_filter`] and [`msr_bus`] to work on a KVM VMM: everything between KVM's file descriptors and MSR devices.
//! It boots nothing, has no command line, and takes guest memory of any type.
//!
//! 1. An [`MsrPlan`] is made from devices and rules, or from an `MsrConfig` of a file. It holds the bus that answers in
//!    userspace, and the filter and exit reasons that make KVM ask it. No KVM is involved yet.
//! 2. [`VmMsrs::install`] hands it to KVM.
//! 3. [`VmMsrs::vcpu`] makes a [`VcpuMsrs`] for each vCPU, whose [`answer`](VcpuMsrs::answer) is all that a run loop
//!    calls. [`MsrPlan::set_initial`] gives the vCPU the values that MSRs in KVM start with.
//!
//! [`VmMsrs::set_rules`] changes the filter of a running VM, [`MsrStats`] counts, [`HostClock`] measures the vCPU
//! threads' CPU time for devices that model energy and frequency, [`host_cpu`] is the CPU that a guest is shown by
//! default, [`state`] saves and restores MSRs, and `check` finds out what the host's KVM can do.
//!
//! # Features
//!
//! - `config` (default): `MsrConfig` and profiles, for TOML, JSON or another format of serde's.
//! - `check` (default): the capability probe.

#[cfg(feature = "check")]
pub mod check;
mod clock;
#[cfg(feature = "config")]
mod config;
mod exit;
mod host;
mod ignore_msrs;
mod initial;
mod internal_error;
mod layers;
mod memory;
mod plan;
#[cfg(feature = "config")]
mod profile;
#[cfg(feature = "config")]
pub mod scenario;
mod source;
pub mod state;
mod stats;
mod vcpu;
mod vm;

pub use clock::HostClock;
#[cfg(feature = "config")]
pub use config::MsrConfig;
pub use exit::{Answered, MsrExit, complete};
pub use host::{cpuid, host_cpu};
pub use initial::{InitialMsr, OnRefusal, RefusedMsr, RefusedMsrs};
pub use internal_error::InternalError;
pub use layers::{FilterLayer, Layer, LostRule};
pub use memory::{NoMemory, PhysicalMemory};
pub use plan::{MsrPlan, MsrPlanBuilder, PlanError};
#[cfg(feature = "config")]
pub use profile::{
    ProfileError, built_in as built_in_profiles, is_built_in as is_built_in_profile,
    load as load_profile,
};
pub use source::RuleSource;
pub use stats::{Counts, MsrStats, StatsRow};
pub use vcpu::VcpuMsrs;
pub use vm::{VmMsrs, VmMsrsError};

/// The README's example, compiled with the documentation's.
#[cfg(all(doctest, feature = "config"))]
#[doc = include_str!("../README.md")]
struct Readme;
