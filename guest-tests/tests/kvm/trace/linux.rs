//! Debian's boot, as Linux's own tracepoints in the guest saw it, and as the trace has it.

use guest_tests::guest::{Report, TracedMsr, digest};
use libtest_mimic::{Failed, Trial};
use msr_trace::symbols::Symbols;
use msr_trace::{Header, Kind, Record};

use super::PREFIX;
use super::machine::{Boot, KALLSYMS, MACHINES, Machine, TRACED};

/// The body of a test that each machine has.
type TestOnMachine = fn(&Machine) -> Result<(), Failed>;

pub(super) fn trials() -> Vec<Trial> {
    let tests: [(&str, TestOnMachine); 2] = [
        (
            "what_linux_traces_of_itself_is_in_the_trace_of_observe",
            observed,
        ),
        (
            "what_linux_traces_of_itself_is_in_the_trace_of_trace-kernel",
            seen_by_the_kernel,
        ),
    ];
    let mut trials = Vec::new();
    for machine in &MACHINES {
        for (name, test) in tests {
            let name = format!("{PREFIX}{}::{name}", machine.name());
            trials.push(Trial::test(name, move || test(machine)));
        }
    }
    trials
}

fn observed(machine: &Machine) -> Result<(), Failed> {
    is_in_the_trace(machine, machine.recorded()?)
}

fn seen_by_the_kernel(machine: &Machine) -> Result<(), Failed> {
    is_in_the_trace(machine, machine.under()?)
}

fn is_in_the_trace(machine: &Machine, boot: &Boot) -> Result<(), Failed> {
    let count = boot.records.len() as u64;
    println!(
        "{count} records, {:.1} bytes each",
        boot.bytes as f64 / count as f64
    );
    assert!(
        boot.bytes <= 24 * count,
        "{} bytes for {count} records",
        boot.bytes
    );
    every_access_is_there(&boot.report, &boot.header, &boot.records, machine.cpus)?;
    callers_have_their_names(machine, boot)
}

/// The coverage that the header promises: what it does not say was not seen.
fn promised(header: &Header, access: &TracedMsr) -> bool {
    !header
        .not_seen
        .iter()
        .any(|line| line.msrs.is_none_or(|msrs| msrs.contains(access.index)))
}

/// How many accesses an interrupt makes at most. Linux's tracepoint comes after the instruction, so that an interrupt between the two is
/// traced before the access that it came after; the VMM sees them in their true order.
const INTERRUPT: usize = 8;

fn every_access_is_there(
    report: &Report,
    header: &Header,
    seen: &[Record],
    cpus: u16,
) -> Result<(), Failed> {
    let text = report
        .text(TRACED)
        .ok_or_else(|| format!("{:?}", report.answer(TRACED)))?;
    let linuxs = text
        .lines()
        .map(str::parse)
        .collect::<Result<Vec<TracedMsr>, _>>()?;
    for cpu in 0..cpus {
        let ours: Vec<&Record> = seen.iter().filter(|record| record.vcpu == cpu).collect();
        let mut matched = vec![false; ours.len()];
        let (mut next, mut count, mut interrupted) = (0, 0, 0);
        for access in linuxs
            .iter()
            .filter(|access| access.cpu == cpu && promised(header, access))
        {
            let same = |record: &Record| {
                record.index == access.index
                    && (record.kind == Kind::Write) == access.write
                    && record.fault == access.fault
                    && (record.value == access.value || access.fault)
            };
            let before =
                (next.max(INTERRUPT) - INTERRUPT..next).find(|&at| !matched[at] && same(ours[at]));
            let at = before.or_else(|| (next..ours.len()).find(|&at| same(ours[at])));
            let Some(at) = at else {
                let message = format!(
                    "access {count} of CPU {cpu}, `{access}`, is not in the trace where the one before it is"
                );
                return Err(message.into());
            };
            interrupted += usize::from(before.is_some());
            matched[at] = true;
            next = next.max(at + 1);
            count += 1;
        }
        println!("CPU {cpu}: {interrupted} interrupted");
        // Some of these are no interrupts: an access that Linux does not trace came before the same one that it does.
        assert!(
            interrupted <= 2 + count / 50,
            "{interrupted} of {count} are out of order"
        );
        println!("CPU {cpu}: {count} accesses of Linux's own, all in the trace");
        // A boot makes hundreds; the application processor fewer.
        if count < 20 {
            return Err(
                format!("Linux recorded only {count} accesses on CPU {cpu}: {text}").into(),
            );
        }
    }
    Ok(())
}

fn callers_have_their_names(machine: &Machine, boot: &Boot) -> Result<(), Failed> {
    let seen = &boot.records;
    let image = std::fs::read(machine.kernel()?.image())?;
    let elf = if image.starts_with(b"\x7fELF") {
        image
    } else {
        msr_vmm::boot::unpack(&image)?
    };
    let mut symbols = Symbols::load(&elf)?;
    let lstar = boot.lstar.ok_or("IA32_LSTAR was not seen")?;
    if !symbols.set_lstar(lstar) {
        return Err(format!("{lstar:#x} is not entry_SYSCALL_64").into());
    }
    let slide = symbols.slide();
    let own = digest(
        symbols
            .functions()
            .iter()
            .map(|s| (s.address + slide, &*s.name)),
    );
    assert_eq!(
        boot.report.text(KALLSYMS),
        Some(own.as_str()),
        "/proc/kallsyms and the image's tables"
    );
    let with_rip: Vec<u64> = seen.iter().filter_map(|record| record.rip).collect();
    let named = with_rip
        .iter()
        .filter(|rip| symbols.function_name(**rip).is_some())
        .count();
    println!(
        "{named} of {} addresses are in a function; {own}",
        with_rip.len()
    );
    assert!(
        100 * with_rip.len() >= 99 * seen.len(),
        "{} addresses",
        with_rip.len()
    );
    assert!(
        100 * named >= 99 * with_rip.len(),
        "{named} of {}",
        with_rip.len()
    );
    Ok(())
}
