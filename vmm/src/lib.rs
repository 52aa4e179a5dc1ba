//! Boots a Linux kernel under KVM, with the guest's MSR accesses answered in userspace.
//!
//! A [`Config`] says what the machine is; a [`VmBuilder`] adds what a file cannot hold, such as MSR devices of
//! one's own; [`Vm::start`] runs it, and the [`RunningVm`] is the handle to it: to pause, to replace the MSR
//! filter, to press the power button, to stop, and to wait for the [`ShutdownReason`]. Dropping the handle stops the
//! VM and leaves neither thread nor file behind.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use msr_vmm::{Config, ShutdownReason, Vm};
//!
//! let mut config = Config::default();
//! config.vm.kernel = Some("vmlinuz".into());
//! config.vm.cpus = 2;
//! let vm = Vm::builder(config)
//!     .console_output(std::io::stdout())
//!     .build()?
//!     .start()?;
//!
//! // `vm.shutdown_event()` is an event for a program's own loop; this one has nothing else to do.
//! std::thread::sleep(Duration::from_secs(10));
//! if vm.handles_power_button() {
//!     vm.press_power_button();
//! } else {
//!     vm.stop();
//! }
//! match vm.wait() {
//!     ShutdownReason::PowerOff | ShutdownReason::Reset => println!("in order"),
//!     ShutdownReason::DebugExit(status) => println!("status {status}"),
//!     ShutdownReason::Stopped => println!("stopped"),
//!     ShutdownReason::Fault(fault) => eprintln!("{fault}"),
//! }
//! # Ok::<(), msr_vmm::VmError>(())
//! ```
//!
//! `examples/` has the smallest VM and one with an MSR device of its own.

pub mod acpi;
pub mod boot;
mod builder;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
mod control;
pub mod control_socket;
pub mod cpu;
pub mod devices;
mod fault;
mod filter_in_force;
pub mod layout;
mod live_keys;
mod machine;
pub mod memory;
pub mod models;
mod msr_access;
mod port_io;
mod running;
pub mod sandbox;
pub mod scenario;
mod shutdown;
pub mod snapshot;
mod timing;
pub mod trace;
mod vcpu;
mod vcpu_report;
mod vm;
mod written_pages;

pub use builder::VmBuilder;
pub use config::Config;
pub use fault::{Fault, FaultReason, VcpuRegisters};
pub use filter_in_force::FilterInForce;
pub use msr_access::{AnsweredBy, MsrAnswer};
pub use running::{RunningVm, VcpuGone};
pub use shutdown::{ShutdownReason, ShutdownReceiver, ShutdownSender, shutdown_channel};
pub use timing::{BootEvent, BootTiming};
pub use vcpu_report::{Activity, VcpuReport};
pub use vm::{Vm, VmError};
pub use written_pages::WrittenPages;

/// The README's examples, compiled with the documentation's.
#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../README.md")]
struct Readme;
