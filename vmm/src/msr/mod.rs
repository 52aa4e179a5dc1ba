//! The glue between KVM's MSR exits, the bus that answers them, and the filter that makes KVM ask.

mod config;
mod context;
mod exit;
mod plan;
mod profile;
mod source;
mod stats;

pub use config::MsrConfig;
pub use context::VcpuView;
pub use exit::{MsrExit, complete};
pub use plan::{MsrPlan, PlanError};
pub use profile::ProfileError;
pub(crate) use profile::is_built_in as is_built_in_profile;
pub use source::RuleSource;
pub use stats::MsrStats;
