//! Why a guest does not run any more, and the channel that reports it.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::fault::Fault;

/// Why a guest does not run any more.
#[derive(Debug)]
pub enum ShutdownReason {
    /// It switched itself off.
    PowerOff,
    /// It reset itself.
    Reset,
    /// It ended with this status by the debug-exit port ([`VmConfig::debug_exit`](crate::config::VmConfig::debug_exit)).
    DebugExit(u32),
    /// It was stopped from outside.
    Stopped,
    /// It or KVM did something after which it cannot go on.
    Fault(Box<Fault>),
}

/// Reports that the guest shuts down: any vCPU or device may send, any number of times; the first reason counts.
#[derive(Clone)]
pub struct ShutdownSender {
    reasons: SyncSender<ShutdownReason>,
    event: Arc<EventFd>,
}

/// Receives the reason of the shutdown.
pub struct ShutdownReceiver {
    /// In a mutex, so that what keeps the receiver may be shared by threads.
    reasons: Mutex<Receiver<ShutdownReason>>,
    pub(crate) event: Arc<EventFd>,
}

/// The two ends, for a machine of one's own that has devices by which a guest ends itself.
///
/// # Errors
///
/// Where the process is out of file descriptors.
pub fn shutdown_channel() -> io::Result<(ShutdownSender, ShutdownReceiver)> {
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    // Room for the first reason alone: a guest may go on asking for a reset until somebody waits.
    let (sender, receiver) = sync_channel(1);
    let sending = ShutdownSender {
        reasons: sender,
        event: event.clone(),
    };
    Ok((
        sending,
        ShutdownReceiver {
            reasons: Mutex::new(receiver),
            event,
        },
    ))
}

impl ShutdownReceiver {
    /// Waits for the reason.
    pub fn wait(&self) -> ShutdownReason {
        // Whoever waits has a sender too, so the channel cannot be closed.
        self.reasons().recv().unwrap_or(ShutdownReason::Stopped)
    }

    /// The reason, if there is one yet.
    pub fn try_receive(&self) -> Option<ShutdownReason> {
        self.reasons().try_recv().ok()
    }

    fn reasons(&self) -> MutexGuard<'_, Receiver<ShutdownReason>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShutdownSender {
    /// Reports how the guest ended. Does not block, and may come from a vCPU thread.
    pub fn send(&self, reason: ShutdownReason) {
        // With a reason there already this one does not count. With the receiver gone the VM is gone, and
        // nobody needs to know any more.
        if self.reasons.try_send(reason).is_ok() {
            // Full only at 2^64 - 2 unread events, and then the receiver is awake anyway.
            let _ = self.event.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_kept_and_no_other() {
        let (sender, receiver) = shutdown_channel().unwrap();
        sender.send(ShutdownReason::PowerOff);
        for _ in 0..1000 {
            sender.clone().send(ShutdownReason::Reset);
        }
        assert_eq!(receiver.event.read().unwrap(), 1);
        let first = receiver.try_receive();
        assert!(matches!(first, Some(ShutdownReason::PowerOff)));
        assert!(receiver.try_receive().is_none());
    }
}
