//! Puts [`msr_filter`] and [`msr_bus`] to work on a KVM VMM.
//!
//! An [`MsrPlan`] is built from a configuration: the bus that answers MSR accesses in userspace, and the filter and
//! exit reasons that make KVM ask it. [`MsrPlan::install`] hands filter and exit reasons to KVM, and
//! [`MsrPlan::set_initial`] gives each vCPU the values that MSRs in KVM start with. Each
//! MSR exit becomes an [`MsrExit`], which asks the bus, and [`complete`] leaves the answer for the next KVM_RUN. Devices see
//! the vCPU through a [`VcpuView`]. [`MsrStats`] counts, [`HostClock`] measures the vCPU threads' CPU time, and
//! [`check`] finds out what the host's KVM can do.
//!
//! The crate boots nothing and has no command line.

pub mod check;
mod clock;
mod config;
mod context;
mod exit;
mod initial;
mod internal_error;
mod plan;
mod profile;
mod source;
mod stats;

pub use clock::HostClock;
pub use config::MsrConfig;
pub use context::VcpuView;
pub use exit::{MsrExit, complete};
pub use initial::{InitialMsr, OnRefusal, RefusedMsr, RefusedMsrs};
pub use internal_error::InternalError;
pub use plan::{MsrPlan, PlanError};
pub use profile::{ProfileError, is_built_in as is_built_in_profile, load as load_profile};
pub use source::RuleSource;
pub use stats::MsrStats;
