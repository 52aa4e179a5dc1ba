//! A virtio device with its transport, saved and restored.
//!
//! A state may come from anybody. It is taken only if a driver could have brought it about with this device, and otherwise it
//! is refused whole.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_queue::{Queue, QueueState, QueueT};

use super::transport::{DRIVER_STATUS, Transport, in_memory};

/// Why a virtio device does not take a state: no driver could have brought it about with this device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is another device's.
    #[error("the state is of a device of type {found}, and this one has type {expected}")]
    DeviceType {
        /// The state's device type (section 5).
        found: u32,
        /// The device's own.
        expected: u32,
    },
    /// The device status has bits that are not defined.
    #[error("its status {0:#x} is none")]
    Status(u32),
    /// The device does not offer what its driver is said to have accepted, or that lacks `VIRTIO_F_VERSION_1`.
    #[error("its driver has accepted features {accepted:#x}, and {offered:#x} are offered here")]
    Features {
        /// The state's features.
        accepted: u64,
        /// The device's.
        offered: u64,
    },
    /// The queues are not as many as the device's, or have other maximum sizes.
    #[error("its queues have other sizes")]
    QueueSizes,
    /// A queue's size or the address of an area of it is not possible.
    #[error("a queue: {0}")]
    Queue(virtio_queue::Error),
    /// A queue that is in use is not in the guest's memory.
    #[error("a queue is not in memory")]
    QueueMemory,
}

/// What the driver has set up, and how far the queues are. The device is paused when it is saved: a request that was begun
/// is still in its queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    pub(super) device_type: u32,
    pub(super) status: u32,
    pub(super) interrupts: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) queue_select: u32,
    pub(super) driver_features: u64,
    pub(super) queues: Vec<SavedQueue>,
}

/// The state of a queue, as the library has it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx_enabled,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}

impl Transport {
    pub(super) fn save(&self, device_type: u32) -> VirtioState {
        VirtioState {
            device_type,
            status: self.notifier.status(),
            interrupts: self.notifier.interrupts(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            driver_features: self.driver_features,
            queues: self
                .queues
                .iter()
                .map(|queue| queue.state().into())
                .collect(),
        }
    }

    /// Takes a state over and stays paused, or keeps the one that it has.
    pub(super) fn restore(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let has = |bits: u32| state.status & bits == bits;
        let offered = self.offered_features();
        if state.status & !(DRIVER_STATUS | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
            return Err(StateError::Status(state.status));
        }
        let accepted = state.driver_features;
        let acceptable = accepted & !offered == 0 && accepted & 1 << VIRTIO_F_VERSION_1 != 0;
        if has(VIRTIO_CONFIG_S_FEATURES_OK) && !acceptable {
            return Err(StateError::Features { accepted, offered });
        }
        let queues: Vec<QueueState> = state.queues.iter().map(|queue| (*queue).into()).collect();
        let sizes = |queues: &[QueueState]| queues.iter().map(|q| q.max_size).collect::<Vec<_>>();
        if sizes(&queues) != self.device.queue_sizes() {
            return Err(StateError::QueueSizes);
        }
        let queues: Result<Vec<Queue>, _> = queues.into_iter().map(Queue::try_from).collect();
        let queues = queues.map_err(StateError::Queue)?;
        let active = has(VIRTIO_CONFIG_S_DRIVER_OK) && !has(VIRTIO_CONFIG_S_NEEDS_RESET);
        let mem = &*self.mem;
        let mut ready = queues.iter().filter(|queue| queue.ready());
        if active && !ready.all(|queue| in_memory(queue, mem) && queue.avail_ring() != 0) {
            return Err(StateError::QueueMemory);
        }
        self.paused = true;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.driver_features = state.driver_features;
        self.queues = queues;
        self.notifier.restore(state.status, state.interrupts);
        if active {
            let driver_log = self.driver_log.clone();
            self.handler = Some(self.device.handler(self.driver_features, driver_log));
        }
        Ok(())
    }
}
