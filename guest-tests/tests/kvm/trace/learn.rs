//! A profile learnt from one boot, and the boot under it.

use std::collections::BTreeMap;

use guest_tests::guest::{Answer, Guest, Report, TinyKernel};
use iced_x86::code_asm::ecx;
use libtest_mimic::{Failed, Trial};
use msr_filter::{FilterConfig, FilterSpec};

use super::PREFIX;
use super::machine::{DENIED, LOG, MACHINES, Machine, NOT_LEARNT, RDMSR, READ_BY_HAND, TURBOSTAT};

pub(super) fn trials() -> Vec<Trial> {
    let boots = MACHINES.iter().map(|machine| {
        let name = format!("{PREFIX}{}::boots_under_its_learnt_profile", machine.name());
        Trial::test(name, move || boots_under_its_profile(machine))
    });
    let control = Trial::test(
        "trace::what_the_learnt_profiles_deny_is_an_msr_that_kvm_answers",
        kvm_answers_what_is_not_learnt,
    );
    boots.chain([control]).collect()
}

/// What Linux says of an MSR access that it was not prepared to see fail.
const UNCHECKED: &str = "unchecked MSR access error";

/// Without a profile the MSR can be read: the guest has no handler for #GP, which would end it as a fault.
fn kvm_answers_what_is_not_learnt() -> Result<(), Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.0.mov(ecx, NOT_LEARNT)?;
    kernel.0.rdmsr()?;
    kernel.power_off()?;
    let outcome = Guest::tiny(&mut kernel)?.run()?;
    assert_eq!(outcome.status.code(), Some(0), "{}", outcome.stderr);
    Ok(())
}

fn boots_under_its_profile(machine: &Machine) -> Result<(), Failed> {
    let (recorded, learnt) = (machine.recorded()?, machine.learnt()?);
    let config: FilterConfig = toml::from_str(&learnt.text)?;
    let ranges = FilterSpec::from(&config).compile()?.ranges().len();
    println!("{}: {ranges} ranges", learnt.said);
    assert!(
        learnt.text.contains("native_read_msr") || learnt.text.contains(" by "),
        "no caller is named: {}",
        learnt.text
    );

    let under = machine.under()?;
    let log = |report: &Report| report.text(LOG).map(essence).ok_or("no kernel log");
    let (before, after) = (log(&recorded.report)?, log(&under.report)?);
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
    for (step, index) in (RDMSR..).zip(READ_BY_HAND) {
        let (expected, value) = (
            output(&recorded.report, step)?,
            output(&under.report, step)?,
        );
        assert_eq!(value, expected, "rdmsr {index}");
        assert_eq!(value.trim().len(), 16, "rdmsr {index}: {value}");
    }
    let (expected, columns) = (columns(&recorded.report)?, columns(&under.report)?);
    println!(
        "turbostat: {}",
        columns.keys().cloned().collect::<Vec<_>>().join(" ")
    );
    assert_eq!(
        columns, expected,
        "turbostat's columns, and whether they hold numbers"
    );
    assert!(
        under.report.faulted(DENIED),
        "{NOT_LEARNT:#x} is denied: {:?}",
        under.report.answer(DENIED)
    );
    Ok(())
}

/// What a program wrote to standard output; it must have succeeded.
fn output(report: &Report, step: usize) -> Result<&str, Failed> {
    match report.answer(step) {
        Some(Answer::Exited {
            status: 0, stdout, ..
        }) => Ok(stdout),
        other => Err(format!("{other:?}").into()),
    }
}

/// Turbostat's columns, and whether each holds a number in every line.
fn columns(report: &Report) -> Result<BTreeMap<String, bool>, Failed> {
    let text = output(report, TURBOSTAT)?;
    let mut lines = text.lines().skip_while(|line| !line.contains("TSC_MHz"));
    let heads = lines.next().ok_or_else(|| format!("no table: {text}"))?;
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split('\t').collect()).collect();
    assert!(!rows.is_empty(), "no rows: {text}");
    let number = |cell: &&str| cell.trim().parse::<f64>().is_ok();
    let filled = |at: usize| rows.iter().all(|row| row.get(at).is_some_and(number));
    let heads = heads.split('\t').enumerate();
    Ok(heads
        .map(|(at, head)| (head.trim().to_owned(), filled(at)))
        .collect())
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
        // The host kept the guest from a CPU for a while.
        "sched: DL replenish lagged too much",
    ]
    .iter()
    .any(|part| line.contains(part))
}
