use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::attach::AttachError;
use super::device::VirtioDevice;
use super::notifier::Notifier;
use super::slot::Slot;
use super::stalled::{STALL_LIMIT, Stalled};
use super::state::{StateError, VirtioState};
use super::transport::{Area, Half, Transport};
use super::worker::Worker;
use crate::memory::GuestMemoryMmap;
use crate::sandbox::{Role, ThreadFilters};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout that is not the legacy one.
const VERSION: u32 = 2;
/// Linux's drivers match any vendor; this one is "MVMM", little-endian.
const VENDOR: u32 = 0x4d4d_564d;

/// A virtio device with its MMIO transport, version 2 (section 4.2.2).
///
/// Dropping it stops its thread; so does a driver's reset. A request that takes long is abandoned
/// then.
pub struct MmioDevice {
    slot: Slot,
    name: String,
    device_type: u32,
    kicks: Arc<[EventFd]>,
    pub(super) notifier: Arc<Notifier>,
    transport: Mutex<Transport>,
}

impl MmioDevice {
    /// Puts `device` into `slot` of the machine `vm`, whose memory is `mem`: its interrupt becomes
    /// an irqfd and its queues' notifications ioeventfds. The in-kernel irqchip must be there
    /// already.
    ///
    /// # Errors
    ///
    /// [`AttachError`] says what could not be had, and of whom.
    pub fn new(
        vm: &VmFd,
        mem: Arc<GuestMemoryMmap>,
        slot: Slot,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<Self>, AttachError> {
        let this = Self::detached(mem, slot, device)?;
        this.register(vm)?;
        Ok(Arc::new(this))
    }

    /// A device as [`Self::new`] makes it that KVM knows nothing of: notifications come through the
    /// register alone, and interrupts go to the eventfd.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], apart from those that are KVM's.
    pub fn detached(
        mem: Arc<GuestMemoryMmap>,
        slot: Slot,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Self, AttachError> {
        let name = device.name().to_owned();
        let event_error = |source| AttachError::Event {
            device: name.clone(),
            source,
        };
        let kicks = device.queue_sizes().iter();
        let kicks = kicks
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<Arc<[_]>, _>>();
        let kicks = kicks.map_err(event_error)?;
        let notifier = Arc::new(Notifier::new().map_err(event_error)?);
        let device_type = device.device_type();
        let sizes = device.queue_sizes().to_vec();
        let worker = Worker::new(&format!("virtio-{}", slot.index), sizes.len());
        let worker = worker.map_err(|source| AttachError::Thread {
            device: name.clone(),
            source,
        })?;
        let transport = Transport::new(
            device,
            worker,
            mem,
            Arc::clone(&kicks),
            Arc::clone(&notifier),
        );
        let transport = transport.map_err(|_| AttachError::QueueSizes {
            device: name.clone(),
            sizes,
        })?;
        Ok(Self {
            slot,
            name,
            device_type,
            kicks,
            notifier,
            transport: Mutex::new(transport),
        })
    }

    /// Tells KVM of the notifications in both directions. KVM forgets them with the VM.
    fn register(&self, vm: &VmFd) -> Result<(), AttachError> {
        vm.register_irqfd(self.notifier.line(), self.slot.gsi)
            .map_err(|source| AttachError::Irqfd {
                device: self.name.clone(),
                gsi: self.slot.gsi,
                source,
            })?;
        let address = self.slot.base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        for (queue, kick) in (0u32..).zip(self.kicks.iter()) {
            vm.register_ioevent(kick, &IoEventAddress::Mmio(address), queue)
                .map_err(|source| AttachError::Ioeventfd {
                    device: self.name.clone(),
                    queue: queue as usize,
                    address,
                    source,
                })?;
        }
        Ok(())
    }

    /// Where the device is, for the ACPI tables and the MMIO bus.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// What log messages call the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the device's threads enter their filters, before they do anything else.
    pub fn confine(&self, filters: &ThreadFilters) {
        let role = match self.device_type {
            VIRTIO_ID_BLOCK => Role::Block,
            _ => Role::Entropy,
        };
        let transport = self.transport();
        transport.worker.confine(filters, role);
        transport.device.confine(filters);
    }

    /// Stops the device until [`Self::resume`]. When this returns its thread has ended, it touches
    /// neither guest memory nor what is behind it, and its queues say what is left to do: a request
    /// that was begun and not finished counts as not begun. The vCPUs may run or not.
    ///
    /// # Errors
    ///
    /// [`Stalled`] where the host does not finish a system call of a request within [`STALL_LIMIT`]; the device goes on.
    pub fn pause(&self) -> Result<(), Stalled> {
        self.pause_until(Instant::now() + STALL_LIMIT)
    }

    /// The same with another limit.
    pub(crate) fn pause_until(&self, deadline: Instant) -> Result<(), Stalled> {
        self.transport().pause(deadline)
    }

    /// Goes on after [`Self::pause`], with the requests that came in between first.
    pub fn resume(&self) {
        self.transport().resume();
    }

    /// The state of the device, which must be paused: a request that was begun is in its queue then.
    pub fn save(&self) -> VirtioState {
        self.transport().save(self.device_type)
    }

    /// Gives a new device this state and leaves it paused.
    ///
    /// # Errors
    ///
    /// [`StateError`]; the device is as it was then.
    pub fn restore(&self, state: &VirtioState) -> Result<(), StateError> {
        if state.device_type != self.device_type {
            return Err(StateError::DeviceType {
                found: state.device_type,
                expected: self.device_type,
            });
        }
        self.transport().restore(state)
    }

    /// Has a reset and the end wait no longer than this for the host.
    #[cfg(test)]
    pub(super) fn set_stall_limit(&self, limit: std::time::Duration) {
        self.transport().set_stall_limit(limit);
    }

    fn transport(&self) -> MutexGuard<'_, Transport> {
        // A panic in one register's access leaves no half of a change that the next access could
        // trip over.
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => self.transport().device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.transport().queue_size_max(),
            VIRTIO_MMIO_QUEUE_READY => self.transport().queue_ready(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.notifier.interrupts(),
            VIRTIO_MMIO_STATUS => {
                if self.notifier.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
                    self.transport().finish_reset();
                }
                self.notifier.status()
            }
            VIRTIO_MMIO_CONFIG_GENERATION => self.transport().device.config_generation(),
            // There is no shared memory region, which a length and a base of all ones say.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    // The only error is that the count would overflow, and then a kick is pending.
                    let _ = kick.write(1);
                }
                return;
            }
            VIRTIO_MMIO_INTERRUPT_ACK => return self.notifier.acknowledge(value),
            _ => {}
        }
        let mut transport = self.transport();
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => transport.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => transport.set_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => transport.driver_features_select = value,
            VIRTIO_MMIO_QUEUE_SEL => transport.queue_select = value,
            VIRTIO_MMIO_QUEUE_NUM => transport.set_queue_size(value),
            VIRTIO_MMIO_QUEUE_READY => transport.set_queue_ready(value),
            VIRTIO_MMIO_STATUS => transport.set_status(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                transport.set_queue_address(Area::Descriptors, Half::Low, value);
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                transport.set_queue_address(Area::Descriptors, Half::High, value);
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                transport.set_queue_address(Area::Driver, Half::Low, value);
            }
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                transport.set_queue_address(Area::Driver, Half::High, value);
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => {
                transport.set_queue_address(Area::Device, Half::Low, value);
            }
            VIRTIO_MMIO_QUEUE_USED_HIGH => {
                transport.set_queue_address(Area::Device, Half::High, value);
            }
            _ => {}
        }
    }
}

/// The registers take aligned 32-bit accesses only (section 4.2.2.2), the configuration space takes
/// any. Other accesses read as 0 and write nothing.
impl DeviceMmio for MmioDevice {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.transport().device.read_config(offset, data);
        } else if offset.is_multiple_of(4) && data.len() == 4 {
            // Below VIRTIO_MMIO_CONFIG, so nothing is cut off.
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.transport().device.write_config(offset, data);
        } else if let (true, Ok(data)) = (offset.is_multiple_of(4), data.try_into()) {
            // Below VIRTIO_MMIO_CONFIG, so nothing is cut off.
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}
