//! Which pages of its guest's memory the VMM itself writes.
//!
//! KVM logs the pages that vCPUs write (`KVM_MEM_LOG_DIRTY_PAGES`), and that KVM writes for them. It does not see what this
//! process writes: the data that a disk reads, the used rings of virtio queues. A snapshot that is made while the guest runs
//! needs both.
//!
//! Every write through `vm-memory` tells the region's bitmap, which is of the type here. It looks at a flag; only while a
//! snapshot is being made does it keep a bit for each page, and before the first one it has no memory either. What is written
//! through a raw pointer has to be told: virtio's buffers do.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// The size of a page, as KVM counts it in its log.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The pages of a region that the VMM has written since it was asked to note them. While it is not, it notes nothing.
#[derive(Debug, Default)]
pub struct WrittenPages {
    noting: AtomicBool,
    pages: OnceLock<AtomicBitmap>,
}

impl WrittenPages {
    /// Begins to note what is written to the region, of `length` bytes. Nobody may be about to write to it: who tells before
    /// he writes has told too early.
    pub(crate) fn begin(&self, length: usize) {
        let pages = self.pages.get_or_init(|| AtomicBitmap::new(length, PAGE));
        pages.reset();
        self.noting.store(true, Ordering::Release);
    }

    /// Ends it, and gives a bit for each page, as KVM's log has them. Nobody may be about to tell what he wrote.
    pub(crate) fn end(&self) -> Vec<u64> {
        self.noting.store(false, Ordering::Release);
        self.pages
            .get()
            .map_or_else(Vec::new, AtomicBitmap::get_and_reset)
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.noting.load(Ordering::Acquire)
            && let Some(pages) = self.pages.get()
        {
            pages.set_addr_range(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages
            .get()
            .is_some_and(|pages| pages.is_addr_set(offset))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for WrittenPages {
    fn with_len(_: usize) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use crate::memory::GuestMemoryMmap;

    #[test]
    fn what_is_written_is_noted_between_begin_and_end_alone() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let region = memory.iter().next().unwrap();
        let pages = std::ops::Deref::deref(region).bitmap();
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        assert!(pages.end().is_empty());
        pages.begin(1 << 20);
        memory.write_obj(1u8, GuestAddress(0x2000)).unwrap();
        memory.write_slice(&[1; 2], GuestAddress(0x4fff)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
        let noted = pages.end();
        assert_eq!((noted.len(), noted[0]), (4, 1 << 2 | 1 << 4 | 1 << 5));
        memory.write_obj(1u8, GuestAddress(0x6000)).unwrap();
        pages.begin(1 << 20);
        assert_eq!(pages.end()[0], 0);
    }
}
