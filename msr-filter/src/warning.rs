//! Rules that don't do what their author may think.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    Access, FilterSpec, MsrRange, Verdict, names,
    resolve::{Cell, resolve},
};

/// Something in a [`FilterSpec`] that is legal, and probably not meant. Rules are numbered by their
/// position in [`FilterSpec::rules`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Rules before this one decide all that it speaks of.
    Shadowed {
        /// The rule without effect.
        rule: usize,
        /// The rule that decides its first MSR.
        by: usize,
    },
    /// A rule lies in the x2APIC's indices, partly at least, and KVM asks no filter about those. A rule
    /// that spans them all and more is not told of: it is not about them.
    X2Apic {
        /// The rule.
        rule: usize,
        /// The indices for which it has no effect.
        ignored: MsrRange,
    },
    /// A rule denies writes of `IA32_TSC_DEADLINE`, which some kernels take on a fast path that asks no filter. See
    /// [`TSC_DEADLINE`].
    FastPath {
        /// The rule.
        rule: usize,
    },
    /// A rule for no kind of access, which never matches.
    NoAccess {
        /// The rule.
        rule: usize,
    },
    /// What is denied only because no rule speaks of it, and what no Linux guest gets far without. See
    /// [`LINUX_BOOT`].
    LinuxNeeds {
        /// The MSRs and the kinds of access that no rule decides.
        missing: Vec<(u32, Access)>,
    },
    /// The same for a guest whose CPUID says GenuineIntel. See [`LINUX_BOOT_INTEL`].
    LinuxNeedsOnIntel {
        /// The MSRs and the kinds of access that no rule decides.
        missing: Vec<(u32, Access)>,
    },
}

/// `IA32_TSC_DEADLINE`. KVM on Intel answers a guest's WRMSR of it right after the VM exit where it can set the
/// hardware's preemption timer (arch/x86/kvm/x86.c, `handle_fastpath_set_msr_irqoff`), in Linux 6.1 without a look at
/// the filter. The other MSRs on that path are the x2APIC's.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// What [`Warning::FastPath`] says of the rule.
pub const FAST_PATH: &str = "writes of IA32_TSC_DEADLINE (0x6e0) are denied, and KVM on Intel may take them all the same: \
    the fast path of Linux 6.1, for one, asks no filter. Hide the timer from a guest that must not have it \
    (CPUID.1:ECX[24])";

/// The accesses without which a 64-bit Linux guest hangs, crashes or loses its clock before it
/// runs the first process, whoever makes its CPU and whoever answers them (arch/x86/kernel: head_64.S, cpu/common.c, process_64.c,
/// apic/apic.c, cpu/mce/core.c). What merely costs the guest a feature or a log line is not here.
///
/// The list is what boots of Debian's 6.1 and 6.12 say on AMD's and Intel's CPUs, with and without FSGSBASE: with nothing else
/// they boot, and each one denied on its own keeps one of them from it (guest-tests, `needs::`).
///
/// The kernel's own accesses on behalf of the guest, such as SYSCALL reading `IA32_LSTAR`, are not
/// filtered; the guest's RDMSR and WRMSR that set them up are.
pub const LINUX_BOOT: &[(u32, Access)] = &[
    // The machine-check handler panics where the CPU refuses it, in Linux 6.12 and not yet in 6.1.
    (0x17a, Access::READ),
    // The timer, where CPUID offers it.
    (0x6e0, Access::WRITE),
    // Set in the first instructions, for NX, and on every other CPU.
    (0xc000_0080, Access::all()),
    // The entry points of SYSCALL.
    (0xc000_0081, Access::WRITE),
    (0xc000_0082, Access::WRITE),
    // Keeps interrupts out until the entry point has its stack: without it, one that comes there is a double fault.
    (0xc000_0084, Access::WRITE),
    // Thread-local storage, where the CPU has no FSGSBASE.
    (0xc000_0100, Access::WRITE),
    // Per-CPU data.
    (0xc000_0101, Access::WRITE),
];

/// What a 64-bit Linux guest needs besides [`LINUX_BOOT`] where CPUID says GenuineIntel. AMD's CPUs do not have the MSR, and Linux
/// does not look for it there.
pub const LINUX_BOOT_INTEL: &[(u32, Access)] = &[
    // verify_cpu looks for a disabled NX bit before there is an IDT.
    (0x1a0, Access::READ),
];

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shadowed { rule, by } => write!(
                f,
                "rule {rule} has no effect: rules before it decide all it speaks of, first rule {by}"
            ),
            Self::X2Apic { rule, ignored } => write!(
                f,
                "rule {rule} has no effect on {ignored}: KVM never filters x2APIC registers"
            ),
            Self::FastPath { rule } => write!(f, "rule {rule}: {FAST_PATH}"),
            Self::NoAccess { rule } => {
                write!(f, "rule {rule} has no effect: it is for no kind of access")
            }
            Self::LinuxNeeds { missing } => {
                f.write_str("denied by default, and no Linux guest boots without:")?;
                list(missing, f)
            }
            Self::LinuxNeedsOnIntel { missing } => {
                f.write_str(
                    "denied by default, and no Linux guest that is shown an Intel CPU boots without:",
                )?;
                list(missing, f)
            }
        }
    }
}

fn list(msrs: &[(u32, Access)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, (index, access)) in msrs.iter().enumerate() {
        f.write_str(if i == 0 { " " } else { ", " })?;
        match names::name(*index) {
            Some(name) => write!(f, "{name} ({index:#x}) {access}")?,
            None => write!(f, "{index:#x} {access}")?,
        }
    }
    Ok(())
}

impl FilterSpec {
    /// What in the rules is probably a mistake, by rising rule. None of it keeps them from compiling.
    pub fn warnings(&self) -> Vec<Warning> {
        let cells = resolve(self);
        let mut decides = alloc::vec![false; self.rules.len()];
        for cell in &cells {
            for access in [Access::READ, Access::WRITE] {
                if let Some(rule) = cell.owner(access) {
                    decides[rule] = true;
                }
            }
        }
        let rules = self.rules.iter().zip(decides).enumerate();
        let mut warnings: Vec<Warning> = rules
            .filter_map(|(number, (rule, decides))| {
                if rule.access.is_empty() {
                    return Some(Warning::NoAccess { rule: number });
                }
                if !decides {
                    let kind = rule.access.iter().next()?;
                    let by = owner(&cells, rule.range.first(), kind)?;
                    return Some(Warning::Shadowed { rule: number, by });
                }
                let ignored = rule.range.intersection(MsrRange::X2APIC)?;
                let about = ignored == rule.range || ignored != MsrRange::X2APIC;
                about.then_some(Warning::X2Apic {
                    rule: number,
                    ignored,
                })
            })
            .collect();
        if let Some(rule) = owner(&cells, TSC_DEADLINE, Access::WRITE)
            && self.rules[rule].verdict == Verdict::Deny
        {
            warnings.push(Warning::FastPath { rule });
        }
        if self.default == Verdict::Deny {
            let missing = missing(LINUX_BOOT, &cells);
            if !missing.is_empty() {
                warnings.push(Warning::LinuxNeeds { missing });
            }
            let missing = self::missing(LINUX_BOOT_INTEL, &cells);
            if !missing.is_empty() {
                warnings.push(Warning::LinuxNeedsOnIntel { missing });
            }
        }
        warnings
    }
}

/// What of `needed` no rule decides.
fn missing(needed: &[(u32, Access)], cells: &[Cell]) -> Vec<(u32, Access)> {
    needed
        .iter()
        .filter_map(|(index, needed)| {
            let left_out = needed.iter().filter(|a| owner(cells, *index, *a).is_none());
            let left_out: Access = left_out.collect();
            (!left_out.is_empty()).then_some((*index, left_out))
        })
        .collect()
}

/// The rule that decides `access` (one kind) to `index`.
fn owner(cells: &[Cell], index: u32, access: Access) -> Option<usize> {
    let cell = cells.partition_point(|cell| cell.first <= index) - 1;
    cells[cell].owner(access)
}

#[cfg(test)]
mod tests {
    use std::{string::ToString, vec, vec::Vec};

    use super::*;
    use crate::Rule;

    fn range(first: u32, last: u32) -> MsrRange {
        MsrRange::new(first, last).unwrap()
    }

    fn deny(range: impl Into<MsrRange>, access: Access) -> Rule {
        Rule::new(range, access, Verdict::Deny)
    }

    #[test]
    fn a_rule_that_earlier_ones_cover_together_is_shadowed() {
        let spec = FilterSpec::new(Verdict::Allow)
            .rule(deny(range(0x10, 0x1f), Access::READ))
            .rule(deny(range(0x18, 0x2f), Access::READ))
            .rule(deny(range(0x12, 0x20), Access::READ))
            .rule(deny(0x12, Access::all()));
        let warnings = spec.warnings();
        assert_eq!(warnings, [Warning::Shadowed { rule: 2, by: 0 }]);
        assert_eq!(
            warnings[0].to_string(),
            "rule 2 has no effect: rules before it decide all it speaks of, first rule 0"
        );
    }

    #[test]
    fn rules_on_x2apic_are_told_unless_it_is_only_swallowed() {
        let spec = FilterSpec::new(Verdict::Allow)
            .rule(deny(0x830, Access::WRITE))
            .rule(deny(range(0x7f0, 0x80f), Access::all()))
            .rule(deny(range(0x700, 0x9ff), Access::all()));
        assert_eq!(
            spec.warnings(),
            [
                Warning::X2Apic {
                    rule: 0,
                    ignored: MsrRange::single(0x830)
                },
                Warning::X2Apic {
                    rule: 1,
                    ignored: range(0x800, 0x80f)
                },
            ]
        );
        assert_eq!(
            spec.warnings()[1].to_string(),
            "rule 1 has no effect on 0x800-0x80f: KVM never filters x2APIC registers"
        );
    }

    #[test]
    fn a_denied_deadline_timer_is_told_because_kvm_may_not_ask() {
        let denied = |rule| FilterSpec::new(Verdict::Allow).rule(rule).warnings();
        let told = [Warning::FastPath { rule: 0 }];
        assert_eq!(denied(deny(0x6e0, Access::WRITE)), told);
        assert_eq!(denied(deny(range(0x600, 0x6ff), Access::all())), told);
        assert_eq!(denied(deny(0x6e0, Access::READ)), []);
        let allowed = Rule::new(0x6e0, Access::all(), Verdict::Allow);
        assert_eq!(denied(allowed), []);
    }

    #[test]
    fn a_rule_for_no_access_never_matches() {
        let spec = FilterSpec::new(Verdict::Allow).rule(deny(0x10, Access::empty()));
        assert_eq!(spec.warnings(), [Warning::NoAccess { rule: 0 }]);
        assert_eq!(
            spec.warnings()[0].to_string(),
            "rule 0 has no effect: it is for no kind of access"
        );
    }

    #[test]
    fn a_deny_default_that_forgets_what_linux_needs_is_told() {
        let nothing = FilterSpec::new(Verdict::Deny);
        assert_eq!(
            nothing.warnings(),
            [
                Warning::LinuxNeeds {
                    missing: LINUX_BOOT.to_vec()
                },
                Warning::LinuxNeedsOnIntel {
                    missing: LINUX_BOOT_INTEL.to_vec()
                }
            ]
        );
        let mut spec = FilterSpec::new(Verdict::Deny);
        for (index, access) in LINUX_BOOT.iter().chain(LINUX_BOOT_INTEL) {
            spec = spec.rule(Rule::new(*index, *access, Verdict::Allow));
        }
        assert_eq!(spec.warnings(), []);
        // An explicit denial is intended.
        spec.rules[0].verdict = Verdict::Deny;
        assert_eq!(spec.warnings(), []);
        // Half of what is needed is missing.
        let at = |rules: &[Rule], index: u32| {
            let rule = rules.iter().position(|rule| rule.range == index.into());
            rule.expect("Linux needs it")
        };
        let efer = at(&spec.rules, 0xc000_0080);
        spec.rules[efer].access = Access::READ;
        let star = at(&spec.rules, 0xc000_0081);
        spec.rules.remove(star);
        let warnings = spec.warnings();
        let missing = vec![(0xc000_0080, Access::WRITE), (0xc000_0081, Access::WRITE)];
        assert_eq!(warnings, [Warning::LinuxNeeds { missing }]);
        assert_eq!(
            warnings[0].to_string(),
            "denied by default, and no Linux guest boots without: IA32_EFER (0xc0000080) w, \
             IA32_STAR (0xc0000081) w"
        );
    }

    #[test]
    fn an_allow_default_without_mistakes_has_no_warnings() {
        let spec = FilterSpec::new(Verdict::Allow).rule(deny(0x10, Access::all()));
        assert_eq!(spec.warnings(), Vec::new());
    }
}
