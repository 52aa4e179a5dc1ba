//! How a guest ended, and how that is made known.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::EventFd;

use crate::fault::Fault;

/// How a guest ended.
#[derive(Debug)]
pub enum Ending {
    /// It switched itself off.
    PowerOff,
    /// It reset itself.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// It or KVM did something after which it cannot go on.
    Fault(Box<Fault>),
}

/// Where the guest's ending is reported: by any vCPU or device, any number of times; the first counts.
#[derive(Clone)]
pub struct EndingSender {
    endings: Sender<Ending>,
    event: Arc<EventFd>,
}

/// Where the ending is learnt.
pub(crate) struct EndingReceiver {
    pub(crate) endings: Receiver<Ending>,
    pub(crate) event: Arc<EventFd>,
}

/// The two ends.
pub(crate) fn endings() -> io::Result<(EndingSender, EndingReceiver)> {
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    let (sender, receiver) = channel();
    let sending = EndingSender {
        endings: sender,
        event: event.clone(),
    };
    Ok((
        sending,
        EndingReceiver {
            endings: receiver,
            event,
        },
    ))
}

impl EndingSender {
    /// Reports how the guest ended. Does not block, and may come from a vCPU thread.
    pub fn send(&self, ending: Ending) {
        // With the receiver gone the VM is gone, and nobody needs to know any more.
        if self.endings.send(ending).is_ok() {
            // Full only at 2^64 - 2 unread events, and then the receiver is awake anyway.
            let _ = self.event.write(1);
        }
    }
}
