//! Power limits, and the policies that their locks cover too.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::GeneralProtection;
use crate::devices::lockable::Lockable;

/// A power limit (14:0), its enable bit (15), clamp bit (16) and time window (23:17).
const LIMIT: u64 = 0x00ff_ffff;

/// The priority of `MSR_PP0_POLICY` and `MSR_PP1_POLICY`.
const POLICY: u64 = 0x1f;

/// A power limit and the policy of the same domain.
#[derive(Debug)]
pub(super) struct Limit {
    limit: Lockable,
    policy: AtomicU64,
}

impl Limit {
    /// `MSR_PKG_POWER_LIMIT`: two limits, and the lock in bit 63 (SDM volume 3B, section 15.10.3).
    pub(super) fn of_package(reset: u64) -> Self {
        const LOCK: u64 = 1 << 63;
        Self {
            limit: Lockable::new(LIMIT | LIMIT << 32 | LOCK, LOCK, reset),
            policy: AtomicU64::new(0),
        }
    }

    /// `MSR_PP0_POWER_LIMIT`, `MSR_PP1_POWER_LIMIT` and `MSR_DRAM_POWER_LIMIT`: one limit, and the lock in
    /// bit 31, which locks the policy too (SDM volume 3B, sections 15.10.4 and 15.10.5).
    pub(super) fn of_plane() -> Self {
        const LOCK: u64 = 1 << 31;
        Self {
            limit: Lockable::new(LIMIT | LOCK, LOCK, 0),
            policy: AtomicU64::new(0),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.read()
    }

    pub(super) fn policy(&self) -> u64 {
        self.policy.load(Ordering::Relaxed)
    }

    pub(super) fn write_limit(&self, value: u64) -> Result<(), GeneralProtection> {
        self.limit.write(value)
    }

    pub(super) fn write_policy(&self, value: u64) -> Result<(), GeneralProtection> {
        if value & !POLICY != 0 {
            return Err(GeneralProtection);
        }
        if !self.limit.locked() {
            self.policy.store(value, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Limit and policy, for a saved state.
    pub(super) fn save(&self) -> [u64; 2] {
        [self.limit(), self.policy()]
    }

    /// Whether a guest could have brought about what `saved` says, of the registers that there are.
    pub(super) fn reaches(
        &self,
        [limit, policy]: [u64; 2],
        has_limit: bool,
        has_policy: bool,
    ) -> bool {
        let limit_sound = if has_limit {
            self.limit.reaches(limit)
        } else {
            self.limit.is_reset(limit)
        };
        let policy_sound = if has_policy {
            policy & !POLICY == 0
        } else {
            policy == 0
        };
        limit_sound && policy_sound
    }

    pub(super) fn restore(&self, [limit, policy]: [u64; 2]) {
        self.limit.restore(limit);
        self.policy.store(policy, Ordering::Relaxed);
    }
}
