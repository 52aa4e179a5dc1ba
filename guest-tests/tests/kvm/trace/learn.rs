//! A profile learnt from one boot, and the boot under it.

use std::path::Path;

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Report, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_filter::{FilterConfig, FilterSpec};

use super::{msr_vmm, said};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for flavour in [Flavour::Cloud, Flavour::Full] {
        for cpus in [1, 2] {
            let name = format!(
                "trace::debian_boots_under_its_learnt_profile_{}_vcpus_{cpus}",
                flavour.name()
            );
            trials.push(Trial::test(name, move || {
                boots_under_its_profile(flavour, cpus)
            }));
        }
    }
    trials
}

/// What Linux says of an MSR access that it was not prepared to see fail.
const UNCHECKED: &str = "unchecked MSR access error";
/// IA32_APIC_BASE and IA32_PAT, which `rdmsr` is to read.
const READ_BY_HAND: [u32; 2] = [0x1b, 0x277];
/// IA32_MISC_ENABLE's neighbour, which nothing reads.
const NOT_LEARNT: u32 = 0xc001_0114;

fn plan() -> Plan {
    let steps = [Step::KernelLog, Step::load_module("msr")];
    Plan::new(
        steps
            .into_iter()
            .chain(READ_BY_HAND.map(|index| Step::read_msr(0, index)))
            .chain([Step::read_msr(0, NOT_LEARNT)]),
    )
}

fn boot(
    flavour: Flavour,
    cpus: u32,
    arguments: &[(&str, &Path)],
    plan: Plan,
) -> Result<Report, Failed> {
    let kernel = assets::kernel_of(Release::Bookworm, flavour)?;
    let mut guest = Guest::with_kernel(&kernel, "", plan)?.option("--cpus", cpus.to_string());
    for (name, value) in arguments {
        guest = guest.option(name, value.as_os_str());
    }
    if arguments.iter().any(|(name, _)| *name == "--trace") {
        guest = guest.argument("--observe");
    }
    let outcome = guest.run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!(
            "{}: {}\n{}",
            outcome.status, outcome.stderr, outcome.console
        )
        .into());
    }
    Ok(outcome.report()?)
}

fn boots_under_its_profile(flavour: Flavour, cpus: u32) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (trace, profile) = (folder.path("trace"), folder.path("profile.toml"));
    let plain = boot(flavour, cpus, &[], plan())?;
    // Without the last step: nothing reads that MSR.
    let mut recorded = plan();
    recorded.steps.pop();
    boot(flavour, cpus, &[("--trace", &trace)], recorded)?;
    let learnt = msr_vmm(&[Path::new("learn"), &trace, Path::new("-o"), &profile])?;
    let words = String::from_utf8_lossy(&learnt.stderr).into_owned();
    if !learnt.status.success() {
        return Err(format!("{}: {words}", learnt.status).into());
    }
    // Nothing of what was recorded is denied.
    said(&[Path::new("learn"), Path::new("--check"), &profile, &trace])?;
    let text = std::fs::read_to_string(&profile)?;
    let config: FilterConfig = toml::from_str(&text)?;
    let ranges = FilterSpec::from(&config).compile()?.ranges().len();
    println!("{}: {ranges} ranges", words.trim());
    assert!(
        text.contains("native_read_msr") || text.contains(" by "),
        "no caller is named: {text}"
    );

    let under = boot(flavour, cpus, &[("--profile", &profile)], plan())?;
    let log = |report: &Report| report.text(0).map(essence).ok_or("no kernel log");
    let (before, after) = (log(&plain)?, log(&under)?);
    if let Some(line) = after.iter().find(|line| line.contains(UNCHECKED)) {
        return Err(line.clone().into());
    }
    let missing: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let more: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    if !missing.is_empty() || !more.is_empty() {
        return Err(format!(
            "the kernel's log without the profile only: {missing:#?}\nunder it only: {more:#?}"
        )
        .into());
    }
    for (number, index) in (2..).zip(READ_BY_HAND) {
        let (value, expected) = (under.value(number), plain.value(number));
        assert!(
            value.is_some() && value == expected,
            "{index:#x}: {value:x?}, {expected:x?}"
        );
    }
    let last = 2 + READ_BY_HAND.len();
    assert!(
        plain.value(last).is_some(),
        "KVM has {NOT_LEARNT:#x}: {:?}",
        plain.answer(last)
    );
    assert!(
        under.faulted(last),
        "{NOT_LEARNT:#x} is denied: {:?}",
        under.answer(last)
    );
    Ok(())
}

/// The lines of a kernel's log without what differs from boot to boot: times, numbers, and the initrd's random seeds.
fn essence(log: &str) -> Vec<String> {
    let lines = log.lines().map(|line| {
        let text = line.split_once("] ").map_or(line, |(_, text)| text);
        let mut out = String::new();
        let mut number = false;
        for c in text.chars() {
            let digit = c.is_ascii_hexdigit() && (number || c.is_ascii_digit())
                || (number && matches!(c, '.' | 'x'));
            if digit && !number {
                out.push('#');
            }
            if !digit {
                out.push(c);
            }
            number = digit;
        }
        out
    });
    lines.filter(|line| !varies(line)).collect()
}

/// Lines that come or stay away by chance, under any filter.
fn varies(line: &str) -> bool {
    [
        "random:",
        "clocksource:",
        "hrtimer:",
        "tsc:",
        "BogoMIPS",
        "sched_clock:",
        "Freeing",
        "initcall",
        "workqueue:",
    ]
    .iter()
    .any(|part| line.contains(part))
}
