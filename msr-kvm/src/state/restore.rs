//! Restoring by a plan.

use std::collections::HashMap;

use kvm_ioctls::VcpuFd;

use super::deadline;
use super::entries::{self, MsrIoctlError};
use super::plan::MsrStatePlan;
use super::rules::{self, TSC, TSC_DEADLINE};
use super::values::{MsrState, described};

/// Why a vCPU's MSRs are not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreMsrsError {
    /// The state has MSRs that this host's plan does not have. The vCPU is as it was.
    #[error(
        "the state has {}, which {} not planned here: this host's KVM or the CPU model shown to the guest lacks it, \
         and the guest would get #GP or another value",
        list(.0),
        if .0.len() == 1 { "is" } else { "are" }
    )]
    Unplanned(Vec<u32>),
    /// The state has two values for one MSR. The vCPU is as it was.
    #[error("the state has two values for {}", described(*.0))]
    Twice(u32),
    /// The state has a TSC deadline, and the local APIC's timer does not count to one. The vCPU is as it was.
    #[error(
        "the state has a TSC deadline ({0:#x}), and the local APIC's timer is not in TSC-deadline mode: \
         restore the local APIC (KVM_SET_LAPIC) before the MSRs, from the same state"
    )]
    Deadline(u64),
    /// KVM refuses a value. What came before it is restored.
    #[error(
        "KVM refuses {} = {value:#x}{}",
        described(*index),
        current.map_or(String::new(), |value| format!("; the vCPU has {value:#x}, which the guest would see instead"))
    )]
    Refused {
        /// The MSR.
        index: u32,
        /// The value in the state.
        value: u64,
        /// The value that the vCPU has, where KVM gives it.
        current: Option<u64>,
    },
    /// An ioctl on the vCPU failed.
    #[error(transparent)]
    Ioctl(#[from] MsrIoctlError),
}

fn list(indices: &[u32]) -> String {
    let described: Vec<String> = indices.iter().copied().map(described).collect();
    described.join(", ")
}

/// An MSR that KVM refused, and that no guest misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToleratedMsr {
    /// The MSR.
    pub index: u32,
    /// The value in the state.
    pub value: u64,
    /// Why it may be lost.
    pub because: &'static str,
}

/// What is other than the state said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// MSRs that KVM refused although the vCPU has another value.
    pub tolerated: Vec<ToleratedMsr>,
    /// MSRs that this host plans and the state lacks: they have the values of a new vCPU.
    pub defaulted: Vec<u32>,
}

impl MsrStatePlan {
    /// Restores the MSRs of a vCPU that has its CPUID, sregs and local APIC already, and has not run.
    ///
    /// # Errors
    ///
    /// [`RestoreMsrsError`]. The vCPU must not run then.
    pub fn restore(&self, vcpu: &VcpuFd, state: &MsrState) -> Result<Restored, RestoreMsrsError> {
        let (values, defaulted) = self.in_order(state)?;
        let deadline = state.value(TSC_DEADLINE).unwrap_or(0);
        if deadline != 0
            && !vcpu
                .get_lapic()
                .is_ok_and(|lapic| deadline::is_used(&lapic))
        {
            return Err(RestoreMsrsError::Deadline(deadline));
        }
        if let Some(tsc) = state.value(TSC) {
            restore_tsc(vcpu, tsc)?;
        }
        let mut tolerated = Vec::new();
        let mut rest = values.as_slice();
        while let Some(place) = entries::write(vcpu, rest)? {
            let (index, value) = rest[place];
            let current = entries::read(vcpu, &[index])?[0];
            if current != Some(value) {
                let because = rules::tolerated(index)
                    .ok_or(RestoreMsrsError::Refused {
                        index,
                        value,
                        current,
                    })?
                    .because;
                tolerated.push(ToleratedMsr {
                    index,
                    value,
                    because,
                });
            }
            rest = &rest[place + 1..];
        }
        Ok(Restored {
            tolerated,
            defaulted,
        })
    }

    /// Whether a state can be restored by this plan, as far as that can be told without a vCPU.
    ///
    /// # Errors
    ///
    /// [`RestoreMsrsError::Unplanned`] and [`RestoreMsrsError::Twice`].
    pub fn check(&self, state: &MsrState) -> Result<(), RestoreMsrsError> {
        self.in_order(state).map(drop)
    }

    /// The state in the plan's order, without the TSC, and the planned MSRs that it lacks.
    #[expect(clippy::type_complexity, reason = "the pair is taken apart at once")]
    fn in_order(&self, state: &MsrState) -> Result<(Vec<(u32, u64)>, Vec<u32>), RestoreMsrsError> {
        let mut saved: HashMap<u32, u64> = HashMap::with_capacity(state.msrs.len());
        for msr in &state.msrs {
            if saved.insert(msr.index, msr.value).is_some() {
                return Err(RestoreMsrsError::Twice(msr.index));
            }
        }
        let (mut values, mut defaulted) = (Vec::new(), Vec::new());
        for index in self.indices() {
            match saved.remove(index) {
                // It is no register like the others.
                Some(_) if *index == TSC => {}
                Some(value) => values.push((*index, value)),
                None => defaulted.push(*index),
            }
        }
        if saved.is_empty() {
            return Ok((values, defaulted));
        }
        let mut unplanned: Vec<u32> = saved.into_keys().collect();
        unplanned.sort_unstable();
        Err(RestoreMsrsError::Unplanned(unplanned))
    }
}

/// Sets the TSC, so that it does not run backwards.
///
/// KVM takes a write within a second of what the VM's TSC is anyway for an attempt to synchronize vCPUs, and keeps the
/// offset it has (`kvm_synchronize_tsc` in arch/x86/kvm/x86.c). A guest that was saved in its first second would
/// find its TSC where the new VM's is. A write that is far from there is never taken for that, and nor is the next one.
fn restore_tsc(vcpu: &VcpuFd, value: u64) -> Result<(), RestoreMsrsError> {
    const FAR: u64 = 1 << 62;
    let set = |value| match entries::write(vcpu, &[(TSC, value)])? {
        None => Ok(()),
        Some(_) => Err(RestoreMsrsError::Refused {
            index: TSC,
            value,
            current: None,
        }),
    };
    set(value)?;
    if entries::read(vcpu, &[TSC])?[0] < Some(value) {
        set(value ^ FAR)?;
        set(value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::values::SavedMsr;
    use super::*;

    fn state(msrs: &[(u32, u64)]) -> MsrState {
        let msr = |(index, value): &(u32, u64)| SavedMsr {
            index: *index,
            value: *value,
        };
        MsrState {
            msrs: msrs.iter().map(msr).collect(),
        }
    }

    #[test]
    fn a_state_is_put_in_the_plans_order_and_what_it_lacks_is_told() {
        let plan = MsrStatePlan::of(vec![0x6e0, 0x277, 0x10, 0xce]);
        let (values, defaulted) = plan
            .in_order(&state(&[(0x6e0, 4), (0x10, 2), (0xce, 1)]))
            .unwrap();
        assert_eq!(values, [(0xce, 1), (0x6e0, 4)]);
        assert_eq!(defaulted, [0x277]);
    }

    #[test]
    fn every_msr_that_was_not_planned_is_named() {
        let plan = MsrStatePlan::of(vec![0x10]);
        let error = plan
            .check(&state(&[(0x277, 0), (0x10, 0), (0x1234_5678, 0)]))
            .unwrap_err();
        let RestoreMsrsError::Unplanned(indices) = &error else {
            panic!("{error}")
        };
        assert_eq!(indices, &[0x277, 0x1234_5678]);
        let message = error.to_string();
        assert!(
            message.contains("IA32_PAT (0x277), MSR 0x12345678, which are not planned"),
            "{message}"
        );
    }

    #[test]
    fn two_values_for_one_msr_are_refused() {
        let plan = MsrStatePlan::of(vec![0x10]);
        let twice = plan.check(&state(&[(0x10, 1), (0x10, 2)]));
        assert!(matches!(twice, Err(RestoreMsrsError::Twice(0x10))));
    }
}
