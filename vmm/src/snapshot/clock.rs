//! The clock behind kvmclock, in step with the TSC.
//!
//! A guest compares its clocks: Linux marks its TSC unstable when TSC and kvmclock are a few milliseconds apart from one look to the next
//! (kernel/time/clocksource.c). KVM gives and takes the two by calls of their own, and both go on from one call to the next. So the
//! clock that is saved is that of the moment at which the first vCPU's TSC was saved, and the clock that is restored is ahead of it by as much as that TSC
//! is by then.

use kvm_bindings::{Msrs, kvm_clock_data, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};
use msr_bus::VcpuId;

use super::error::{RestoreError, SnapshotError};
use super::vcpu::VcpuState;
use crate::running::RunningVm;

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
/// How often both are looked at, for the look that takes the shortest time.
const LOOKS: usize = 5;
/// TSCs that are further apart, in ns, are not those of one guest: KVM did not take the saved value.
const LONGEST: i64 = 60_000_000_000;

impl RunningVm {
    /// KVM's clock when this state of the first vCPU was saved.
    pub(super) fn save_clock(&self, first: &VcpuState) -> Result<kvm_clock_data, SnapshotError> {
        let (tsc_khz, saved) = (self.save_context().tsc_khz, saved_tsc(first));
        let vm = self.fd().clone();
        let looks = self.on_vcpu(VcpuId(0), move |vcpu| {
            (0..LOOKS)
                .map(|_| {
                    let before = tsc(&vcpu.fd);
                    let clock = vm
                        .get_clock()
                        .map_err(SnapshotError::kvm("KVM_GET_CLOCK"))?;
                    Ok((before, clock, tsc(&vcpu.fd)))
                })
                .collect::<Result<Vec<_>, SnapshotError>>()
        })??;
        let shortest = looks
            .into_iter()
            .min_by_key(|(before, _, after)| after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)));
        let Some((before, mut clock, after)) = shortest else {
            return Ok(kvm_clock_data::default());
        };
        if let (Some(before), Some(after), Some(saved)) = (before, after, saved) {
            let then = before.wrapping_add(after.wrapping_sub(before) / 2);
            clock.clock = clock
                .clock
                .saturating_add_signed(-nanoseconds(saved, then, tsc_khz));
        }
        Ok(clock)
    }
}

/// Has the clock go on from where it was when the state of the first vCPU was saved, whose TSC counts already. Without the flag for
/// it, KVM adds none of the time that has passed since.
pub(super) fn restore(
    vm: &VmFd,
    vcpu: &VcpuFd,
    first: &VcpuState,
    clock: u64,
    tsc_khz: u32,
) -> Result<(), RestoreError> {
    let saved = saved_tsc(first);
    // How long the call takes is known from the one before.
    let mut half_a_call = 0;
    for _ in 0..LOOKS {
        let before = tsc(vcpu);
        let ahead = match (before, saved) {
            (Some(before), Some(saved)) => {
                nanoseconds(saved, before.wrapping_add(half_a_call), tsc_khz)
            }
            _ => 0,
        };
        let data = kvm_clock_data {
            clock: clock.saturating_add_signed(ahead),
            ..Default::default()
        };
        vm.set_clock(&data)
            .map_err(RestoreError::kvm("KVM_SET_CLOCK"))?;
        if let (Some(before), Some(after)) = (before, tsc(vcpu)) {
            half_a_call = after.wrapping_sub(before) / 2;
        }
    }
    Ok(())
}

fn saved_tsc(first: &VcpuState) -> Option<u64> {
    first.msrs.value(IA32_TIME_STAMP_COUNTER)
}

/// The guest's TSC now.
fn tsc(vcpu: &VcpuFd) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: IA32_TIME_STAMP_COUNTER,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    let count = vcpu.get_msrs(&mut msrs).ok()?;
    (count == 1).then(|| msrs.as_slice()[0].data)
}

/// The time from one count of the TSC to another; none where it makes no sense.
fn nanoseconds(from: u64, to: u64, tsc_khz: u32) -> i64 {
    let ticks = i128::from(to.wrapping_sub(from).cast_signed());
    let time = ticks * 1_000_000 / i128::from(tsc_khz.max(1));
    i64::try_from(time)
        .ok()
        .filter(|time| time.abs() <= LONGEST)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_in_both_directions_and_never_absurdly() {
        assert_eq!(nanoseconds(1_000, 3_000, 1_000_000), 2_000);
        assert_eq!(nanoseconds(3_000, 1_000, 2_000_000), -1_000);
        assert_eq!(nanoseconds(u64::MAX, 999, 1_000_000), 1_000);
        assert_eq!(nanoseconds(0, u64::MAX / 2, 1), 0);
        assert_eq!(nanoseconds(0, 1 << 40, 0), 0);
    }
}
