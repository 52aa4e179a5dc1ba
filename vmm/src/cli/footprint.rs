//! Gives back to the host what only starting a VM needed.
//!
//! A VM runs for days with a few pages of the executable's code, and started with many more: arguments, configuration,
//! planning, the kernel's decompression. What of that is mapped stays resident until the host runs short of memory,
//! and so does what the allocator keeps for later. Both go back when the vCPUs run, beside them:
//!
//! - Pages of the executable that nothing writes are unmapped; the file's page cache still has them, so that what is
//!   called again costs a minor fault for each 64 KiB.
//! - The allocator's free pages, where it is that of the GNU C library.
//!
//! What relocations wrote and what threads use of their stacks stays: it is in no file.

use std::ffi::{c_int, c_void};
use std::ptr;

/// The size of a page of memory, in bytes.
const PAGE: u64 = 4096;

/// Gives back what is not needed while the VM runs. It changes no behaviour, so that a refusal of the host's is no error.
pub(crate) fn shrink() {
    // SAFETY: the callback keeps to the contract of dl_iterate_phdr(3), and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_unwritten), ptr::null_mut()) };
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches free memory alone, and is MT-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps what is resident of an object's segments that are not writable.
///
/// # Safety
///
/// `info` describes a loaded object, as dl_iterate_phdr(3) gives it.
unsafe extern "C" fn unmap_unwritten(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise; the headers of a loaded object stay where they are.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    // The part that is read-only after relocation belongs to a writable segment.
    let unwritten = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for segment in unwritten {
        let start = (base + segment.p_vaddr) & !(PAGE - 1);
        let end = (base + segment.p_vaddr + segment.p_memsz).next_multiple_of(PAGE);
        // SAFETY: a private mapping of a file that nothing wrote to: what is dropped is read from the file again.
        unsafe {
            libc::madvise(
                start as *mut c_void,
                (end - start) as usize,
                libc::MADV_DONTNEED,
            )
        };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of the executable's code that is resident, in KiB, and where its mapping is.
    fn code() -> (u64, std::ops::Range<usize>) {
        let here = shrink as *const () as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = |line: &str| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let address = |digits| usize::from_str_radix(digits, 16).ok();
            Some(address(start)?..address(end)?)
        };
        let mut lines = smaps.lines();
        let mut mappings = lines.by_ref().filter_map(range);
        let mapping = mappings.find(|range| range.contains(&here)).unwrap();
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let resident = resident.trim_end_matches("kB").trim().parse();
        (resident.unwrap(), mapping)
    }

    #[test]
    fn code_that_is_not_called_again_is_no_longer_resident() {
        let (_, mapping) = code();
        for page in mapping.clone().step_by(PAGE as usize) {
            // SAFETY: the mapping of the executable's code is readable and stays.
            unsafe { ptr::read_volatile(page as *const u8) };
        }
        let (all, _) = code();
        assert_eq!(all, mapping.len() as u64 / 1024);
        shrink();
        let (left, _) = code();
        // Other tests run meanwhile, and call code of their own.
        assert!(left < all, "{left} of {all} KiB");
    }
}
