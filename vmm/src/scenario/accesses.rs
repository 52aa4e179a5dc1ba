//! Counts accesses to MSRs down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use msr_bus::{MsrEvent, MsrObserver};
use msr_kvm::scenario::MAX_SCENARIOS;
use vmm_sys_util::eventfd::EventFd;

/// Counts accesses that reach userspace, and tells once there were as many as somebody waits for. A scenario waits for one count
/// at a time, so that there is room for all.
#[derive(Debug)]
pub struct AccessWatch {
    /// Whether anything is counted.
    active: AtomicBool,
    slots: [Slot; MAX_SCENARIOS],
    event: Arc<EventFd>,
}

/// The count of one MSR.
#[derive(Debug, Default)]
struct Slot {
    msr: AtomicU32,
    /// How many accesses are left; 0 where nothing is counted.
    left: AtomicU64,
    /// Who waits, and 1 more than that, or 0 where the slot is free.
    waits: AtomicU32,
}

impl AccessWatch {
    pub(super) fn new(event: Arc<EventFd>) -> Self {
        Self {
            active: AtomicBool::new(false),
            slots: Default::default(),
            event,
        }
    }

    /// Counts `count` accesses to `msr` down from now on.
    pub(super) fn count(&self, id: u32, msr: u32, count: u64) {
        let free = |slot: &&Slot| slot.waits.load(Ordering::Relaxed) == 0;
        let Some(slot) = self.slots.iter().find(free) else {
            // There are as many slots as scenarios.
            return;
        };
        slot.waits.store(id + 1, Ordering::Relaxed);
        slot.msr.store(msr, Ordering::Relaxed);
        slot.left.store(count, Ordering::Release);
        self.active.store(true, Ordering::Release);
    }

    /// Who has waited long enough.
    pub(super) fn take_found(&self) -> Vec<u32> {
        let mut found = Vec::new();
        let mut waiting = false;
        for slot in &self.slots {
            match slot.waits.load(Ordering::Relaxed) {
                0 => {}
                waits if slot.left.load(Ordering::Acquire) == 0 => {
                    slot.waits.store(0, Ordering::Relaxed);
                    found.push(waits - 1);
                }
                _ => waiting = true,
            }
        }
        if !waiting {
            self.active.store(false, Ordering::Relaxed);
        }
        found
    }
}

impl MsrObserver for AccessWatch {
    #[inline]
    fn observe(&self, event: &MsrEvent<'_>) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        for slot in &self.slots {
            let ordering = Ordering::AcqRel;
            if slot.left.load(Ordering::Acquire) != 0
                && slot.msr.load(Ordering::Relaxed) == event.access.index
                && slot
                    .left
                    .fetch_update(ordering, Ordering::Acquire, |left| left.checked_sub(1))
                    == Ok(1)
            {
                // It fails only with 2^64 - 2 events unread, and then the loop is awake.
                let _ = self.event.write(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use msr_bus::testing::FakeVcpu;
    use msr_bus::{Access, AnsweredBy, ExitReason, MsrAccess};

    use super::*;

    fn access(watch: &AccessWatch, index: u32) {
        let cpu = FakeVcpu::default();
        let access = MsrAccess {
            index,
            reason: ExitReason::Filter,
            cpu: &cpu,
        };
        watch.observe(&MsrEvent {
            access: &access,
            kind: Access::READ,
            written: 0,
            outcome: Ok(0),
            answered_by: AnsweredBy::Fallback,
            injected: None,
        });
    }

    #[test]
    fn each_count_ends_after_as_many_accesses_to_its_own_msr() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let watch = AccessWatch::new(Arc::new(event));
        access(&watch, 1);
        watch.count(0, 1, 2);
        watch.count(7, 2, 1);
        access(&watch, 1);
        assert!(watch.take_found().is_empty() && watch.event.read().is_err());
        access(&watch, 2);
        assert_eq!(
            (watch.take_found(), watch.event.read().unwrap()),
            (vec![7], 1)
        );
        access(&watch, 2);
        access(&watch, 1);
        access(&watch, 1);
        assert_eq!(
            (watch.take_found(), watch.event.read().unwrap()),
            (vec![0], 1)
        );
        assert!(!watch.active.load(Ordering::Relaxed) && watch.take_found().is_empty());
        // The slots are free again.
        for id in 0..MAX_SCENARIOS as u32 {
            watch.count(id, id, 1);
        }
        (0..MAX_SCENARIOS as u32).for_each(|index| access(&watch, index));
        assert_eq!(watch.take_found().len(), MAX_SCENARIOS);
    }
}
