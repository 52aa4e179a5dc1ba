//! `msr-vmm check` says of this KVM what these tests show of it.

use libtest_mimic::Trial;

use super::support::{Outcome, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::probe":
        the_probe_finds_that_micro_guests_run,
        where_linux_guests_boot_the_probe_says_so,
        the_probe_finds_what_no_filter_reaches,
    )
}

fn the_probe_finds_that_micro_guests_run() -> Outcome {
    let report = msr_kvm::check::probe();
    assert!(report.can_run_micro_guests(), "{report}");
    Ok(())
}

/// The outer VM is chosen for having a KVM that boots Linux; elsewhere it is the probe that decides.
fn where_linux_guests_boot_the_probe_says_so() -> Outcome {
    if guest_tests::backend::in_outer_vm() {
        let report = msr_kvm::check::probe();
        assert!(report.can_boot_linux(), "{report}");
    }
    Ok(())
}

/// Linux's KVM on AMD, which the outer VM has, has no fast path but for the x2APIC (arch/x86/kvm/svm/svm.c sets no hypervisor timer).
/// Elsewhere the probe must come to an end.
fn the_probe_finds_what_no_filter_reaches() -> Outcome {
    let kvm = msr_kvm::check::probe().kvm?;
    println!("{:?}", kvm.unfiltered);
    if guest_tests::backend::in_outer_vm() {
        assert_eq!(kvm.unfiltered, Ok(Vec::new()));
    }
    kvm.unfiltered.map_err(|error| error.to_string())?;
    Ok(())
}
