//! The plan: which MSRs, in which order, and saving by it.

use std::collections::BTreeSet;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, VcpuFd};

use super::deadline;
use super::entries::{self, MsrIoctlError};
use super::rules::{self, HYPERV_MSRS, Stage, TSC, TSC_DEADLINE};
use super::values::{MsrState, SavedMsr, described};

/// Which MSRs of a vCPU are saved, in the order in which they are restored.
///
/// One plan serves all vCPUs of a VM that have the same CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrStatePlan {
    order: Vec<u32>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanStateError {
    /// KVM does not say which MSRs it has.
    #[error("KVM_GET_MSR_INDEX_LIST failed: {0}")]
    IndexList(kvm_ioctls::Error),
    /// KVM does not say what CPUID the vCPU has.
    #[error("KVM_GET_CPUID2 failed: {0}")]
    GetCpuid(kvm_ioctls::Error),
    /// The vCPU has no CPUID yet.
    #[error(
        "the vCPU has no CPUID yet, on which its MSRs depend: set it (KVM_SET_CPUID2) before planning"
    )]
    NoCpuid,
    /// An ioctl on the vCPU failed.
    #[error(transparent)]
    Ioctl(#[from] MsrIoctlError),
}

/// Why a vCPU's MSRs are not saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// KVM gave the MSR when the plan was made, and does not now.
    #[error("KVM no longer gives the value of {}", described(*.0))]
    Unreadable(u32),
    /// An ioctl on the vCPU failed.
    #[error(transparent)]
    Ioctl(#[from] MsrIoctlError),
}

impl MsrStatePlan {
    /// The plan for a vCPU that has its CPUID, without the MSRs that `left_out` says are saved elsewhere.
    ///
    /// # Errors
    ///
    /// [`PlanStateError`].
    pub fn new(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        left_out: impl Fn(u32) -> bool,
    ) -> Result<Self, PlanStateError> {
        Self::among(kvm, vcpu, |_| true, left_out)
    }

    /// The plan for restoring `states` to such a vCPU: of the MSRs that [`new`](Self::new) has, those that are in one of them. It is
    /// much sooner made, because KVM is not asked one by one for what the vCPU lacks. The others keep the values that a new vCPU
    /// has.
    ///
    /// # Errors
    ///
    /// [`PlanStateError`].
    pub fn for_restoring<'a>(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        states: impl IntoIterator<Item = &'a MsrState>,
        left_out: impl Fn(u32) -> bool,
    ) -> Result<Self, PlanStateError> {
        let msrs = states.into_iter().flat_map(|state| &state.msrs);
        let saved: BTreeSet<u32> = msrs.map(|msr| msr.index).collect();
        Self::among(kvm, vcpu, |index| saved.contains(&index), left_out)
    }

    fn among(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        wanted: impl Fn(u32) -> bool,
        left_out: impl Fn(u32) -> bool,
    ) -> Result<Self, PlanStateError> {
        let hyperv = has_hyperv(vcpu)?;
        let list = kvm
            .get_msr_index_list()
            .map_err(PlanStateError::IndexList)?;
        let counts = entries::read(vcpu, &[rules::MTRR_CAP, rules::MCG_CAP])?;
        let count = |place: usize| counts[place].map_or(0, |value| (value & 0xff) as u32);
        let mut candidates: BTreeSet<u32> = list.as_slice().iter().copied().collect();
        candidates.extend(rules::omitted(count(0), count(1)));
        let candidates: Vec<u32> = candidates
            .into_iter()
            .filter(|index| hyperv || !HYPERV_MSRS.contains(index))
            .filter(|index| !rules::is_command(*index) && !left_out(*index) && wanted(*index))
            .collect();
        let values = entries::read(vcpu, &candidates)?;
        let mut order: Vec<u32> = candidates
            .into_iter()
            .zip(values)
            .filter_map(|(index, value)| value.map(|_| index))
            .collect();
        order.sort_by_key(|index| (Stage::of(*index), *index));
        Ok(Self { order })
    }

    /// The MSRs in the order in which they are restored.
    pub fn indices(&self) -> &[u32] {
        &self.order
    }

    /// Saves the MSRs of a vCPU that stands still, its last exit completed. Belongs before `KVM_GET_LAPIC`: see the
    /// [module](super).
    ///
    /// Where the local APIC's timer waits for a TSC deadline and there is none, the saved one is the TSC as it is now:
    /// the timer fires once when the vCPU goes on. A timer that expired may show as no deadline before its interrupt is
    /// anywhere, and a guest that waits for that would wait for ever; one that does not, takes it for an early tick.
    ///
    /// # Errors
    ///
    /// [`SaveError`].
    pub fn save(&self, vcpu: &VcpuFd) -> Result<MsrState, SaveError> {
        let values = entries::read(vcpu, &self.order)?;
        let mut msrs = Vec::with_capacity(self.order.len());
        for (&index, value) in self.order.iter().zip(values) {
            let value = value.ok_or(SaveError::Unreadable(index))?;
            msrs.push(SavedMsr { index, value });
        }
        let mut state = MsrState { msrs };
        if state.value(TSC_DEADLINE) == Some(0)
            // A VM without local APICs in the kernel has no such timer there.
            && let Ok(lapic) = vcpu.get_lapic()
            && deadline::may_be_lost(&lapic)
            && let Some(now) = state.value(TSC)
        {
            state.set(TSC_DEADLINE, now.max(1));
        }
        Ok(state)
    }
}

/// Whether CPUID shows Hyper-V's interface, without which its MSRs are not the guest's (leaf 0x40000001 is "Hv#1").
fn has_hyperv(vcpu: &VcpuFd) -> Result<bool, PlanStateError> {
    const INTERFACE: u32 = 0x4000_0001;
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(PlanStateError::GetCpuid)?;
    let leaves = cpuid.as_slice();
    // Not every KVM says how many entries it gave: what it left alone is zero.
    if leaves
        .iter()
        .all(|leaf| leaf.eax | leaf.ebx | leaf.ecx | leaf.edx == 0)
    {
        return Err(PlanStateError::NoCpuid);
    }
    let interface = leaves.iter().find(|leaf| leaf.function == INTERFACE);
    Ok(interface.is_some_and(|leaf| leaf.eax == u32::from_le_bytes(*b"Hv#1")))
}

impl MsrStatePlan {
    /// A plan of these MSRs, sorted as any other.
    #[cfg(test)]
    pub(super) fn of(mut order: Vec<u32>) -> Self {
        order.sort_by_key(|index| (Stage::of(*index), *index));
        Self { order }
    }
}
