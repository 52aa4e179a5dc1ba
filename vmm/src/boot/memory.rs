//! What boot needs to know of the guest's memory.

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemoryMmap;

/// The end of the memory that begins at address 0 and has no gap; 0 where there is none.
pub(super) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    // Regions are sorted by address.
    memory.iter().fold(0, |end, region| {
        if region.start_addr().raw_value() == end {
            end + region.len()
        } else {
            end
        }
    })
}

/// `bytes` in MiB, rounded up.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
