//! Boots a Linux kernel under KVM, with the guest's MSR accesses answered in userspace.

pub mod acpi;
pub mod boot;
pub mod check;
pub mod cli;
mod clock;
pub mod config;
mod control;
pub mod cpu;
pub mod devices;
mod ending;
mod fault;
mod internal_error;
pub mod layout;
pub mod memory;
pub mod msr;
mod running;
mod timing;
mod vcpu;
mod vm;

pub use config::Config;
pub use ending::{Ending, EndingSender};
pub use fault::{Fault, FaultReason};
pub use internal_error::InternalError;
pub use running::RunningVm;
pub use timing::{BootTiming, Moment};
pub use vm::{Vm, VmBuilder, VmError};
