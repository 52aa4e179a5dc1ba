//! Registers that software writes until it sets their lock bit.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::GeneralProtection;

/// A register with reserved bits and a lock bit. Once that is set, writes are ignored until reset: so the
/// manual says of RAPL's limits (SDM volume 3B, section 15.10.3: "Lock"), and does not say of any that a
/// write is #GP.
#[derive(Debug)]
pub(super) struct Lockable {
    defined: u64,
    lock: u64,
    reset: u64,
    value: AtomicU64,
}

impl Lockable {
    /// A register with the bits in `defined`, `lock` among them.
    pub(super) fn new(defined: u64, lock: u64, reset: u64) -> Self {
        Self {
            defined,
            lock,
            reset,
            value: AtomicU64::new(reset),
        }
    }

    pub(super) fn read(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub(super) fn locked(&self) -> bool {
        self.read() & self.lock != 0
    }

    pub(super) fn write(&self, value: u64) -> Result<(), GeneralProtection> {
        if !self.accepts(value) {
            return Err(GeneralProtection);
        }
        // In one step, so that no write of another CPU slips in behind the one that locks.
        let unless_locked = |old| (old & self.lock == 0).then_some(value);
        let _ = self
            .value
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, unless_locked);
        Ok(())
    }

    /// Whether `value` has no reserved bits set.
    pub(super) fn accepts(&self, value: u64) -> bool {
        value & !self.defined == 0
    }

    /// Whether software can bring the register from reset to `value`.
    pub(super) fn reaches(&self, value: u64) -> bool {
        value == self.reset || self.reset & self.lock == 0 && self.accepts(value)
    }

    /// Whether `value` is that after reset.
    pub(super) fn is_reset(&self, value: u64) -> bool {
        value == self.reset
    }

    /// Takes a saved value, locked or not.
    pub(super) fn restore(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }
}
