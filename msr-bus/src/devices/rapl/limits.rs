//! Power limits: registers that software writes until it locks them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::GeneralProtection;

/// The bits of `MSR_PKG_POWER_LIMIT`: two limits with their enable and clamp bits and time windows, and
/// the lock (SDM volume 3B, section 15.10.3).
pub(super) const PACKAGE_LIMIT: Layout = Layout {
    defined: LIMIT | LIMIT << 32 | 1 << 63,
    lock: 1 << 63,
};

/// The bits of `MSR_PP0_POWER_LIMIT`, `MSR_PP1_POWER_LIMIT` and `MSR_DRAM_POWER_LIMIT`: one limit and the
/// lock (SDM volume 3B, sections 15.10.4 and 15.10.5).
pub(super) const PLANE_LIMIT: Layout = Layout {
    defined: LIMIT | 1 << 31,
    lock: 1 << 31,
};

/// The priority of `MSR_PP0_POLICY` and `MSR_PP1_POLICY`. The lock is in the plane's limit.
pub(super) const POLICY: u64 = 0x1f;

/// A power limit (14:0), its enable bit (15), clamp bit (16) and time window (23:17).
const LIMIT: u64 = 0x00ff_ffff;

/// Which bits a limit register has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    defined: u64,
    lock: u64,
}

/// A power limit and the policy that its lock covers too.
#[derive(Debug)]
pub(super) struct Limit {
    layout: Layout,
    limit: AtomicU64,
    policy: AtomicU64,
}

impl Limit {
    pub(super) fn new(layout: Layout, reset: u64) -> Self {
        Self {
            layout,
            limit: AtomicU64::new(reset),
            policy: AtomicU64::new(0),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn policy(&self) -> u64 {
        self.policy.load(Ordering::Relaxed)
    }

    /// A write to a locked limit is ignored, not #GP: so says the manual of every lock bit here.
    pub(super) fn write_limit(&self, value: u64) -> Result<(), GeneralProtection> {
        if value & !self.layout.defined != 0 {
            return Err(GeneralProtection);
        }
        // In one step, so that no write of another CPU slips in behind the one that locks.
        let unless_locked = |limit| (limit & self.layout.lock == 0).then_some(value);
        let _ = self
            .limit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, unless_locked);
        Ok(())
    }

    pub(super) fn write_policy(&self, value: u64) -> Result<(), GeneralProtection> {
        if value & !POLICY != 0 {
            return Err(GeneralProtection);
        }
        if self.limit() & self.layout.lock == 0 {
            self.policy.store(value, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Limit and policy, for a saved state.
    pub(super) fn save(&self) -> [u64; 2] {
        [self.limit(), self.policy()]
    }

    /// Whether a guest could have brought about what `saved` says.
    pub(super) fn accepts(&self, [limit, policy]: [u64; 2]) -> bool {
        limit & !self.layout.defined == 0 && policy & !POLICY == 0
    }

    pub(super) fn restore(&self, [limit, policy]: [u64; 2]) {
        self.limit.store(limit, Ordering::Relaxed);
        self.policy.store(policy, Ordering::Relaxed);
    }
}
