use std::sync::atomic::AtomicBool;

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

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

    /// What serves the queues, now that the driver has accepted `features`.
    fn handler(&mut self, features: u64) -> Box<dyn QueueHandler>;
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
}

/// Logs what a driver did wrong, and stops doing so before a hostile one can fill the log.
#[derive(Debug)]
pub struct Complaints {
    name: String,
    left: u32,
}

impl Complaints {
    const MAX: u32 = 10;

    /// Complaints that start with `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            left: Self::MAX,
        }
    }

    /// Logs `what`, unless there was too much of that already.
    pub fn log(&mut self, what: std::fmt::Arguments<'_>) {
        match self.left {
            0 => return,
            1 => log::warn!("{}: {what}; more of that is not reported", self.name),
            _ => log::warn!("{}: {what}", self.name),
        }
        self.left -= 1;
    }
}
