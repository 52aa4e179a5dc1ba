use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::device::VirtioDevice;
use super::mmio::MmioDevice;
use super::slot::Slot;
use crate::memory::GuestMemoryMmap;

/// Why a device cannot be put into a slot.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There are more devices than slots.
    #[error("{0} disks and other virtio devices are too many: the machine has {max} slots", max = Slot::COUNT)]
    TooMany(usize),
    /// The process or the host has no room for one more event.
    #[error("{device}: no event can be made for its notifications: {source}")]
    Event {
        /// The device's name.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A queue's greatest size is not a power of two up to 32768.
    #[error(
        "{device}: its queues cannot have the sizes {sizes:?}: powers of two up to 32768 can be"
    )]
    QueueSizes {
        /// The device's name.
        device: String,
        /// The greatest size of each queue.
        sizes: Vec<u16>,
    },
    /// KVM refused the interrupt.
    #[error("{device}: KVM does not take its interrupt, GSI {gsi}: {source}")]
    Irqfd {
        /// The device's name.
        device: String,
        /// The global system interrupt.
        gsi: u32,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The host has no more threads.
    #[error("{device}: cannot start its thread: {source}")]
    Thread {
        /// The device's name.
        device: String,
        /// What the host said.
        source: io::Error,
    },
    /// KVM refused a queue's notification.
    #[error(
        "{device}: KVM does not take the notification of queue {queue} at {address:#x}: {source}"
    )]
    Ioeventfd {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: usize,
        /// The address of the register.
        address: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Puts `devices` into the slots of the machine `vm` in their order. The guest's first disk, `/dev/vda`,
/// is the first disk among them.
///
/// # Errors
///
/// [`AttachError`].
pub fn attach(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<Arc<MmioDevice>>, AttachError> {
    if devices.len() > Slot::COUNT {
        return Err(AttachError::TooMany(devices.len()));
    }
    let memory = Arc::new(memory.clone());
    let slots = (0..).map_while(Slot::new);
    slots
        .zip(devices)
        .map(|(slot, device)| MmioDevice::new(vm, memory.clone(), slot, device))
        .collect()
}
