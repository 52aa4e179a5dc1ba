//! Debian's boot, as Linux's own tracepoints in the guest saw it, and as the trace has it.

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Report, Step, TracedMsr, digest};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_trace::symbols::Symbols;
use msr_trace::{Header, Kind, Record};

use super::{open, records};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (flavour, how) in [
        (Flavour::Cloud, "--trace-kernel"),
        (Flavour::Cloud, "--observe"),
        (Flavour::Full, "--trace-kernel"),
    ] {
        for cpus in [1, 2] {
            let name = format!(
                "trace::what_linux_traces_of_itself_is_in_the_trace_{}_{}_vcpus_{cpus}",
                flavour.name(),
                &how[2..]
            );
            trials.push(Trial::test(name, move || {
                is_in_the_trace(flavour, how, cpus)
            }));
        }
    }
    trials
}

fn is_in_the_trace(flavour: Flavour, how: &str, cpus: u16) -> Result<(), Failed> {
    let kernel = assets::kernel_of(Release::Bookworm, flavour)?;
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let plan = Plan::new([Step::TracedMsrs, Step::KallsymsDigest]);
    let outcome = Guest::with_kernel(&kernel, "", plan)?
        .option("--cpus", cpus.to_string())
        .kernel_parameters("trace_event=msr:read_msr,msr:write_msr trace_buf_size=4M")
        .option("--trace", &path)
        .argument(how)
        .run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!(
            "{}: {}\n{}",
            outcome.status, outcome.stderr, outcome.console
        )
        .into());
    }
    let report = outcome.report()?;
    let mut trace = open(&path)?;
    let header = trace.header().clone();
    let lstar = trace.lstar();
    assert_eq!(trace.total_lost(), 0, "{}", outcome.stderr);
    let seen = records(&mut trace)?;
    // Without the header, whose length is at byte 12 (docs/trace-format.md).
    let file = std::fs::read(&path)?;
    let json = file
        .get(12..16)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let bytes = file.len() as u64 - 20 - u64::from(json);
    println!(
        "{} records, {:.1} bytes each",
        seen.len(),
        bytes as f64 / seen.len() as f64
    );
    assert!(
        bytes <= 24 * seen.len() as u64,
        "{bytes} bytes for {} records",
        seen.len()
    );
    every_access_is_there(&report, &header, &seen, cpus)?;
    callers_have_their_names(&report, &kernel, &seen, lstar)
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
        .text(0)
        .ok_or_else(|| format!("{:?}", report.answer(0)))?;
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

fn callers_have_their_names(
    report: &Report,
    kernel: &guest_tests::kernel::Kernel,
    seen: &[Record],
    lstar: Option<u64>,
) -> Result<(), Failed> {
    let image = std::fs::read(kernel.image())?;
    let elf = if image.starts_with(b"\x7fELF") {
        image
    } else {
        msr_vmm::boot::unpack(&image)?
    };
    let mut symbols = Symbols::load(&elf)?;
    let lstar = lstar.ok_or("IA32_LSTAR was not seen")?;
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
        report.text(1),
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
