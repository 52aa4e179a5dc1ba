//! The block device (section 5.2): a raw image or a block device of the host as the guest's disk.
//!
//! # What is durable when
//!
//! The disk has a volatile write cache, the host's page cache, and says so by `VIRTIO_BLK_F_FLUSH`.
//! A write that is done survives the guest and this process, whatever ends them, `kill -9`
//! included. It survives the host's loss of power once a flush that began after it is done:
//! `fdatasync(2)`. For a driver that does not accept the feature every write is durable before it
//! is done.
//!
//! Pausing, resetting or dropping the device does not wait for a flush that is under way: its request stays in the
//! queue and is served again when the device goes on, and the host's fdatasync, which changes no content, ends by
//! itself. Until it does, the image of a disk that was dropped is in use.
//!
//! # When the image shrinks
//!
//! The capacity is what it was at the start. If the file is truncated while the guest runs, reads
//! beyond its new end fail with an I/O error and writes extend it again.

mod config;
mod flusher;
mod handler;
mod image;

pub use config::{DiskConfig, ParseDiskError};
pub use image::DiskError;

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::device::{DriverLog, QueueHandler, VirtioDevice};
use super::rate_limiter::Limit;
use crate::sandbox::ThreadFilters;
use handler::Handler;
use image::Image;

/// The unit of all positions and lengths, whatever the block size is (section 5.2.4).
const SECTOR_SIZE: u64 = 512;
/// The size of the device's one queue.
const QUEUE_SIZE: u16 = 256;
/// The most data buffers of one request: with header and status a chain takes half the queue.
const SEG_MAX: u32 = 126;
/// The most ranges that one discard or write-zeroes request may name.
const MAX_RANGES: u32 = 16;
/// The most sectors of one such range: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// The length of the serial number in bytes.
pub(crate) const SERIAL_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// The size of the configuration space up to and with the fields for write-zeroes.
const CONFIG_LEN: usize = 60;

/// A disk.
#[derive(Debug)]
pub struct Block {
    image: Arc<Image>,
    name: String,
    serial: [u8; SERIAL_LEN],
    config: [u8; CONFIG_LEN],
    limit: Limit,
}

impl Block {
    /// Opens the disk that `config` describes and locks it: shared with other readers if it is
    /// read-only, for itself alone if not. A last partial sector is left out, with a warning.
    ///
    /// # Errors
    ///
    /// [`DiskError`] names the path and says what would be right.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let image = Image::open(&config.path, config.readonly)?;
        Ok(Self {
            name: format!("disk {}", config.path.display()),
            serial: serial(config),
            config: config_space(&image),
            image: Arc::new(image),
            limit: Limit::new(config.rate_limiter.as_ref()),
        })
    }

    /// A disk as [`open`](Self::open) makes it, whose flushes are `sync`.
    #[cfg(test)]
    pub(super) fn with_sync(config: &DiskConfig, sync: flusher::SyncFn) -> Self {
        let mut disk = Self::open(config).unwrap();
        let image = Arc::into_inner(disk.image).unwrap().with_sync(sync);
        disk.image = Arc::new(image);
        disk
    }

    /// The capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.image.sectors()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        always
            | if self.image.readonly() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok();
        let rest = rest
            .and_then(|offset| self.config.get(offset..))
            .unwrap_or(&[]);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn confine(&self, filters: &ThreadFilters) {
        self.image.confine(filters);
    }

    fn under_way(&self) -> &'static str {
        self.image.under_way()
    }

    fn handler(&mut self, features: u64, driver_log: DriverLog) -> Box<dyn QueueHandler> {
        Box::new(Handler::new(
            Arc::clone(&self.image),
            self.serial,
            features,
            driver_log,
            self.limit.clone(),
        ))
    }
}

/// The serial number: what the config says, or else the file's name, in printable ASCII and cut to
/// length.
fn serial(config: &DiskConfig) -> [u8; SERIAL_LEN] {
    let name = config
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let text = config.serial.as_deref().unwrap_or(&name);
    let mut serial = [0; SERIAL_LEN];
    for (to, from) in serial.iter_mut().zip(text.bytes()) {
        *to = if from.is_ascii_graphic() { from } else { b'_' };
    }
    serial
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config_space(image: &Image) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, value: &[u8]| space[at..at + value.len()].copy_from_slice(value);
    put(0, &image.sectors().to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR_SIZE as u32).to_le_bytes());
    // How many sectors there are in a block that is written best, as a power of two.
    let blocks = (image.physical_block() / SECTOR_SIZE).clamp(1, 1 << 7);
    put(24, &[blocks.ilog2() as u8]);
    put(26, &1u16.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(blocks as u32).to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    // A write-zeroes request may give the space back.
    put(56, &[1]);
    space
}
