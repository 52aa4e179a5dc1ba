//! What is written to a guest's memory while it is saved.
//!
//! KVM logs what vCPUs write, and what it writes for them (`KVM_MEM_LOG_DIRTY_PAGES`, `KVM_GET_DIRTY_LOG`;
//! Documentation/virt/kvm/api.rst, sections 4.35 and 4.8); the VMM notes what its devices write ([`WrittenPages`](crate::WrittenPages)). Together
//! they are exact. KVM's log is emptied whenever it is fetched; what devices write is gathered to the end, because a device
//! may say what it writes before it does.

use std::ops::Deref;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::pages::Pages;
use crate::memory::log_dirty_pages;
use crate::running::RunningVm;
use crate::snapshot::SnapshotError;

/// A log that is kept as long as this lives.
pub(in crate::snapshot) struct DirtyLog<'a> {
    vm: &'a RunningVm,
}

impl<'a> DirtyLog<'a> {
    /// Begins it, unless KVM keeps no log. Everything that is written after this returns is in it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Stalled`].
    pub(in crate::snapshot) fn begin(vm: &'a RunningVm) -> Result<Option<Self>, SnapshotError> {
        let memory = &vm.save_context().memory;
        if let Err(error) = log_dirty_pages(vm.fd(), memory, true) {
            log::debug!(
                "KVM logs no dirty pages ({error}): the guest stands still for the snapshot"
            );
            // One region may have been accepted before another was refused.
            let _ = log_dirty_pages(vm.fd(), memory, false);
            return Ok(None);
        }
        // From here on its end is the log's.
        let log = Self { vm };
        vm.with_devices_still(|| {
            for region in memory.iter() {
                // It was mapped, so its length is one of memory.
                region.deref().bitmap().begin(region.len() as usize);
            }
        })?;
        Ok(Some(log))
    }

    /// The pages of each region that vCPUs have written since the last time.
    pub(in crate::snapshot) fn fetch(&self) -> Result<Vec<Pages>, SnapshotError> {
        let regions = self.vm.save_context().memory.iter();
        (0..)
            .zip(regions)
            .map(|(slot, region)| {
                let log = self.vm.fd().get_dirty_log(slot, region.len() as usize);
                log.map(Pages)
                    .map_err(SnapshotError::kvm("KVM_GET_DIRTY_LOG"))
            })
            .collect()
    }

    /// The pages of each region that vCPUs have written since the last time, and devices since the log began. The VM must
    /// stand still.
    pub(in crate::snapshot) fn last(&self) -> Result<Vec<Pages>, SnapshotError> {
        let mut pages = self.fetch()?;
        for (pages, region) in pages.iter_mut().zip(self.vm.save_context().memory.iter()) {
            pages.add(&Pages(region.deref().bitmap().end()));
        }
        Ok(pages)
    }
}

impl Drop for DirtyLog<'_> {
    fn drop(&mut self) {
        let memory = &self.vm.save_context().memory;
        if let Err(error) = log_dirty_pages(self.vm.fd(), memory, false) {
            log::warn!("KVM goes on logging dirty pages, which makes the guest slower: {error}");
        }
        for region in memory.iter() {
            region.deref().bitmap().end();
        }
    }
}
