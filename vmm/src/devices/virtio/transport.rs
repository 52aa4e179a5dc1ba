//! What the registers of a virtio-mmio device do (section 4.2.2), apart from where they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::device::{DriverLog, QueueHandler, VirtioDevice};
use super::notifier::Notifier;
use super::stalled::{STALL_LIMIT, Stalled};
use super::worker::{NotStopped, Service, Worker};
use crate::memory::GuestMemoryMmap;

/// The features that the transport offers for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Bits that a driver may set in the device status.
pub(super) const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// One of the three areas of a queue, each of which has an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Area {
    /// The descriptor table.
    Descriptors,
    /// The driver area: the available ring.
    Driver,
    /// The device area: the used ring.
    Device,
}

/// One half of a 64-bit register.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half {
    Low,
    High,
}

/// The state of a transport that only vCPU threads and the machine's life cycle touch.
pub(super) struct Transport {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) queue_select: u32,
    pub(super) driver_features: u64,
    /// As the driver set them up; while a worker runs, the worker's own are further on.
    pub(super) queues: Vec<Queue>,
    /// Kept from pause to resume.
    pub(super) handler: Option<Box<dyn QueueHandler>>,
    pub(super) worker: Worker,
    pub(super) paused: bool,
    /// The driver has asked for a reset, and the host does not let go of a request.
    resetting: bool,
    /// How long a reset waits for the host.
    stall_limit: Duration,
    pub(super) mem: Arc<GuestMemoryMmap>,
    kicks: Arc<[EventFd]>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) driver_log: DriverLog,
}

impl Transport {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        worker: Worker,
        mem: Arc<GuestMemoryMmap>,
        kicks: Arc<[EventFd]>,
        notifier: Arc<Notifier>,
    ) -> Result<Self, QueueError> {
        let queues = device.queue_sizes().iter();
        let queues = queues
            .map(|&size| Queue::new(size))
            .collect::<Result<_, _>>()?;
        let driver_log = DriverLog::new(device.name());
        Ok(Self {
            device,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            driver_features: 0,
            queues,
            handler: None,
            worker,
            paused: false,
            resetting: false,
            stall_limit: STALL_LIMIT,
            mem,
            kicks,
            notifier,
            driver_log,
        })
    }

    /// The selected half of the features that the device offers.
    pub(super) fn device_features(&self) -> u32 {
        half_of(self.offered_features(), self.device_features_select)
    }

    pub(super) fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Sets the selected half of the features that the driver accepts; they are fixed by
    /// `FEATURES_OK`.
    pub(super) fn set_driver_features(&mut self, value: u32) {
        let value = u64::from(value);
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            self.refuse(format_args!("features accepted at the wrong time"));
            return;
        }
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // No feature has a bit that high, so none can be accepted; drivers write 0 there.
            _ => {}
        }
    }

    /// The greatest size of the selected queue, 0 if there is none (`QueueNumMax`).
    pub(super) fn queue_size_max(&self) -> u32 {
        self.selected()
            .map_or(0, |queue| u32::from(queue.max_size()))
    }

    /// Whether the selected queue is in use (`QueueReady`).
    pub(super) fn queue_ready(&self) -> u32 {
        self.selected().map_or(0, |queue| u32::from(queue.ready()))
    }

    /// Sets the size of the selected queue (`QueueNum`).
    pub(super) fn set_queue_size(&mut self, value: u32) {
        self.configure(|queue| {
            let size = u16::try_from(value).map_err(|_| QueueError::InvalidSize)?;
            queue.try_set_size(size)
        });
    }

    /// Sets half an address of the selected queue.
    pub(super) fn set_queue_address(&mut self, area: Area, half: Half, value: u32) {
        self.configure(|queue| {
            let before = match area {
                Area::Descriptors => queue.desc_table(),
                Area::Driver => queue.avail_ring(),
                Area::Device => queue.used_ring(),
            };
            let value = u64::from(value);
            let address = GuestAddress(match half {
                Half::Low => before & !0xffff_ffff | value,
                Half::High => before & 0xffff_ffff | value << 32,
            });
            match area {
                Area::Descriptors => queue.try_set_desc_table_address(address),
                Area::Driver => queue.try_set_avail_ring_address(address),
                Area::Device => queue.try_set_used_ring_address(address),
            }
        });
    }

    /// Takes the selected queue into use, or out of it (`QueueReady`).
    pub(super) fn set_queue_ready(&mut self, value: u32) {
        if value == 1 {
            self.configure(|queue| {
                queue.set_ready(true);
                Ok(())
            });
        } else if value == 0 && self.queue_ready() == 1 {
            let deadline = Instant::now() + self.stall_limit;
            if self.resetting || self.stop_or_go_on(deadline).is_err() {
                // The register goes on saying that it is in use.
                return self.refuse(format_args!("a queue stays in use: the host is at it"));
            }
            if let Some(queue) = self.selected_mut() {
                queue.set_ready(false);
            }
            self.start_worker();
        }
    }

    /// Changes the selected queue, if now is the time: features settled, device not started, queue
    /// not ready (section 4.2.3.2).
    fn configure(&mut self, change: impl FnOnce(&mut Queue) -> Result<(), QueueError>) {
        let time = self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let index = self.queue_select;
        let result = match self.selected_mut() {
            Some(queue) if time && !queue.ready() => change(queue),
            Some(_) => return self.refuse(format_args!("queue {index} set up at the wrong time")),
            None => return self.refuse(format_args!("there is no queue {index} to set up")),
        };
        if let Err(error) = result {
            self.refuse(format_args!("queue {index}: {error}"));
        }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    fn selected_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_select as usize)
    }

    /// Sets the device status: the state machine of section 3.1.1.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.resetting {
            return self.refuse(format_args!("status {value:#x} before the reset is done"));
        }
        let before = self.notifier.status() & DRIVER_STATUS;
        let value = value & DRIVER_STATUS;
        if value & before != before {
            return self.refuse(format_args!(
                "status {value:#x} after {before:#x} without a reset"
            ));
        }
        let mut added = value & !before;
        let needed_first = [
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
            (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
        ];
        if needed_first
            .iter()
            .any(|(bit, first)| added & bit != 0 && value & first == 0)
        {
            return self.refuse(format_args!("status {value:#x} skips a step"));
        }
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable() {
            // That the bit does not stick tells the driver (section 2.2.2).
            let (accepted, offered) = (self.driver_features, self.offered_features());
            self.refuse(format_args!(
                "features {accepted:#x} of {offered:#x} cannot be used"
            ));
            added &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        self.notifier.add_status(added);
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mem = &*self.mem;
        let mut usable = true;
        for queue in self.queues.iter_mut().filter(|queue| queue.ready()) {
            queue.set_event_idx(event_idx);
            // The rings are in memory, all of them, and memory stays where it is: from here on the
            // worker can read and write them.
            usable &= in_memory(queue, mem) && queue.avail_ring() != 0;
        }
        if !usable {
            self.refuse(format_args!("a queue that is not in memory"));
            self.notifier.needs_reset();
            return;
        }
        let driver_log = self.driver_log.clone();
        self.handler = Some(self.device.handler(self.driver_features, driver_log));
        self.start_worker();
    }

    /// Back to the state after power-on (section 2.4). What the worker is at is abandoned first: when the device status
    /// is 0, the device does not touch guest memory any more. A request that the host does not let go of has the reset
    /// wait, which holds up a vCPU once and for a limited time: until it is done the status says that the device needs a reset.
    fn reset(&mut self) {
        let now = Instant::now();
        let wait = if self.resetting {
            Duration::ZERO
        } else {
            self.stall_limit
        };
        if self.stop_worker(now + wait).is_err() {
            if !std::mem::replace(&mut self.resetting, true) {
                log::warn!("{}; a reset waits for it", self.stalled(wait));
                self.notifier.needs_reset();
            }
            return;
        }
        self.resetting = false;
        self.handler = None;
        self.queues.iter_mut().for_each(QueueT::reset);
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.driver_features = 0;
        self.notifier.reset();
    }

    /// Does the reset that the driver has asked for, if one waits and the host has let go of the request.
    pub(super) fn finish_reset(&mut self) {
        if self.resetting {
            self.reset();
        }
    }

    /// Stops the device until [`Self::resume`]: its queues stay as they are.
    ///
    /// # Errors
    ///
    /// Where it has not stopped until `deadline`; it goes on then.
    pub(super) fn pause(&mut self, deadline: Instant) -> Result<(), Stalled> {
        let begin = Instant::now();
        self.finish_reset();
        if self.resetting {
            return Err(self.stalled(self.stall_limit));
        }
        let stopped = self.stop_or_go_on(deadline);
        stopped.map_err(|NotStopped| self.stalled(begin.elapsed()))?;
        self.paused = true;
        Ok(())
    }

    /// Has a reset wait no longer than this for the host.
    #[cfg(test)]
    pub(super) fn set_stall_limit(&mut self, limit: Duration) {
        self.stall_limit = limit;
        self.worker.set_limit(limit);
    }

    fn stalled(&self, waited: Duration) -> Stalled {
        Stalled {
            device: self.device.name().to_owned(),
            what: self.device.under_way(),
            waited,
        }
    }

    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.start_worker();
    }

    /// Starts the worker if the device is to run.
    fn start_worker(&mut self) {
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK)
            && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
            && !self.paused;
        if !running {
            return;
        }
        let Some(handler) = self.handler.take() else {
            return;
        };
        let started = copies(&self.queues)
            .map_err(std::io::Error::other)
            .and_then(|queues| {
                let service = Service::new(
                    self.driver_log.clone(),
                    Arc::clone(&self.mem),
                    queues,
                    Arc::clone(&self.kicks),
                    handler,
                    Arc::clone(&self.notifier),
                );
                self.worker.start(service)
            });
        if let Err(error) = started {
            self.driver_log.log(format_args!("cannot start: {error}"));
            self.notifier.needs_reset();
        }
    }

    /// Stops the worker, or has it go on where it has not stopped until `deadline`.
    fn stop_or_go_on(&mut self, deadline: Instant) -> Result<(), NotStopped> {
        let stopped = self.stop_worker(deadline);
        if stopped.is_err()
            && let Some(service) = self.worker.go_on()
        {
            self.take_back(service);
            return Ok(());
        }
        stopped
    }

    /// Stops the worker and takes its queues and its handler back. One that has not stopped until `deadline` still is to.
    fn stop_worker(&mut self, deadline: Instant) -> Result<(), NotStopped> {
        if self.worker.is_working() {
            let service = self.worker.stop(deadline)?;
            self.take_back(service);
        }
        Ok(())
    }

    /// What the worker has given back; nothing where it panicked.
    fn take_back(&mut self, service: Option<Service>) {
        if let Some(service) = service {
            self.queues = service.queues;
            self.handler = Some(service.handler);
        } else {
            log::error!("{}: the device's thread panicked", self.device.name());
            self.notifier.needs_reset();
        }
    }

    fn has(&self, status: u32) -> bool {
        self.notifier.status() & status == status
    }

    fn refuse(&mut self, what: std::fmt::Arguments<'_>) {
        self.driver_log.log(what);
    }
}

/// Whether all of the queue's three areas is in memory (section 2.7). `QueueT::is_valid` finds the same, but logs an
/// error each time, and a driver may try as often as it likes.
pub(super) fn in_memory(queue: &Queue, mem: &GuestMemoryMmap) -> bool {
    let size = usize::from(queue.size());
    let areas = [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ];
    areas
        .iter()
        .all(|(start, len)| mem.check_range(GuestAddress(*start), *len, Permissions::ReadWrite))
}

/// The worker's own queues. A `Queue` is no `Clone`, but its state is.
fn copies(queues: &[Queue]) -> Result<Vec<Queue>, QueueError> {
    queues
        .iter()
        .map(|queue| Queue::try_from(queue.state()))
        .collect()
}

/// The half of a 64-bit feature set that `select` names: 0 the low one, 1 the high one, nothing
/// else.
fn half_of(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
