//! Pausing and stopping vCPUs that spend their time in KVM_RUN.
//!
//! A client says in the [`Control`] what the vCPUs are to do, and kicks their threads with a signal; a kicked vCPU leaves KVM_RUN and
//! looks at the control (`protocol`). The signal's handler sets `immediate_exit`, so that a kick between the look and
//! KVM_RUN is not lost (`kick`). `interleavings` checks the protocol over all orders of what its threads do.

mod kick;
mod protocol;

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;

pub(crate) use kick::{Kickable, accept_kicks, install_kick_handler, send_kick};
pub(crate) use protocol::{Control, Execute, VcpuThreads};

/// What the protocol waits with.
mod sync {
    pub(super) use std::sync::mpsc;
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
}
