//! The host's `kvm.ignore_msrs`: KVM then answers MSRs that it does not know, reads with 0, and never asks userspace.

use msr_bus::{ExitReason, Fallback, Unclaimed};

/// The kernel's parameter, `Y` or `N` in sysfs, where it can be read.
pub(crate) fn ignore_msrs() -> Option<bool> {
    let value = std::fs::read_to_string("/sys/module/kvm/parameters/ignore_msrs").ok()?;
    match value.trim() {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

/// What of a configuration does not hold on a host whose parameter is `ignore_msrs`.
pub(crate) fn warning(
    ignore_msrs: Option<bool>,
    exits: &[ExitReason],
    unclaimed: Fallback,
) -> Option<&'static str> {
    let asked = exits.contains(&ExitReason::Unknown);
    let faults = !asked || unclaimed.answer(ExitReason::Unknown) == Unclaimed::Fault;
    (ignore_msrs == Some(true) && faults).then_some(
        "the host's kvm.ignore_msrs is on: MSRs that neither KVM knows nor a device claims read as 0 and take writes, \
         where this configuration says #GP; `echo 0 > /sys/module/kvm/parameters/ignore_msrs` ends that",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_that_wants_faults_is_warned() {
        let fault = Fallback::default();
        let ignore = Fallback::uniform(Unclaimed::Ignore);
        let all = ExitReason::ALL;
        let without_unknown = [ExitReason::Filter];
        for (on, exits, unclaimed, warned) in [
            (Some(true), &all[..], fault, true),
            (Some(true), &all[..], ignore, false),
            // KVM would answer #GP itself.
            (Some(true), &without_unknown[..], ignore, true),
            (Some(false), &all[..], fault, false),
            (None, &all[..], fault, false),
        ] {
            assert_eq!(warning(on, exits, unclaimed).is_some(), warned);
        }
    }
}
