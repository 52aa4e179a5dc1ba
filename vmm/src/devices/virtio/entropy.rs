//! The entropy device (section 5.4): the host's random numbers.

use std::sync::atomic::AtomicBool;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;
use vm_memory::Permissions;

use super::buffers::{ChainError, Piece, Request};
use super::device::{DriverLog, QueueHandler, Served, VirtioDevice};
use super::rate_limiter::{Limit, RateLimiterConfig};
use crate::memory::GuestMemoryMmap;

/// The size of the device's one queue.
const QUEUE_SIZE: u16 = 64;
/// The most descriptors of one request.
const MAX_DESCRIPTORS: usize = 16;
/// The most random bytes for one request. The driver learns how many there were, and may ask again.
const MAX_BYTES: usize = 64 << 10;

/// A source of random bytes for the guest, each of them from `getrandom(2)`.
#[derive(Debug)]
pub struct Entropy {
    limit: Limit,
}

impl Entropy {
    /// A source that gives as many as the guest asks for, or as `limit` lets it have.
    pub fn new(limit: Option<&RateLimiterConfig>) -> Self {
        Self {
            limit: Limit::new(limit),
        }
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "entropy"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn handler(&mut self, _features: u64, driver_log: DriverLog) -> Box<dyn QueueHandler> {
        Box::new(Handler {
            request: Request::new(MAX_DESCRIPTORS),
            driver_log,
            limit: self.limit.clone(),
        })
    }
}

struct Handler {
    request: Request,
    driver_log: DriverLog,
    limit: Limit,
}

impl QueueHandler for Handler {
    fn serve(
        &mut self,
        _queue: usize,
        chain: DescriptorChain<&GuestMemoryMmap>,
        _stop: &AtomicBool,
    ) -> Served {
        let mem = chain.memory();
        let loaded = self.request.load(chain.clone());
        let bytes = self.request.writable.len().min(MAX_BYTES as u64);
        if loaded.is_ok()
            && let Err(wait) = self.limit.admit(bytes, 1)
        {
            return Served::NotYet(wait);
        }
        let filled = loaded.and_then(|()| fill(&mut self.request, mem));
        let filled = filled.unwrap_or_else(|error| {
            self.driver_log.log(format_args!("{error}"));
            0
        });
        Served::Done(filled)
    }
}

/// Fills the request's buffers and returns how many bytes that took, up to [`MAX_BYTES`].
fn fill(request: &mut Request, mem: &GuestMemoryMmap) -> Result<u32, ChainError> {
    let front = request.writable.front(mem, Permissions::Write)?;
    let mut filled = 0;
    for piece in front.pieces() {
        let piece = piece.shortened_to(MAX_BYTES - filled);
        let want = piece.len();
        let got = random(&piece);
        filled += got;
        if got < want || filled == MAX_BYTES {
            break;
        }
    }
    // No more than MAX_BYTES, so nothing is cut off.
    Ok(filled as u32)
}

/// Fills `piece` of guest memory, and returns how many bytes there are before the host has no more.
fn random(piece: &Piece<'_>) -> usize {
    let mut filled = 0;
    while filled < piece.len() {
        // SAFETY: `piece` is guest memory that is mapped as long as it lives, `filled` is less than its length, and the kernel writes no further than that.
        // The guest may change the bytes meanwhile: nothing here reads them.
        let got = unsafe { libc::getrandom(piece.start().add(filled), piece.len() - filled, 0) };
        match usize::try_from(got) {
            Ok(got) if got > 0 => filled += got,
            _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    filled
}
