//! What this KVM can do: the probe behind `msr-vmm check`.
//!
//! That `/dev/kvm` opens proves little. A KVM without hardware virtualization below it can have every
//! capability and run integer code, and yet stop at the first `int3`. So [`probe`] asks for the
//! capabilities, and then executes what decides on a vCPU: guests of a few instructions in real and long
//! mode, with MSR exits and exceptions, and the three instructions that such a KVM has been seen to fail at. Last it finds out which MSRs
//! this KVM answers itself although a filter denies them.

mod access;
mod capability;
mod error;
mod guest;
mod programs;
mod report;
mod runner;
pub mod tiny_guest;
mod unfiltered;

use std::path::Path;

use kvm_ioctls::Kvm;

pub use access::AccessError;
pub use capability::{Capability, Need};
pub use error::TrialError;
pub use report::{KvmReport, Report, Trial};
pub use unfiltered::Unfiltered;

/// Finds out what `/dev/kvm` can do. It takes some milliseconds where KVM works, and at most some seconds a
/// guest where it hangs.
///
/// It registers a handler that does nothing for the real-time signal `SIGRTMIN + 1`.
///
/// ```no_run
/// let report = msr_kvm::check::probe();
/// print!("{report}");
/// std::process::exit(i32::from(!report.can_boot_linux()));
/// ```
pub fn probe() -> Report {
    probe_at(Path::new("/dev/kvm"))
}

/// As [`probe`], for a KVM at another path.
pub fn probe_at(path: &Path) -> Report {
    Report {
        kvm: access::open(path).map(probe_kvm),
    }
}

fn probe_kvm(kvm: Kvm) -> KvmReport {
    let mut capabilities = capability::capabilities(&kvm);
    // Where not even a VM can be created, the trials below say so.
    if let Ok(vm) = guest::create_vm(&kvm) {
        capabilities.extend(capability::exit_reasons(&vm));
    }
    let outcomes = runner::run_all(kvm);
    let mut trials: Vec<Trial> = programs::PROGRAMS
        .iter()
        .zip(outcomes.guests)
        .map(|(program, outcome)| Trial {
            name: program.name,
            linux_only: program.linux_only,
            outcome,
        })
        .collect();
    trials.push(Trial {
        name: "interrupt controllers and timer in the kernel",
        linux_only: true,
        outcome: outcomes.machine,
    });
    KvmReport {
        capabilities,
        trials,
        unfiltered: outcomes.unfiltered,
        ignore_msrs: crate::ignore_msrs::ignore_msrs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_kvm_gives_the_reason_and_runs_nothing() {
        let report = probe_at(Path::new("/dev/null"));
        assert!(matches!(report.kvm, Err(AccessError::NotKvm { .. })));
        assert_eq!(report.missing_for_linux().len(), 1);
    }
}
