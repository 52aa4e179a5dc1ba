//! What `msr-filter` warns of is what Linux says: `LINUX_BOOT` and `LINUX_BOOT_INTEL` are all that a guest needs to reach its
//! first process, and it needs each of them.

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
    let each: [(&str, Test); 3] = [
        ("needs::soak::older", || each_is_needed(OLDER)),
        (
            "needs::soak::debian_does_not_boot_on_amd_without_each",
            || each_is_needed(AMD),
        ),
        (
            "needs::soak::debian_does_not_boot_on_intel_without_each",
            || each_is_needed(INTEL),
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

/// A CPU without what makes some MSRs needless: user space sets its segments' bases by system calls.
const OLDER: Machine = Machine {
    cpu: "[cpu]\nvendor = \"AuthenticAMD\"\nfamily = 25\nmodel = 1\nhypervisor = false\n\
          hide = [\"fsgsbase\"]\n",
    needs: &[LINUX_BOOT],
};

const INTEL: Machine = Machine {
    cpu: "[cpu]\nvendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nhypervisor = false\n",
    needs: &[LINUX_BOOT, LINUX_BOOT_INTEL],
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
            Plan::new([Step::KernelRelease]),
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
    let is_there = outcome.status.code() == Some(0) && outcome.report()?.text(0).is_some();
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

/// Denies one kind of access after another, with all others answered, until a kernel does not boot.
fn each_is_needed(machine: Machine) -> Result<(), Failed> {
    let kernels: Vec<Kernel> = Release::ALL
        .into_iter()
        .map(assets::cloud_kernel)
        .collect::<Result<_, _>>()?;
    for kernel in &kernels {
        let outcome = machine.guest(kernel, "allow", "")?.run()?;
        if outcome.status.code() != Some(0) {
            return Err(format!("with nothing denied: {}", outcome.console).into());
        }
    }
    let mut needless = Vec::new();
    for (index, accesses) in machine.needs() {
        for access in accesses.iter() {
            let mut boot = Vec::new();
            for kernel in &kernels {
                let guest = machine.guest(kernel, "allow", &rule(index, access, "deny"))?;
                let boots = match guest.run() {
                    Ok(outcome) => outcome.status.code() == Some(0) && outcome.report().is_ok(),
                    Err(BootError::NoProgress { .. } | BootError::Hung { .. }) => false,
                    Err(error) => return Err(error.into()),
                };
                let what = if boots { "boots" } else { "does not boot" };
                println!("{} without {index:#x} {access}: {what}", kernel.version());
                boot.push(boots);
            }
            if boot.into_iter().all(|boots| boots) {
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
