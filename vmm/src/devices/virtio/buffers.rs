use std::marker::PhantomData;
use std::ops::Deref;

use libc::iovec;
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::memory::GuestMemoryMmap;

/// What is wrong with a descriptor chain or with the memory it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    #[error("a descriptor chain with more than {0} descriptors")]
    TooLong(usize),
    #[error("a descriptor chain that is empty or breaks off: its next descriptor cannot be read")]
    BrokenOff,
    #[error("a descriptor chain with a device-readable buffer after a device-writable one")]
    OutOfOrder,
    #[error("a descriptor chain with {there} bytes where {needed} are needed")]
    TooShort { there: u64, needed: u64 },
    #[error("a buffer that is not in memory, at {0:#x}")]
    NotInMemory(u64),
}

/// The device-readable and the device-writable bytes of one request.
///
/// A driver may cut a request into descriptors as it likes (section 2.7.4.1), so these are two
/// streams of bytes. The room for descriptors is allocated once and used for every request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) readable: Buffers,
    pub(super) writable: Buffers,
    max: usize,
}

impl Request {
    /// Room for requests with up to `max` descriptors.
    pub(super) fn new(max: usize) -> Self {
        Self {
            readable: Buffers::with_capacity(max),
            writable: Buffers::with_capacity(max),
            max,
        }
    }

    /// Takes the request in `chain`, in place of the one before. Where the buffers are is not
    /// checked yet.
    pub(super) fn load<M>(&mut self, chain: DescriptorChain<M>) -> Result<(), ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count == self.max {
                return Err(ChainError::TooLong(self.max));
            }
            complete = !descriptor.has_next();
            if descriptor.is_write_only() {
                self.writable.push(descriptor.addr(), descriptor.len());
            } else if self.writable.len() != 0 {
                return Err(ChainError::OutOfOrder);
            } else {
                self.readable.push(descriptor.addr(), descriptor.len());
            }
        }
        if complete {
            Ok(())
        } else {
            Err(ChainError::BrokenOff)
        }
    }
}

/// A stream of bytes in guest memory, used from its front on.
#[derive(Debug)]
pub(super) struct Buffers {
    list: Vec<(GuestAddress, u64)>,
    front: usize,
    len: u64,
}

impl Buffers {
    fn with_capacity(max: usize) -> Self {
        Self {
            list: Vec::with_capacity(max),
            front: 0,
            len: 0,
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.front = 0;
        self.len = 0;
    }

    fn push(&mut self, address: GuestAddress, len: u32) {
        if len != 0 {
            self.list.push((address, u64::from(len)));
            self.len += u64::from(len);
        }
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Takes the last byte off and returns its address.
    pub(super) fn take_last_byte(&mut self) -> Result<GuestAddress, ChainError> {
        let Some((address, len)) = self.list[self.front..].last_mut() else {
            return Err(ChainError::TooShort {
                there: 0,
                needed: 1,
            });
        };
        *len -= 1;
        self.len -= 1;
        let last = address.checked_add(*len);
        let last = last.ok_or(ChainError::NotInMemory(address.raw_value()))?;
        if *len == 0 {
            self.list.pop();
        }
        Ok(last)
    }

    /// Takes `data.len()` bytes from the front.
    pub(super) fn read(
        &mut self,
        mem: &GuestMemoryMmap,
        data: &mut [u8],
    ) -> Result<(), ChainError> {
        self.check_len(data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let (address, len) = self.list[self.front];
            let now = usize::try_from(len).map_or(rest.len(), |len| len.min(rest.len()));
            let (piece, after) = rest.split_at_mut(now);
            mem.read_slice(piece, address)
                .map_err(|_| ChainError::NotInMemory(address.raw_value()))?;
            self.advance(now as u64);
            rest = after;
        }
        Ok(())
    }

    /// Puts `data` at the front and takes the bytes off.
    pub(super) fn write(&mut self, mem: &GuestMemoryMmap, data: &[u8]) -> Result<(), ChainError> {
        self.check_len(data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let (address, len) = self.list[self.front];
            let now = usize::try_from(len).map_or(rest.len(), |len| len.min(rest.len()));
            let (piece, after) = rest.split_at(now);
            mem.write_slice(piece, address)
                .map_err(|_| ChainError::NotInMemory(address.raw_value()))?;
            self.advance(now as u64);
            rest = after;
        }
        Ok(())
    }

    fn check_len(&self, needed: usize) -> Result<(), ChainError> {
        let needed = needed as u64;
        if self.len < needed {
            return Err(ChainError::TooShort {
                there: self.len,
                needed,
            });
        }
        Ok(())
    }

    /// Takes `count` bytes off the front: no more than there are, and only such as have been found
    /// in memory.
    pub(super) fn advance(&mut self, count: u64) {
        let mut left = count.min(self.len);
        self.len -= left;
        while left != 0 {
            let (address, len) = &mut self.list[self.front];
            if *len > left {
                // They are in memory, and memory does not reach the end of the address space.
                *address = address.unchecked_add(left);
                *len -= left;
                return;
            }
            left -= *len;
            self.front += 1;
        }
    }

    /// The host's view of the bytes at the front, as many as one system call should move, for the
    /// device to access as `access` says. They stay at the front.
    pub(super) fn front<'a>(
        &self,
        mem: &'a GuestMemoryMmap,
        access: Permissions,
    ) -> Result<Iovecs<'a>, ChainError> {
        let mut iovecs = Iovecs::new(mem);
        for &(address, len) in &self.list[self.front..] {
            let room = MAX_IOVEC_BYTES - iovecs.bytes;
            let take = usize::try_from(len).map_or(room, |len| len.min(room));
            let missing = |_| ChainError::NotInMemory(address.raw_value());
            for slice in mem.get_slices(address, take, access).map_err(missing)? {
                let slice = slice.map_err(missing)?;
                if iovecs.count == iovecs.list.len() {
                    return Ok(iovecs);
                }
                if access == Permissions::Write {
                    slice.bitmap().mark_dirty(0, slice.len());
                }
                iovecs.list[iovecs.count] = iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                };
                iovecs.count += 1;
                iovecs.bytes += slice.len();
            }
            if iovecs.bytes == MAX_IOVEC_BYTES {
                break;
            }
        }
        Ok(iovecs)
    }
}

/// How many pieces of guest memory one system call takes.
const MAX_IOVECS: usize = 64;
/// One system call moves no more bytes, so that a device that is to stop does so soon.
const MAX_IOVEC_BYTES: usize = 4 << 20;

/// Pieces of guest memory for a vectored system call, all of them mapped as long as `'a`.
pub(super) struct Iovecs<'a> {
    list: [iovec; MAX_IOVECS],
    count: usize,
    bytes: usize,
    _mem: &'a GuestMemoryMmap,
}

/// A piece of guest memory: `len` bytes from `start` on, mapped as long as `'a`.
pub(super) struct Piece<'a> {
    start: *mut libc::c_void,
    len: usize,
    _mem: PhantomData<&'a GuestMemoryMmap>,
}

impl Piece<'_> {
    pub(super) fn start(&self) -> *mut libc::c_void {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its first `len` bytes, if it has as many.
    pub(super) fn shortened_to(self, len: usize) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }
}

impl<'a> Iovecs<'a> {
    fn new(mem: &'a GuestMemoryMmap) -> Self {
        let none = iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            list: [none; MAX_IOVECS],
            count: 0,
            bytes: 0,
            _mem: mem,
        }
    }

    /// The pieces, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.as_slice().iter().map(|piece| Piece {
            start: piece.iov_base,
            len: piece.iov_len,
            _mem: PhantomData,
        })
    }

    /// The pieces as system calls take them.
    pub(super) fn as_slice(&self) -> &[iovec] {
        &self.list[..self.count]
    }
}
