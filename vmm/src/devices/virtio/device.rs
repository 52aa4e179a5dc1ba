use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use virtio_queue::DescriptorChain;

use crate::memory::GuestMemoryMmap;
use crate::sandbox::ThreadFilters;

/// A virtio device as its driver finds it, apart from the transport that carries it.
pub trait VirtioDevice: Send {
    /// The device type (section 5, "Device Types").
    fn device_type(&self) -> u32;

    /// What log messages call the device.
    fn name(&self) -> &str;

    /// The features of the device's type that it offers, bits 0 to 23. The transport adds its own.
    fn features(&self) -> u64;

    /// The greatest size of each queue: powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space. Bytes beyond its end stay as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. By default the driver can change nothing there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Changes whenever the configuration space did (section 2.5.1).
    fn config_generation(&self) -> u32 {
        0
    }

    /// What the device's thread asks of the host just now, in words that go with "has not finished".
    fn under_way(&self) -> &'static str {
        "a request"
    }

    /// What serves the queues, now that the driver has accepted `features`. What is wrong with its
    /// requests is logged to `driver_log`.
    fn handler(&mut self, features: u64, driver_log: DriverLog) -> Box<dyn QueueHandler>;

    /// Has threads of the device's own enter their filters, before they do anything else. By default it has none.
    fn confine(&self, _filters: &ThreadFilters) {}
}

/// Serves the requests that the driver makes available.
pub trait QueueHandler: Send {
    /// Serves the request in `chain`, which came from the queue with number `queue`.
    ///
    /// `stop` is set when the device is to stop. A handler that may take long looks at it now and
    /// then and returns [`Served::Abandoned`]; the request then stays in the queue, and it is
    /// served from the start when the device goes on, so it must be one that can be repeated.
    fn serve(
        &mut self,
        queue: usize,
        chain: DescriptorChain<&GuestMemoryMmap>,
        stop: &AtomicBool,
    ) -> Served;
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The request is done, well or not, and so many bytes were written to its buffers from their
    /// start on.
    Done(u32),
    /// The device was stopped before the request was done.
    Abandoned,
    /// The request is not to be done yet ([`rate_limiter`](super::rate_limiter)): it stays in the queue and is served from
    /// the start after so long. Until then nothing is served, in none of the device's queues.
    NotYet(Duration),
}

/// Logs what a driver did wrong, and stops doing so before a hostile one can fill the log.
///
/// Clones share the limit. There is one for each device, for as long as it lives: a driver does not get
/// a new limit by a reset.
#[derive(Clone, Debug)]
pub struct DriverLog {
    name: Arc<str>,
    left: Arc<AtomicU32>,
}

impl DriverLog {
    const MAX: u32 = 10;

    /// A log whose messages start with `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            left: Arc::new(AtomicU32::new(Self::MAX)),
        }
    }

    /// Logs `what`, unless there was too much of that already.
    pub fn log(&self, what: fmt::Arguments<'_>) {
        match self.take() {
            None => {}
            Some(1) => log::warn!("{}: {what}; more of that is not reported", self.name),
            Some(_) => log::warn!("{}: {what}", self.name),
        }
    }

    /// How many may still be logged, this one included.
    fn take(&self) -> Option<u32> {
        // The count guards nothing but itself.
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let one_less = |left: u32| left.checked_sub(1);
        self.left.fetch_update(set, get, one_less).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_complaints_share_the_limit() {
        let driver_log = DriverLog::new("a disk");
        let logged = (0..100).filter_map(|_| driver_log.clone().take());
        assert!(logged.eq((1..=DriverLog::MAX).rev()));
        assert_eq!(driver_log.take(), None);
    }
}
