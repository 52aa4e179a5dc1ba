//! What the *kernel* may answer when a KVM guest executes RDMSR or WRMSR.
//!
//! Rules over MSR indices and access kinds go in; a filter for `KVM_X86_SET_MSR_FILTER` comes out that
//! means exactly the same, together with KVM's own verdict algorithm to check it against.
//!
//! ```
//! use msr_filter::{Access, FilterSpec, MsrRange, Rule, Verdict};
//!
//! // RAPL is answered in userspace, and nobody writes MSR_PLATFORM_INFO.
//! let spec = FilterSpec::new(Verdict::Allow)
//!     .rule(Rule::new(MsrRange::new(0x606, 0x641)?, Access::all(), Verdict::Deny))
//!     .rule(Rule::new(MsrRange::single(0xce), Access::WRITE, Verdict::Deny));
//! let filter = spec.compile()?;
//! assert_eq!(filter.verdict(0x611, Access::READ), Verdict::Deny);
//! assert_eq!(filter.verdict(0xce, Access::READ), Verdict::Allow);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is where
//!
//! - [`FilterSpec`] and [`Rule`] say what a filter is to mean; [`FilterConfig`] is the same as
//!   configuration files and profiles write it, [`MsrList`] a plain list, `CpuTemplate` (feature
//!   `serde`) Firecracker's CPU templates. [`names`] lets all of them call MSRs by name.
//! - [`FilterSpec::compile`] finds the smallest filter of exactly that meaning, or says what is too
//!   much; [`FilterSpec::warnings`] tells what is probably a mistake.
//! - [`MsrFilter`] is what KVM gets. It can be combined with others, compared, explained and turned back
//!   into rules, and only filters that KVM accepts can be made.
//! - With the feature `kvm`, `MsrFilter::to_kvm` and `MsrFilter::from_kvm` convert it to and from the kernel's
//!   struct, for users of any ioctl crate; with `install`, `MsrFilter::install` sets it on the `VmFd` of
//!   kvm-ioctls.
//!
//! Without the features `kvm`, `install` and `std` the crate needs `alloc` only.
#![deny(unsafe_code)]
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

mod access;
mod access_map;
mod algebra;
mod compile;
mod config;
mod explain;
pub mod fields;
mod filter;
#[cfg(feature = "serde")]
mod filter_serde;
#[cfg(feature = "serde")]
mod firecracker;
#[cfg(feature = "install")]
mod install;
#[cfg(feature = "kvm")]
#[allow(unsafe_code)]
mod kvm;
mod list;
pub mod names;
mod parse;
mod range;
mod resolve;
mod rule;
#[cfg(feature = "schemars")]
mod schema;
#[cfg(feature = "serde")]
mod serde_impls;
mod summary;
mod warning;

pub use access::Access;
pub use algebra::Change;
pub use compile::{Cluster, CompileError, Suggestion};
pub use config::{FilterConfig, RuleConfig};
pub use explain::DecidedBy;
pub use filter::{FilterError, FilterRange, MsrFilter};
#[cfg(feature = "serde")]
pub use firecracker::{CpuTemplate, MsrModifier};
#[cfg(feature = "install")]
pub use install::InstallError;
#[cfg(feature = "kvm")]
pub use kvm::{FromKvmError, KvmFilter};
pub use list::{MsrList, ParseListError};
pub use parse::{ParseAccessError, ParseRangeError, ParseVerdictError};
pub use range::{EmptyRange, MsrRange};
pub use rule::{FilterSpec, Rule, Verdict};
pub use summary::RangeSummary;
pub use warning::{FAST_PATH, LINUX_BOOT, LINUX_BOOT_INTEL, TSC_DEADLINE, Warning};

/// The README's examples, compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
