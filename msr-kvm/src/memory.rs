//! Guest memory, whichever type a VMM has for it.

/// Reads guest memory at guest-physical addresses. A VMM implements it for its own type, or gives a closure:
///
/// ```
/// use msr_kvm::PhysicalMemory;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// fn reader(memory: GuestMemoryMmap) -> impl PhysicalMemory {
///     move |address, buf: &mut [u8]| memory.read_slice(buf, GuestAddress(address)).is_ok()
/// }
/// ```
pub trait PhysicalMemory: Send + Sync {
    /// Fills `buf` from `address` on. Returns whether all of it is memory; where it is not, `buf` holds no defined
    /// value.
    fn read(&self, address: u64, buf: &mut [u8]) -> bool;
}

impl<F: Fn(u64, &mut [u8]) -> bool + Send + Sync> PhysicalMemory for F {
    fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        self(address, buf)
    }
}

/// No memory: for guests whose MSR devices read none. Of this project's devices, `microcode` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMemory;

impl PhysicalMemory for NoMemory {
    fn read(&self, _: u64, buf: &mut [u8]) -> bool {
        buf.is_empty()
    }
}
