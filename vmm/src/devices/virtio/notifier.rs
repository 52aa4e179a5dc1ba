use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How a device reaches its driver: the interrupt with its status, and the device status.
///
/// vCPU threads and the device's thread share it without a lock.
#[derive(Debug)]
pub(super) struct Notifier {
    status: AtomicU32,
    interrupts: AtomicU32,
    line: EventFd,
}

impl Notifier {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            interrupts: AtomicU32::new(0),
            // Raising an interrupt must never block: the count says nothing, that it is not 0 says
            // it all.
            line: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Each write to it is one edge on the interrupt line.
    pub(super) fn line(&self) -> &EventFd {
        &self.line
    }

    /// The device status (section 2.1).
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds `bits` to the device status.
    pub(super) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// Back to the state after power-on.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.interrupts.store(0, Ordering::Release);
    }

    /// Takes over the registers that [`status`](Self::status) and [`interrupts`](Self::interrupts) gave.
    ///
    /// What the driver has not acknowledged is raised again: KVM passes an edge on from a thread of its own, which may have
    /// been under way when the interrupt controllers were saved. A driver that gets an edge too many finds nothing to do.
    pub(super) fn restore(&self, status: u32, interrupts: u32) {
        self.status.store(status, Ordering::Release);
        self.interrupts.store(interrupts, Ordering::Release);
        if interrupts != 0 {
            self.raise(interrupts);
        }
    }

    /// The interrupts that the driver has not acknowledged.
    pub(super) fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::Acquire)
    }

    /// The driver has seen the interrupts in `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupts.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Tells the driver that there are used buffers.
    pub(super) fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the device cannot go on (section 2.1.2).
    pub(super) fn needs_reset(&self) {
        let before = self
            .status
            .fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn raise(&self, bits: u32) {
        self.interrupts.fetch_or(bits, Ordering::AcqRel);
        // The only error is that the count would overflow, and then the line has an edge pending.
        let _ = self.line.write(1);
    }
}
