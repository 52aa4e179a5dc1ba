//! An observer that records while a trace is on, and costs a look at a flag while none is.
//!
//! The vCPUs read the observer through arc-swap, without a lock, while the thread that serves the control socket replaces it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use msr_bus::{MsrEvent, MsrObserver};

use super::observer::TraceObserver;

/// Where a trace is put while its VM runs. It belongs to the VM's observers from the start
/// ([`VmBuilder::msr_observer`](crate::VmBuilder::msr_observer)).
#[derive(Debug, Default)]
pub struct TraceSwitch {
    on: AtomicBool,
    observer: ArcSwapOption<TraceObserver>,
}

impl TraceSwitch {
    /// Has `observer` see the accesses from now on.
    pub(super) fn turn_on(&self, observer: Arc<TraceObserver>) {
        self.observer.store(Some(observer));
        self.on.store(true, Ordering::Release);
    }

    /// Has nobody see them any more. An access that is being answered may still be seen.
    pub(super) fn turn_off(&self) {
        self.on.store(false, Ordering::Release);
        self.observer.store(None);
    }
}

impl MsrObserver for TraceSwitch {
    #[inline]
    fn observe(&self, event: &MsrEvent<'_>) {
        if self.on.load(Ordering::Relaxed)
            && let Some(observer) = &*self.observer.load()
        {
            observer.observe(event);
        }
    }
}
