//! Interrupts that devices ask for.
//!
//! A device knows no interrupt controller. It notes here what it would signal, and whoever has made the change that led to it
//! takes the notes and delivers them: see [`LiveKeys::set`](crate::LiveKeys::set). Guests' own accesses make none.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Mutex, PoisonError};

use crate::VcpuId;

/// Interrupts that were asked for and not delivered yet, each once however often it was asked for.
#[derive(Debug, Default)]
pub struct InterruptRequests {
    thermal: Mutex<BTreeSet<VcpuId>>,
}

impl InterruptRequests {
    /// Asks for the thermal interrupt of a vCPU: what becomes of it, the thermal entry of its local APIC's local vector table
    /// says (SDM volume 3A, "Local Vector Table").
    pub fn request_thermal(&self, vcpu: VcpuId) {
        let mut thermal = self.thermal.lock().unwrap_or_else(PoisonError::into_inner);
        thermal.insert(vcpu);
    }

    /// Takes the vCPUs whose thermal interrupt was asked for.
    pub fn take_thermal(&self) -> BTreeSet<VcpuId> {
        let mut thermal = self.thermal.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut thermal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_twice_is_taken_once() {
        let requests = InterruptRequests::default();
        for vcpu in [2, 0, 2] {
            requests.request_thermal(VcpuId(vcpu));
        }
        assert_eq!(requests.take_thermal(), BTreeSet::from([0, 2].map(VcpuId)));
        assert!(requests.take_thermal().is_empty());
    }
}
