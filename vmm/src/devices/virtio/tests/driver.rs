//! A driver: what a guest's kernel does, in a few lines.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::*;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use crate::devices::virtio::block::{Block, DiskConfig};
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::{MmioDevice, Slot, VirtioDevice};
use crate::memory::GuestMemoryMmap;

pub(super) const ACKNOWLEDGE: u32 = 1;
pub(super) const DRIVER: u32 = 2;
pub(super) const DRIVER_OK: u32 = 4;
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const NEEDS_RESET: u32 = 64;

/// Memory ends here, and at `SEAM` two regions of it meet.
pub(super) const MEMORY_END: u64 = 0x80_0000;
pub(super) const SEAM: u64 = 0x10_0000;
pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAILABLE: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
/// Where requests put header and status, and data from `DATA` on.
pub(super) const HEADER: u64 = 0x4000;
pub(super) const STATUS: u64 = 0x4100;
pub(super) const DATA: u64 = 0x1_0000;

const QUEUE_SIZE: u16 = 64;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Descriptor flags.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// A buffer of a request: its address, its length, whether it is device-writable.
pub(super) type Buffer = (u64, u32, bool);

pub(super) struct Driver {
    pub(super) device: MmioDevice,
    pub(super) mem: Arc<GuestMemoryMmap>,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver that has not touched its device yet.
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ranges = [
            (GuestAddress(0), SEAM as usize),
            (GuestAddress(SEAM), (MEMORY_END - SEAM) as usize),
        ];
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let slot = Slot::new(0).unwrap();
        Self {
            device: MmioDevice::detached(Arc::clone(&mem), slot, device).unwrap(),
            mem,
            available: 0,
            used: 0,
        }
    }

    /// A driver that has accepted all features of its device and set it to work.
    pub(super) fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut this = Self::new(device);
        this.start(!0);
        this
    }

    /// Gives the driver a new device in the place of its own, which goes first.
    pub(super) fn replace<D: VirtioDevice + 'static>(&mut self, device: impl FnOnce() -> Box<D>) {
        let slot = Slot::new(0).unwrap();
        let new = |device| MmioDevice::detached(Arc::clone(&self.mem), slot, device).unwrap();
        let placeholder = new(Box::new(Entropy::new(None)));
        drop(std::mem::replace(&mut self.device, placeholder));
        self.device = MmioDevice::detached(Arc::clone(&self.mem), slot, device()).unwrap();
    }

    pub(super) fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.device
            .mmio_read(MmioAddress(0), u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&self, register: u32, value: u32) {
        self.device
            .mmio_write(MmioAddress(0), u64::from(register), &value.to_le_bytes());
    }

    pub(super) fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    pub(super) fn features(&self) -> u64 {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)) << 32
    }

    /// Negotiates: accepts `features`.
    pub(super) fn negotiate(&self, features: u64) {
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Sets queue 0 up, with its rings at the given addresses.
    pub(super) fn set_up_queue(&self, descriptors: u64, available: u64, used: u64) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, u32::from(QUEUE_SIZE));
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Does all a driver does up to `DRIVER_OK`, accepting what the device offers of `features`.
    pub(super) fn start(&mut self, features: u64) {
        self.negotiate(self.features() & features);
        assert_ne!(self.status() & FEATURES_OK, 0);
        let zeroes = [0; 0x1000];
        for ring in [DESCRIPTORS, AVAILABLE, USED] {
            self.mem.write_slice(&zeroes, GuestAddress(ring)).unwrap();
        }
        (self.available, self.used) = (0, 0);
        self.set_up_queue(DESCRIPTORS, AVAILABLE, USED);
        self.write(
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
    }

    pub(super) fn put_descriptor(&self, table: u64, index: u16, descriptor: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = descriptor;
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, at).unwrap();
    }

    /// Makes the chain that starts at descriptor `head` available, without a kick.
    pub(super) fn offer(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.mem.write_obj(head, GuestAddress(entry)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub(super) fn set_available(&self, index: u16) {
        self.mem
            .store(
                index,
                GuestAddress(AVAILABLE + 2),
                std::sync::atomic::Ordering::Release,
            )
            .unwrap();
    }

    pub(super) fn kick(&self) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    /// Puts `buffers` into the descriptor table as one chain
    /// from 0 on.
    pub(super) fn put_chain(&self, buffers: &[Buffer]) {
        let last = buffers.len() - 1;
        for (index, &(address, len, writable)) in buffers.iter().enumerate() {
            let flags = if writable { WRITE } else { 0 } | if index == last { 0 } else { NEXT };
            let index = index as u16;
            self.put_descriptor(DESCRIPTORS, index, (address, len, flags, index + 1));
        }
    }

    /// Whether the device has used one more chain: its head and the length written.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.mem.read_obj(GuestAddress(USED + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let entry = USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        Some((
            self.mem.read_obj(GuestAddress(entry)).unwrap(),
            self.mem.read_obj(GuestAddress(entry + 4)).unwrap(),
        ))
    }

    /// Waits for the next used chain, and returns the length written.
    pub(super) fn wait_used(&mut self) -> u32 {
        let mut used = None;
        wait_until("a used buffer", || {
            used = self.take_used();
            used.is_some()
        });
        used.unwrap().1
    }

    /// Has `buffers` served as one request, and returns the length written.
    pub(super) fn serve(&mut self, buffers: &[Buffer]) -> u32 {
        self.put_chain(buffers);
        self.offer(0);
        self.kick();
        self.wait_used()
    }

    /// A block request with header, data and status as separate buffers; returns its status.
    pub(super) fn block(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        self.put_header(kind, sector);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        self.mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        self.serve(&buffers);
        self.mem.read_obj(GuestAddress(STATUS)).unwrap()
    }

    pub(super) fn put_header(&self, kind: u32, sector: u64) {
        self.mem.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.mem.write_obj(0u32, GuestAddress(HEADER + 4)).unwrap();
        self.mem
            .write_obj(sector, GuestAddress(HEADER + 8))
            .unwrap();
    }

    pub(super) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    pub(super) fn put_bytes(&self, address: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(address)).unwrap();
    }
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < TIMEOUT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// An image file of `len` bytes in which every sector starts with its number.
pub(super) fn image(len: u64) -> TempFile {
    let temp = TempFile::new().unwrap();
    let mut bytes = vec![0; len as usize];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        sector[0] = number as u8;
    }
    std::fs::write(temp.as_path(), bytes).unwrap();
    temp
}

pub(super) fn config(temp: &TempFile, readonly: bool) -> DiskConfig {
    DiskConfig {
        path: temp.as_path().into(),
        readonly,
        serial: None,
        rate_limiter: None,
    }
}

pub(super) fn disk(temp: &TempFile) -> Box<Block> {
    Box::new(Block::open(&config(temp, false)).unwrap())
}

/// Cuts the image to `len` bytes.
pub(super) fn truncate(temp: &TempFile, len: u64) {
    let file = OpenOptions::new().write(true).open(temp.as_path()).unwrap();
    file.set_len(len).unwrap();
}
