//! The guest's memory.

use std::ptr;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::{MemorySize, VmConfig};
use crate::layout;
use crate::written_pages::WrittenPages;

/// The guest's memory. It knows which pages the VMM writes while a snapshot is being made.
pub type GuestMemoryMmap = vm_memory::GuestMemoryMmap<WrittenPages>;
/// One of its regions.
pub(crate) type GuestRegionMmap = vm_memory::GuestRegionMmap<WrittenPages>;

/// The size of a huge page, in bytes: one entry of a page directory.
const HUGE_PAGE: usize = 2 << 20;

/// Guest memory that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host refuses to map as much.
    #[error("cannot map {size} of guest memory{hint}: {source}")]
    Map {
        /// How much was asked for.
        size: MemorySize,
        /// What may help.
        hint: &'static str,
        /// What the host said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The size cannot be addressed.
    #[error("{0} of guest memory are more than addresses reach")]
    TooLarge(MemorySize),
    /// KVM refuses the memory.
    #[error("KVM_SET_USER_MEMORY_REGION failed: {0}")]
    Register(kvm_ioctls::Error),
}

/// Maps the guest's memory: below the hole for devices, and above 4 GiB what does not fit there.
///
/// # Errors
///
/// [`MemoryError::Map`] and [`MemoryError::TooLarge`].
pub fn map(config: &VmConfig) -> Result<GuestMemoryMmap, MemoryError> {
    let size = config.memory;
    let regions = ranges(size)
        .map(|(start, length)| region(config, start, length))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::TooLarge(size))
}

/// Where memory is: the start and the length of each range, in bytes.
pub(crate) fn ranges(size: MemorySize) -> impl Iterator<Item = (u64, u64)> {
    let low = size.0.min(layout::MMIO_HOLE);
    let ranges = [(0, low), (layout::MMIO_HOLE_END, size.0 - low)];
    ranges.into_iter().filter(|(_, length)| *length > 0)
}

fn region(config: &VmConfig, start: u64, length: u64) -> Result<GuestRegionMmap, MemoryError> {
    let size = config.memory;
    let length = usize::try_from(length).map_err(|_| MemoryError::TooLarge(size))?;
    // Pages the guest never touches are never there, so they need no reserve either.
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let mut hint = "";
    if config.huge_pages {
        flags = flags & !libc::MAP_NORESERVE | libc::MAP_HUGETLB;
        hint = " in huge pages (vm.huge_pages; /proc/sys/vm/nr_hugepages says how many there are)";
    }
    if config.prefault {
        flags |= libc::MAP_POPULATE;
    }
    let _gap = aligned_gap(length);
    MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_hugetlbfs(config.huge_pages)
        .build()
        .map_err(|source| MemoryError::Map { size, hint, source })
        .inspect(prefer_huge_pages)
        .inspect(keep_out_of_core_dumps)
        .and_then(|mapping| {
            GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(MemoryError::TooLarge(size))
        })
}

/// What keeps part of the address space free of other mappings, for as long as it lives.
struct Reserved {
    address: *mut libc::c_void,
    length: usize,
}

impl Reserved {
    fn new(near: *mut libc::c_void, length: usize) -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED nothing that is mapped is replaced.
        let address = unsafe { libc::mmap(near, length, libc::PROT_NONE, flags, -1, 0) };
        (address != libc::MAP_FAILED).then_some(Self { address, length })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and nothing is ever put there.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Arranges that the next mapping of `length` bytes begins at a multiple of [`HUGE_PAGE`], as it does by itself from Linux 6.7
/// on: KVM maps huge pages only where host and guest addresses agree in their lower bits. Memory is mapped downwards from
/// the lowest mapping, so it is enough to fill what lies between and would spoil that.
///
/// It is a matter of speed alone: where another thread maps memory in between, or the host maps it in another order, the
/// guest's pages are small.
fn aligned_gap(length: usize) -> Option<Reserved> {
    let room = Reserved::new(ptr::null_mut(), length.checked_add(HUGE_PAGE)?)?;
    let end = room.address.addr() + room.length;
    let aligned_end = (end - length) / HUGE_PAGE * HUGE_PAGE + length;
    drop(room);
    Reserved::new(ptr::without_provenance_mut(aligned_end), end - aligned_end)
}

/// Asks for transparent huge pages: loading a kernel then takes a third of the time, and the guest has fewer page faults.
/// A kernel image that is mapped instead of read would take no time to load, but a fault for each page that the guest
/// touches, and the guest would change or die with the file.
fn prefer_huge_pages(mapping: &MmapRegion<WrittenPages>) {
    // SAFETY: the range is mapped, and the advice changes nothing that can be seen in it. A kernel without
    // transparent huge pages refuses it, which is as good.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
}

/// A core dump of the VMM is for those who look after the VMM; what the guest keeps in its memory is not for them.
pub(crate) fn keep_out_of_core_dumps(mapping: &MmapRegion<WrittenPages>) {
    // SAFETY: the range is mapped, and the advice changes nothing that can be seen in it.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
}

/// Gives the memory to the VM.
///
/// # Errors
///
/// [`MemoryError::Register`].
pub(crate) fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
    set_slots(vm, memory, 0).map_err(MemoryError::Register)
}

/// Has KVM log which pages of a VM's memory its vCPUs write, or not any more. The vCPUs may run.
///
/// # Errors
///
/// What KVM says.
pub(crate) fn log_dirty_pages(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    log: bool,
) -> Result<(), kvm_ioctls::Error> {
    set_slots(vm, memory, if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
}

/// A slot for each region, numbered as they are ordered.
fn set_slots(vm: &VmFd, memory: &GuestMemoryMmap, flags: u32) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let kvm_region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags,
        };
        // SAFETY: the region is mapped, of this length, and the VM keeps `memory` for as long as its
        // vCPUs run; regions of a `GuestMemoryMmap` do not overlap.
        unsafe { vm.set_user_memory_region(kvm_region) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(memory: u64) -> Vec<(u64, u64)> {
        let config = VmConfig {
            memory: MemorySize(memory),
            ..VmConfig::default()
        };
        let memory = map(&config).unwrap();
        memory
            .iter()
            .map(|region| (region.start_addr().raw_value(), region.len()))
            .collect()
    }

    #[test]
    fn memory_leaves_out_the_hole_for_devices() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ranges(GIB), [(0, GIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(3 * GIB + 4096), [(0, 3 * GIB), (4 * GIB, 4096)]);
        assert_eq!(ranges(8 * GIB), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn a_gap_leaves_room_that_ends_where_an_aligned_mapping_does() {
        for length in [HUGE_PAGE, 3 * HUGE_PAGE + 4096, 4096] {
            // Nothing is reserved where the room is aligned already.
            if let Some(gap) = aligned_gap(length) {
                assert!(gap.length <= HUGE_PAGE);
                let start = gap.address.addr() - length;
                assert_eq!(start % HUGE_PAGE, 0, "{length:#x}");
            }
        }
    }

    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let config = VmConfig {
            memory: MemorySize(8 << 20),
            ..VmConfig::default()
        };
        let memory = map(&config).unwrap();
        let start = memory.iter().next().unwrap().as_ptr() as u64;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of = |line: &str| {
            let (first, last) = line.split_once(' ')?.0.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(first)?..number(last)?).contains(&start))
        };
        let mut lines = smaps.lines().skip_while(|line| of(line) != Some(true));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn memory_beyond_all_addresses_is_an_error() {
        let config = VmConfig {
            memory: MemorySize(!4095),
            ..VmConfig::default()
        };
        assert!(map(&config).is_err());
    }
}
