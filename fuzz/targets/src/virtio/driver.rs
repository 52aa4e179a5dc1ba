//! A driver of one queue, which may misbehave.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use msr_vmm::devices::virtio::{MmioDevice, Slot, VirtioDevice};
use msr_vmm::memory::GuestMemoryMmap;
use virtio_bindings::virtio_mmio::*;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};

/// Where things are in the guest's memory.
pub(crate) mod layout {
    pub(crate) const DESCRIPTORS: u64 = 0x1000;
    pub(crate) const AVAILABLE: u64 = 0x2000;
    pub(crate) const USED: u64 = 0x3000;
    pub(crate) const HEADER: u64 = 0x4000;
    pub(crate) const STATUS: u64 = 0x4100;
    pub(crate) const DATA: u64 = 0x8000;
}

/// Two regions meet at half of it.
pub(crate) const MEMORY_END: u64 = 0x2_0000;
const QUEUE_SIZE: u16 = 64;
/// How long a request may take before it counts as a hang, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

impl Buffer {
    pub(crate) fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    pub(crate) fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }
}

pub(crate) struct Driver {
    pub(crate) device: MmioDevice,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver that has not touched its device yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let half = MEMORY_END / 2;
        let ranges = [
            (GuestAddress(0), half as usize),
            (GuestAddress(half), half as usize),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let slot = Slot::new(0).expect("the first slot");
        let device = MmioDevice::detached(memory.clone(), slot, device);
        Self {
            device: device.expect("eventfds"),
            memory,
            available: 0,
            used: 0,
        }
    }

    pub(crate) fn access_read(&self, offset: u64, data: &mut [u8]) {
        self.device.mmio_read(MmioAddress(0), offset, data);
    }

    pub(crate) fn access_write(&self, offset: u64, data: &[u8]) {
        self.device.mmio_write(MmioAddress(0), offset, data);
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.access_read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, register: u32, value: u32) {
        self.access_write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("the layout's addresses");
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(address));
        read.expect("the layout's addresses");
        bytes
    }

    pub(crate) fn reset(&self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
    }

    /// Negotiates all that the device offers, and sets queue 0 up with fresh rings.
    pub(crate) fn start(&mut self) {
        for ring in [layout::DESCRIPTORS, layout::AVAILABLE, layout::USED] {
            self.put(ring, &[0; 0x1000]);
        }
        (self.available, self.used) = (0, 0);
        self.write(VIRTIO_MMIO_STATUS, 1);
        self.write(VIRTIO_MMIO_STATUS, 3);
        for half in [0, 1] {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, offered);
        }
        self.write(VIRTIO_MMIO_STATUS, 11);
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, layout::DESCRIPTORS),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, layout::AVAILABLE),
            (VIRTIO_MMIO_QUEUE_USED_LOW, layout::USED),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.write(VIRTIO_MMIO_STATUS, 15);
    }

    pub(crate) fn put_descriptor(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(
            layout::DESCRIPTORS + 16 * u64::from(index % QUEUE_SIZE),
            &bytes,
        );
    }

    /// Makes the chain that starts at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = layout::AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.put(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(layout::AVAILABLE + 2);
        let stored = self.memory.store(self.available, index, Ordering::Release);
        stored.expect("the layout's addresses");
    }

    pub(crate) fn kick(&self, queue: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Has `buffers` served as one request, and returns the length that the device says it wrote.
    pub(crate) fn serve(&mut self, buffers: &[Buffer]) -> u32 {
        let last = buffers.len() as u16 - 1;
        for (index, buffer) in (0..).zip(buffers) {
            let write = if buffer.writable { WRITE } else { 0 };
            let next = if index == last { 0 } else { NEXT };
            self.put_descriptor(index, *buffer, write | next, index + 1);
        }
        self.offer(0);
        self.kick(0);
        self.wait_used()
    }

    fn wait_used(&mut self) -> u32 {
        let index = GuestAddress(layout::USED + 2);
        let begin = Instant::now();
        while self
            .memory
            .load::<u16>(index, Ordering::Acquire)
            .expect("an address")
            == self.used
        {
            assert!(begin.elapsed() < PATIENCE, "the request is not served");
            std::thread::yield_now();
        }
        let entry = layout::USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        let length = self.memory.read_obj(GuestAddress(entry + 4));
        length.expect("the layout's addresses")
    }
}
