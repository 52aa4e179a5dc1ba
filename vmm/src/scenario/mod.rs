//! Scenarios, carried out: what happens to a guest from outside while it runs, step by step.
//!
//! [`Scenarios`] is a subscriber of the event loop that serves the VM, as the control socket is; no vCPU carries out a step. When a
//! step is due is `schedule`'s to know, which has no clock of its own. Two watchers tell of what steps wait for, and cost a look
//! at a flag while none does: one sees what the console's thread has written, the other is an observer of the MSR bus. Each
//! step that is done is logged, and is a mark in the trace that is on.
//!
//! Scenarios are not part of a snapshot: the VM that is restored has none, and whoever restores it may start some.

#![forbid(unsafe_code)]

mod accesses;
mod console;
mod runner;
mod schedule;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use accesses::AccessWatch;
pub use console::{ConsoleWatch, WatchedOutput};
pub use runner::{PreparedScenarios, Scenarios};

/// What steps can wait for, watched: made before the VM, which they become part of.
#[derive(Clone, Debug)]
pub struct Watches {
    /// Sees what the console writes, through [`WatchedOutput`].
    pub console: Arc<ConsoleWatch>,
    /// Sees MSR accesses, as an observer of the VM's ([`VmBuilder::msr_observer`](crate::VmBuilder::msr_observer)).
    pub accesses: Arc<AccessWatch>,
    /// Readable when one of them has seen what it was to.
    event: Arc<EventFd>,
}

impl Watches {
    /// Watches that look for nothing yet.
    ///
    /// # Errors
    ///
    /// Where the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self {
            console: Arc::new(ConsoleWatch::new(event.clone())),
            accesses: Arc::new(AccessWatch::new(event.clone())),
            event,
        })
    }
}
