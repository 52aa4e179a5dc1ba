//! Boots a Linux kernel under KVM, with the guest's MSR accesses answered in userspace.
//!
//! A [`Config`] says what the machine is; a [`VmBuilder`] adds what a file cannot hold, such as MSR devices of
//! one's own; [`Vm::start`] runs it, and the [`RunningVm`] is the handle to it: to pause, to replace the MSR
//! filter, to press the power button, to stop, and to wait for the [`Ending`]. Dropping the handle stops the
//! VM and leaves neither thread nor file behind.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use vmm::{Config, Ending, Vm};
//!
//! let mut config = Config::default();
//! config.vm.kernel = Some("vmlinuz".into());
//! config.vm.cpus = 2;
//! let vm = Vm::builder(config)
//!     .console_output(std::io::stdout())
//!     .build()?
//!     .start()?;
//!
//! // `vm.ended()` is an event for a program's own loop; this one has nothing else to do.
//! std::thread::sleep(Duration::from_secs(10));
//! if vm.heeds_power_button() {
//!     vm.press_power_button();
//! } else {
//!     vm.stop();
//! }
//! match vm.wait() {
//!     Ending::PowerOff | Ending::Reset => println!("in order"),
//!     Ending::Stopped => println!("stopped"),
//!     Ending::Fault(fault) => eprintln!("{fault}"),
//! }
//! # Ok::<(), vmm::VmError>(())
//! ```
//!
//! `examples/` has the smallest VM and one with an MSR device of its own.

pub mod acpi;
pub mod boot;
mod builder;
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
mod machine;
pub mod memory;
pub mod models;
pub mod msr;
mod running;
mod timing;
mod vcpu;
mod vm;

pub use builder::VmBuilder;
pub use config::Config;
pub use ending::{Ending, EndingSender};
pub use fault::{Fault, FaultReason};
pub use internal_error::InternalError;
pub use running::RunningVm;
pub use timing::{BootTiming, Moment};
pub use vm::{Vm, VmError};
