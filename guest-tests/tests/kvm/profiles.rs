//! Debian's kernel boots under every profile, and finds all it needs.

use guest_tests::guest::{Answer, Guest, Plan, Step};
use guest_tests::kernel::Kernel;
use libtest_mimic::{Failed, Trial};

use crate::{TestOnKernel, on_all_kernels};

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, TestOnKernel); 5] = [
        ("debian_boots_under_linux_guest", |kernel| {
            boots(kernel, "linux-guest", AS_IT_IS)
        }),
        (
            "debian_boots_under_linux_guest_on_what_looks_like_intel",
            |kernel| boots(kernel, "linux-guest", INTEL),
        ),
        ("debian_boots_under_kvm_pv_only", |kernel| {
            boots(kernel, "kvm-pv-only", AS_IT_IS)
        }),
        ("debian_boots_under_deny_writes", |kernel| {
            boots(kernel, "deny-writes", AS_IT_IS)
        }),
        (
            "debian_boots_with_the_readmes_configurations_without_a_complaint",
            readme,
        ),
    ];
    on_all_kernels("profiles", &tests)
}

const AS_IT_IS: &str = "";
/// An Ice Lake server on bare metal, as far as CPUID goes.
const INTEL: &str =
    "[cpu]\nvendor = \"GenuineIntel\"\nfamily = 6\nmodel = 106\nhypervisor = false\n";

/// What Linux says of an MSR access that it was not prepared to see fail.
const UNCHECKED: &str = "unchecked MSR access error";

/// The base of SMRAM, of which KVM says 0 and no guest needs to know.
const TSEG_ADDR: u32 = 0xc001_0112;

/// What Linux writes to its log when something is not as it should be.
const COMPLAINTS: [&str; 4] = [UNCHECKED, "WARNING:", "Call Trace", "BUG:"];

/// Every configuration that the README shows boots Linux, which complains of nothing that it does not complain of
/// without a configuration: QEMU's emulated processor gives it a reason or two of its own.
fn readme(kernel: &Kernel) -> Result<(), Failed> {
    let blocks = include_str!("../../../README.md")
        .split("```toml\n")
        .skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    if blocks.len() < 2 {
        return Err(format!("{} configurations", blocks.len()).into());
    }
    let usual = complaints(kernel, AS_IT_IS)?;
    for config in blocks {
        for complaint in complaints(kernel, config)? {
            if !usual.contains(&complaint) {
                let usual = usual.join("\n");
                return Err(format!("{complaint}\n{config}\nusual:\n{usual}").into());
            }
        }
    }
    Ok(())
}

/// The complaints in the log of a guest with this configuration, without their times.
fn complaints(kernel: &Kernel, config: &str) -> Result<Vec<String>, Failed> {
    let outcome = Guest::with_kernel(kernel, config, Plan::new([Step::KernelLog]))?.run()?;
    if outcome.status.code() != Some(0) {
        let (status, stderr) = (outcome.status, &outcome.stderr);
        return Err(format!("{status}\n{config}\n{}\n{stderr}", outcome.console).into());
    }
    let report = outcome.report()?;
    let log = report.text(0).ok_or("no kernel log")?;
    if !log.contains("Linux version") {
        return Err("not a kernel's log".into());
    }
    let lines = log.lines();
    let complaints = lines.filter(|line| COMPLAINTS.iter().any(|text| line.contains(text)));
    let without_time = |line: &str| {
        line.split_once("] ")
            .map_or(line, |(_, text)| text)
            .to_owned()
    };
    Ok(complaints.map(without_time).collect())
}

fn boots(kernel: &Kernel, profile: &str, config: &str) -> Result<(), Failed> {
    let msr = Step::LoadModule {
        name: "msr".to_owned(),
    };
    // The profile is in force: it denies what KVM would answer.
    let (read, write) = (
        Step::read_msr(0, TSEG_ADDR),
        Step::write_msr(0, TSEG_ADDR, 0),
    );
    let plan = Plan::new([Step::KernelLog, msr, read, write]);
    let outcome = Guest::with_kernel(kernel, config, plan)?
        .option("--profile", profile)
        .run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!(
            "{}\n{}\n{}",
            outcome.status, outcome.stderr, outcome.console
        )
        .into());
    }
    let report = outcome.report()?;
    let log = report.text(0).ok_or("no kernel log")?;
    if !log.contains("Linux version") {
        return Err(format!("not a kernel's log: {log}").into());
    }
    if let Some(line) = log.lines().find(|line| line.contains(UNCHECKED)) {
        return Err(format!("{line}\n{log}").into());
    }
    let reads_too = profile != "deny-writes";
    let denied = report.faulted(2) == reads_too && report.faulted(3);
    if report.answer(1) != Some(&Answer::Done) || !denied {
        return Err(format!("{:?}", report.steps()).into());
    }
    Ok(())
}
