//! virtio devices behind the MMIO transport (Virtual I/O Device (VIRTIO) Version 1.2).
//!
//! A device is three parts, so that each can be read and tested alone:
//!
//! - [`MmioDevice`], the transport (section 4.2): registers, feature negotiation, the status state
//!   machine, queue set-up, interrupts. It implements [`DeviceMmio`](vm_device::DeviceMmio) and
//!   knows no device type.
//! - [`VirtioDevice`], the device as its driver sees it before it works: type, features,
//!   configuration space.
//! - [`QueueHandler`], what serves the driver's requests, one descriptor chain at a time, in a
//!   thread of the device's own that lives from `DRIVER_OK` to reset.
//!
//! # Notifications
//!
//! A kick is an ioeventfd on the `QueueNotify` register that matches the queue's number: KVM wakes
//! the device's thread and the vCPU never leaves the kernel. The register works without it too.
//!
//! An interrupt is an irqfd on the slot's GSI and therefore **edge-triggered, active high**: the
//! ACPI tables must say so. No interrupt is lost, because the order is always the same: the device
//! sets its bit in `InterruptStatus`, then raises the edge; the driver's handler reads the status,
//! acknowledges what it saw, and then looks at the queues. A bit set between read and
//! acknowledgement is cleared with it, but what it announced was in the used ring before it was
//! set, so the look at the queues that follows finds it, and the edge that comes after finds an
//! empty status, which a driver ignores.
//!
//! # Trust
//!
//! The guest is hostile. Everything in a register or in guest memory is checked where it is used; a
//! request that makes no sense fails, a queue that makes no sense sets `DEVICE_NEEDS_RESET`, and
//! what the guest can make the device allocate is fixed when the device is made.

mod attach;
pub mod block;
mod buffers;
mod device;
pub mod entropy;
mod mmio;
mod notifier;
pub mod rate_limiter;
mod slot;
mod stalled;
mod state;
mod transport;
mod worker;

pub use attach::{AttachError, attach};
pub use device::{DriverLog, QueueHandler, Served, VirtioDevice};
pub use mmio::MmioDevice;
pub use slot::Slot;
pub use stalled::{STALL_LIMIT, Stalled};
pub use state::{StateError, VirtioState};

#[cfg(test)]
mod tests;
