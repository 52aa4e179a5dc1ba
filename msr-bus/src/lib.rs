//! What *userspace* answers when a KVM guest executes RDMSR or WRMSR.
//!
//! [`MsrDevice`]s claim ranges of MSR indices; an [`MsrBus`] hands each access to the device that claims
//! it, or to the [`Fallback`] where none does. The bus knows nothing of KVM's file descriptors: what a
//! device needs of the vCPU that executes the access comes through [`VcpuContext`], so that every device
//! is a state machine that a test drives without KVM.
//!
//! ```
//! use std::sync::Arc;
//! use msr_bus::testing::FakeVcpu;
//! use msr_bus::{ExitReason, GeneralProtection, MsrAccess, MsrBus, MsrDevice, MsrRange};
//!
//! struct Answer;
//!
//! impl MsrDevice for Answer {
//!     fn name(&self) -> &str {
//!         "answer"
//!     }
//!     fn claims(&self) -> Vec<MsrRange> {
//!         vec![MsrRange::single(0x1234)]
//!     }
//!     fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
//!         Ok(42)
//!     }
//!     fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
//!         Err(GeneralProtection)
//!     }
//! }
//!
//! let bus = MsrBus::builder().device(Arc::new(Answer)).build()?;
//! let vcpu = FakeVcpu::default();
//! let access = MsrAccess { index: 0x1234, reason: ExitReason::Filter, cpu: &vcpu };
//! assert_eq!(bus.read(&access), Ok(42));
//! assert_eq!(bus.write(&access, 43), Err(GeneralProtection));
//! # Ok::<(), msr_bus::BuildError>(())
//! ```

#![deny(unsafe_code)]

mod access;
mod bus;
mod config;
mod cpu;
mod device;
pub mod devices;
#[cfg(feature = "config")]
mod document;
mod fallback;
mod faults;
mod filter;
mod interrupts;
#[cfg(feature = "config")]
pub mod keys;
#[cfg(feature = "config")]
mod live;
mod lookup;
mod model;
#[cfg(feature = "config")]
mod nearest;
mod observer;
#[cfg(feature = "config")]
mod registry;
mod split_mix;
mod state;
mod syscalls;
pub mod testing;
#[cfg(feature = "config")]
#[doc(hidden)]
pub mod toml_text;
mod topology;

pub use access::{
    ExitReason, GeneralProtection, GuestMemoryError, KernelMsrError, MsrAccess, VcpuContext, VcpuId,
};
pub use bus::{BuildError, BusBuilder, MsrBus};
pub use config::U64;
pub use cpu::{CpuIdentity, CpuVendor};
pub use device::MsrDevice;
#[cfg(feature = "config")]
pub use document::{Document, DocumentError, Location};
pub use fallback::{Fallback, Unclaimed};
pub use faults::{FaultConfig, FaultError, FaultKind, Faults};
pub use filter::Contradiction;
pub use interrupts::InterruptRequests;
#[cfg(feature = "config")]
pub use keys::{Key, LIVE};
#[cfg(feature = "config")]
pub use live::LiveKeys;
pub use model::{DeviceContext, Model};
pub use msr_filter::{Access, MsrRange};
#[cfg(feature = "config")]
pub use nearest::nearest;
pub use observer::{AnsweredBy, MsrEvent, MsrObserver};
#[cfg(feature = "config")]
pub use registry::{ConfigError, DeviceConfig, DeviceModel};
pub use split_mix::SplitMix64;
pub use state::{BusState, DeviceState, RestoreError};
pub use syscalls::Syscall;
/// The README's example, compiled and run with the documentation's.
#[cfg(all(doctest, feature = "config"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use topology::{CpuClock, CpuLocation, PerScope, Scope, Topology};
