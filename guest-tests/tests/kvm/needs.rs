//! What `msr-filter` warns of is what Linux says: `LINUX_BOOT` and `LINUX_BOOT_INTEL` are all that a guest needs to reach its
//! first process, and it needs each of them.

use std::time::Duration;

use guest_tests::assets;
use guest_tests::guest::{BootError, Guest, Plan, Step};
use guest_tests::kernel::{Kernel, Release};
use libtest_mimic::{Failed, Trial};
use msr_filter::{Access, LINUX_BOOT, LINUX_BOOT_INTEL};

use crate::{Test, TestOnKernel, on_all_kernels};

/// What the names of this module's tests start with: they boot the kernels of all releases.
pub(crate) const PREFIX: &str = "needs::";

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let suffices: [(&str, TestOnKernel); 2] = [
        ("debian_boots_on_amd_with_nothing_more", |kernel| {
            suffices(kernel, AMD)
        }),
        ("debian_boots_on_intel_with_nothing_more", |kernel| {
            suffices(kernel, INTEL)
        }),
    ];
    let each: [(&str, Test); 2] = [
        (
            "needs::soak::debian_does_not_boot_on_amd_without_each",
            || each_is_needed(&[AMD, AMD_WITHOUT_FSGSBASE]),
        ),
        (
            "needs::soak::debian_does_not_boot_on_intel_without_each",
            || each_is_needed(&[INTEL, INTEL_WITHOUT_FSGSBASE]),
        ),
    ];
    let each = each
        .into_iter()
        .map(|(name, test)| Trial::test(name, test).with_ignored_flag(true));
    on_all_kernels("needs", &suffices)
        .into_iter()
        .chain(each)
        .collect()
}

/// A CPU on bare metal, and what Linux needs there.
#[derive(Clone, Copy)]
struct Machine {
    cpu: &'static str,
    needs: &'static [&'static [(u32, Access)]],
}

const AMD: Machine = Machine {
    cpu: "[cpu]\nvendor = \"AuthenticAMD\"\nfamily = 25\nmodel = 1\nhypervisor = false\n",
    needs: &[LINUX_BOOT],
};

/// User space sets its segments' bases by system calls there, and these by MSRs.
const AMD_WITHOUT_FSGSBASE: Machine = Machine {
    cpu: "[cpu]\nvendor = \"AuthenticAMD\"\nfamily = 25\nmodel = 1\nhypervisor = false\nhide = [\"fsgsbase\"]\n",
    ..AMD
};

const INTEL: Machine = Machine {
    cpu: "[cpu]\nvendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nhypervisor = false\n",
    needs: &[LINUX_BOOT, LINUX_BOOT_INTEL],
};

const INTEL_WITHOUT_FSGSBASE: Machine = Machine {
    cpu: "[cpu]\nvendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nhypervisor = false\nhide = [\"fsgsbase\"]\n",
    ..INTEL
};

impl Machine {
    fn needs(self) -> impl Iterator<Item = (u32, Access)> {
        self.needs.iter().copied().flatten().copied()
    }

    /// A guest of this machine with these rules; an access that they deny is a fault.
    fn guest(self, kernel: &Kernel, default: &str, rules: &str) -> Result<Guest, Failed> {
        let config = format!("{}[msr.filter]\ndefault = \"{default}\"\n{rules}", self.cpu);
        Ok(Guest::with_kernel(
            kernel,
            &config,
            Plan::new([Step::Sleep { milliseconds: 100 }, Step::KernelRelease]),
        )?)
    }
}

fn rule(index: u32, access: Access, verdict: &str) -> String {
    format!(
        "[[msr.filter.rule]]\nmsrs = [\"{index:#x}\"]\naccess = \"{access}\"\nverdict = \"{verdict}\"\n"
    )
}

fn suffices(kernel: &Kernel, machine: Machine) -> Result<(), Failed> {
    let rules: String = machine
        .needs()
        .map(|(index, access)| rule(index, access, "allow"))
        .collect();
    let outcome = machine.guest(kernel, "deny", &rules)?.run()?;
    let is_there = outcome.status.code() == Some(0) && outcome.report()?.text(1).is_some();
    if !is_there {
        let (status, stderr) = (outcome.status, &outcome.stderr);
        return Err(format!("{status}\n{}\n{stderr}", outcome.console).into());
    }
    // A warning would say that Linux cannot boot.
    if outcome.stderr.contains("boots without") {
        return Err(outcome.stderr.into());
    }
    Ok(())
}

/// IA32_FMASK: without it a guest lives until an interrupt comes at a system call's first instructions. Guests that may touch nothing
/// but what they need met it in three boots of four.
const BY_CHANCE: u32 = 0xc000_0084;

/// Many times as long as these guests take. A timer that never comes is no hang that anybody sees from outside.
const LIMIT: Duration = Duration::from_secs(60);

/// Denies one kind of access after another, with all others answered, until a kernel does not boot on one of the machines, which
/// need the same.
fn each_is_needed(machines: &[Machine]) -> Result<(), Failed> {
    let kernels: Vec<Kernel> = Release::ALL
        .into_iter()
        .map(assets::cloud_kernel)
        .collect::<Result<_, _>>()?;
    let boots = |machine: Machine, kernel: &Kernel, rules: &str| -> Result<bool, Failed> {
        match machine.guest(kernel, "allow", rules)?.limit(LIMIT).run() {
            Ok(outcome) => Ok(outcome.status.code() == Some(0) && outcome.report().is_ok()),
            Err(BootError::NoProgress { .. } | BootError::Hung { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    let places: Vec<(Machine, &Kernel)> = machines
        .iter()
        .flat_map(|machine| kernels.iter().map(move |kernel| (*machine, kernel)))
        .collect();
    for (machine, kernel) in &places {
        if !boots(*machine, kernel, "")? {
            let (cpu, version) = (machine.cpu, kernel.version());
            return Err(format!("{version} does not boot with nothing denied on\n{cpu}").into());
        }
    }
    let mut needless = Vec::new();
    let needs = machines.iter().take(1).flat_map(|machine| machine.needs());
    for (index, accesses) in needs.filter(|(index, _)| *index != BY_CHANCE) {
        for access in accesses.iter() {
            let denied = rule(index, access, "deny");
            let mut boots_all = true;
            for (machine, kernel) in &places {
                if !boots(*machine, kernel, &denied)? {
                    println!(
                        "without {index:#x} {access} {} does not boot",
                        kernel.version()
                    );
                    boots_all = false;
                    break;
                }
            }
            if boots_all {
                needless.push(format!("{index:#x} {access}"));
            }
        }
    }
    if needless.is_empty() {
        Ok(())
    } else {
        Err(format!("Linux boots without {}", needless.join(", ")).into())
    }
}
