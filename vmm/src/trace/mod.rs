//! Traces of a VM's MSR accesses: what of `msr-trace`'s records this VMM and KVM can give.
//!
//! [`TraceObserver`] records every access that reaches userspace. What KVM answers itself is seen in one of two ways.
//! [`KernelTrace`] reads KVM's tracepoints, also those of a VM that another VMM runs; [`Observe`] routes MSRs through
//! userspace, where they are seen as any other. `not_seen` says what remains hidden. [`LiveTrace`] begins and ends while the VM
//! runs.

mod header;
mod kernel;
mod live;
mod not_seen;
mod observe;
mod observer;
mod switch;
mod tracefs;

pub use header::header;
pub use kernel::{KernelTrace, Sink};
pub use live::{LiveTrace, LiveTraceError};
pub use not_seen::{UNINTERCEPTED, not_seen_by_tracepoints, not_seen_without_help};
pub use observe::{Observe, ObserveError};
pub use observer::{TraceObserver, monotonic};
pub use switch::TraceSwitch;
pub use tracefs::TracefsError;
