//! What the probe found, and what follows from it.

use std::fmt;

use super::access::AccessError;
use super::capability::{Capability, Need};
use super::error::TrialError;
use super::unfiltered::Unfiltered;

/// What a tiny guest, or the machine for a Linux guest, showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What was tried.
    pub name: &'static str,
    /// Whether it only matters for Linux; otherwise no guest of any kind runs without it.
    pub linux_only: bool,
    /// How it ended.
    pub outcome: Result<(), TrialError>,
}

/// What this host's KVM can do for the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The KVM, as far as it could be opened.
    pub kvm: Result<KvmReport, AccessError>,
}

/// What a KVM that could be opened can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmReport {
    /// Capabilities, and the exit reasons of `KVM_CAP_X86_USER_SPACE_MSR`.
    pub capabilities: Vec<Capability>,
    /// What ran.
    pub trials: Vec<Trial>,
    /// The accesses that this KVM answers itself although a filter denies them, of those that were tried.
    pub unfiltered: Result<Vec<Unfiltered>, TrialError>,
    /// The host's `kvm.ignore_msrs`, where it can be read.
    pub ignore_msrs: Option<bool>,
}

impl Report {
    /// Whether tiny guests run, their MSR accesses answered in userspace: the tests of MSR filter and exits
    /// need no more.
    pub fn can_run_micro_guests(&self) -> bool {
        self.missing_for_micro_guests().is_empty()
    }

    /// Whether a Linux guest can be expected to boot.
    pub fn can_boot_linux(&self) -> bool {
        self.missing_for_linux().is_empty()
    }

    /// What stands in the way of tiny guests, each in words.
    pub fn missing_for_micro_guests(&self) -> Vec<String> {
        self.missing(false)
    }

    /// What stands in the way of Linux guests, each in words.
    pub fn missing_for_linux(&self) -> Vec<String> {
        self.missing(true)
    }

    fn missing(&self, for_linux: bool) -> Vec<String> {
        let kvm = match &self.kvm {
            Ok(kvm) => kvm,
            Err(error) => return vec![error.to_string()],
        };
        let capabilities = kvm
            .capabilities
            .iter()
            .filter(|capability| capability.need == Need::Required && !capability.present)
            .map(|capability| format!("{} is missing: {}", capability.name, capability.purpose));
        let trials = kvm
            .trials
            .iter()
            .filter(|trial| for_linux || !trial.linux_only)
            .filter_map(|trial| {
                let error = trial.outcome.as_ref().err()?;
                Some(format!("{}: {error}", trial.name))
            });
        capabilities.chain(trials).collect()
    }

    /// What works and yet deserves a word.
    pub fn warnings(&self) -> Vec<String> {
        let Ok(kvm) = &self.kvm else {
            return Vec::new();
        };
        let mut warnings: Vec<String> = kvm
            .capabilities
            .iter()
            .filter(|capability| capability.need == Need::Useful && !capability.present)
            .map(|capability| format!("{} is missing: {}", capability.name, capability.purpose))
            .collect();
        match &kvm.unfiltered {
            Ok(accesses) if accesses.is_empty() => {}
            Ok(accesses) => {
                let accesses: Vec<String> = accesses.iter().map(ToString::to_string).collect();
                warnings.push(format!(
                    "this KVM answers itself what a filter denies: {}; rules for these have no effect, no device sees \
                     them, and others may be like them",
                    accesses.join(", ")
                ));
            }
            Err(error) => warnings.push(format!(
                "whether a filter reaches every MSR cannot be told: {error}"
            )),
        }
        if kvm.ignore_msrs == Some(true) {
            warnings.push(
                "kvm.ignore_msrs is on: MSRs that KVM does not know read as 0 before userspace is \
                 asked, so give each MSR that userspace is to answer a device, or \
                 `echo 0 > /sys/module/kvm/parameters/ignore_msrs`"
                    .to_owned(),
            );
        }
        warnings
    }
}

impl fmt::Display for Report {
    /// Writes the whole report in plain words, several lines, the verdict last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kvm {
            Ok(kvm) => kvm.fmt(f)?,
            Err(error) => writeln!(f, "{error}")?,
        }
        for warning in self.warnings() {
            writeln!(f, "warning: {warning}")?;
        }
        verdict(f, "tiny guests", &self.missing_for_micro_guests())?;
        verdict(f, "Linux guests", &self.missing_for_linux())
    }
}

fn verdict(f: &mut fmt::Formatter<'_>, what: &str, missing: &[String]) -> fmt::Result {
    if missing.is_empty() {
        return writeln!(f, "{what}: yes");
    }
    writeln!(f, "{what}: no")?;
    missing
        .iter()
        .try_for_each(|reason| writeln!(f, "  - {reason}"))
}

impl fmt::Display for KvmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "capabilities:")?;
        for Capability {
            name,
            purpose,
            present,
            ..
        } in &self.capabilities
        {
            let word = if *present { "ok" } else { "missing" };
            writeln!(f, "  {word:<8}{name:<31} {purpose}")?;
        }
        writeln!(f, "tried on a vCPU:")?;
        for trial in &self.trials {
            match &trial.outcome {
                Ok(()) => writeln!(f, "  ok      {}", trial.name)?,
                Err(error) => writeln!(f, "  failed  {}: {error}", trial.name)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use msr_filter::Access;

    use super::*;

    fn report(trials: Vec<Trial>, capabilities: Vec<Capability>) -> Report {
        Report {
            kvm: Ok(KvmReport {
                capabilities,
                trials,
                unfiltered: Ok(Vec::new()),
                ignore_msrs: Some(false),
            }),
        }
    }

    fn trial(linux_only: bool, outcome: Result<(), TrialError>) -> Trial {
        Trial {
            name: "something",
            linux_only,
            outcome,
        }
    }

    fn capability(need: Need, present: bool) -> Capability {
        Capability {
            name: "KVM_CAP_X",
            purpose: "this and that",
            need,
            present,
        }
    }

    #[test]
    fn what_only_linux_needs_leaves_micro_guests_possible() {
        let report = report(
            vec![trial(false, Ok(())), trial(true, Err(TrialError::Shutdown))],
            vec![capability(Need::Required, true)],
        );
        assert!(report.can_run_micro_guests());
        assert!(!report.can_boot_linux());
        assert_eq!(
            report.missing_for_linux(),
            ["something: KVM_EXIT_SHUTDOWN: triple fault"]
        );
    }

    #[test]
    fn a_missing_capability_stops_everything_only_where_it_is_required() {
        let required = report(vec![], vec![capability(Need::Required, false)]);
        assert!(!required.can_run_micro_guests() && !required.can_boot_linux());
        assert_eq!(
            required.missing_for_linux(),
            ["KVM_CAP_X is missing: this and that"]
        );

        let useful = report(vec![], vec![capability(Need::Useful, false)]);
        assert!(useful.can_run_micro_guests() && useful.can_boot_linux());
        assert_eq!(useful.warnings(), ["KVM_CAP_X is missing: this and that"]);
    }

    #[test]
    fn what_no_filter_reaches_is_a_warning_that_names_it() {
        let mut report = report(vec![], vec![]);
        let mut warnings = |unfiltered| {
            if let Ok(kvm) = &mut report.kvm {
                kvm.unfiltered = unfiltered;
            }
            report.warnings()
        };
        let found = vec![
            Unfiltered {
                index: 0x6e0,
                access: Access::WRITE,
            },
            Unfiltered {
                index: 0x277,
                access: Access::READ,
            },
        ];
        assert_eq!(
            warnings(Ok(found)),
            [
                "this KVM answers itself what a filter denies: WRMSR of IA32_TSC_DEADLINE (0x6e0), RDMSR of IA32_PAT \
                 (0x277); rules for these have no effect, no device sees them, and others may be like them"
            ]
        );
        assert_eq!(
            warnings(Err(TrialError::Shutdown)),
            ["whether a filter reaches every MSR cannot be told: KVM_EXIT_SHUTDOWN: triple fault"]
        );
        assert!(warnings(Ok(Vec::new())).is_empty());
    }

    #[test]
    fn ignore_msrs_is_a_warning() {
        let mut report = report(vec![], vec![]);
        assert!(report.warnings().is_empty());
        if let Ok(kvm) = &mut report.kvm {
            kvm.ignore_msrs = Some(true);
        }
        assert!(report.warnings()[0].contains("kvm.ignore_msrs"));
        assert!(report.can_boot_linux());
    }

    #[test]
    fn without_kvm_the_way_to_get_it_is_the_whole_report() {
        let report = Report {
            kvm: Err(AccessError::Permission {
                path: "/dev/kvm".into(),
            }),
        };
        assert!(!report.can_run_micro_guests());
        assert!(report.to_string().contains("usermod"));
    }
}
