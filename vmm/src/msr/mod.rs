//! The glue between KVM's MSR exits, the bus that answers them, and the filter that makes KVM ask.

mod config;
mod context;
mod exit;
mod plan;
mod stats;

pub use config::MsrConfig;
pub use context::VcpuView;
pub use exit::{MsrExit, complete};
pub use plan::{MsrPlan, PlanError};
pub use stats::MsrStats;
