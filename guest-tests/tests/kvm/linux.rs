//! Debian's kernel under `msr-vmm`: its own msr driver sees what the devices are configured to answer.

use std::fs;

use guest_tests::guest::{Answer, BootError, End, Folder, Guest, Initrd, Outcome, Plan, Step};
use guest_tests::kernel::Kernel;
use libtest_mimic::{Failed, Trial};

use crate::{TestOnKernel, on_all_kernels};

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, TestOnKernel); 6] = [
        (
            "the_guest_sees_what_the_devices_are_configured_to_answer",
            the_guest_sees_what_the_devices_are_configured_to_answer,
        ),
        (
            "the_statistics_count_exactly_the_guests_accesses",
            the_statistics_are_exact,
        ),
        (
            "unclaimed_msrs_read_as_zero_where_they_are_ignored",
            unclaimed_msrs_are_ignored,
        ),
        (
            "the_elf_inside_a_bzimage_boots_as_the_bzimage_does",
            the_elf_boots,
        ),
        (
            "a_kernel_without_an_initrd_panics_and_reboots_in_order",
            no_initrd,
        ),
        ("a_reboot_ends_with_status_0", a_reboot_ends_with_status_0),
    ];
    on_all_kernels("linux", &tests)
}

const CONFIG: &str = r#"
    [vm]
    memory = 256

    [[msr.device]]
    type = "table"
    [[msr.device.register]]
    msr = "IA32_PLATFORM_ID"
    value = "0x4000000000000"
    [[msr.device.register]]
    msr = "MSR_PLATFORM_INFO"
    value = "0x80000f0f81800"
    write = "ignore"
    [[msr.device.register]]
    msr = "0x1ad"
    value = 0x1f
    write = "store"
    reserved = "0xffffffff00000000"
    ignored = 0xff

    [[msr.device]]
    type = "scratch"
    msr = "0xc0011f00"
    reset = 7
"#;

const SCRATCH: u32 = 0xc001_1f00;
/// No processor has it, and KVM does not know it.
const NOWHERE: u32 = 0x3fff;

fn msr_module() -> Step {
    Step::LoadModule {
        name: "msr".to_owned(),
    }
}

/// The answers to `steps` under the configuration, after the msr driver was loaded.
fn answers(
    kernel: &Kernel,
    config: &str,
    arguments: &[&str],
    steps: impl IntoIterator<Item = Step>,
) -> Result<(Vec<Answer>, Outcome), Failed> {
    let plan = Plan::new([msr_module()].into_iter().chain(steps));
    let mut guest = Guest::with_kernel(kernel, config, plan)?;
    for argument in arguments {
        guest = guest.argument(argument);
    }
    let outcome = guest.run()?;
    expect_status(&outcome, 0)?;
    let report = outcome.report()?;
    if report.answer(0) != Some(&Answer::Done) {
        return Err(format!("msr.ko: {:?}", report.answer(0)).into());
    }
    Ok((
        report.steps()[1..]
            .iter()
            .map(|(_, answer)| answer.clone())
            .collect(),
        outcome,
    ))
}

/// The exit status, and a guest's kernel that calls nothing fatal.
fn expect_status(outcome: &Outcome, expected: i32) -> Result<(), Failed> {
    if let Some(line) = outcome.console.lines().find(|line| line.contains("Fatal")) {
        return Err(format!("the guest's kernel says: {line}").into());
    }
    if outcome.status.code() == Some(expected) {
        return Ok(());
    }
    let Outcome {
        status,
        console,
        stderr,
        ..
    } = outcome;
    Err(format!("{status} instead of {expected}\nstderr:\n{stderr}\nconsole:\n{console}").into())
}

const GP: Answer = Answer::Errno(libc::EIO);

fn the_guest_sees_what_the_devices_are_configured_to_answer(kernel: &Kernel) -> Result<(), Failed> {
    let table = [
        (Step::read_msr(0, 0x17), Answer::Value(0x4_0000_0000_0000)),
        (Step::write_msr(0, 0x17, 1), GP),
        (Step::write_msr(0, 0xce, 1), Answer::Done),
        (Step::read_msr(0, 0xce), Answer::Value(0x8_0000_f0f8_1800)),
        (Step::write_msr(0, 0x1ad, 0x1234_5678), Answer::Done),
        // The low byte keeps its value, whatever is written.
        (Step::read_msr(0, 0x1ad), Answer::Value(0x1234_561f)),
        (Step::write_msr(0, 0x1ad, 1 << 32), GP),
        (Step::read_msr(0, 0x1ad), Answer::Value(0x1234_561f)),
        (Step::read_msr(0, SCRATCH), Answer::Value(7)),
        (Step::write_msr(0, SCRATCH, u64::MAX), Answer::Done),
        (Step::read_msr(0, SCRATCH), Answer::Value(u64::MAX)),
        (Step::read_msr(0, NOWHERE), GP),
        (Step::write_msr(0, NOWHERE, 0), GP),
    ];
    let (answers, _) = answers(
        kernel,
        CONFIG,
        &[],
        table.iter().map(|(step, _)| step.clone()),
    )?;
    for ((step, expected), answer) in table.iter().zip(&answers) {
        if answer != expected {
            return Err(format!("{step:?}: {answer:?} instead of {expected:?}").into());
        }
    }
    Ok(())
}

/// A row of the table that `--msr-stats` prints: index, reads, writes, faults, who answered.
fn statistics(stderr: &str) -> Vec<(u32, [u64; 3], String)> {
    let rows = stderr
        .lines()
        .skip_while(|line| !line.starts_with("index "))
        .skip(1);
    // Below some rows there is a line with the fields of the last value.
    rows.filter_map(|line| {
        let mut words = line.split_whitespace();
        let index = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        let _name = words.next()?;
        let mut count = || words.next()?.parse().ok();
        let counts = [count()?, count()?, count()?];
        Some((index, counts, words.collect::<Vec<_>>().join(" ")))
    })
    .collect()
}

fn the_statistics_are_exact(kernel: &Kernel) -> Result<(), Failed> {
    let steps = [
        Step::read_msr(0, 0x17),
        Step::read_msr(0, 0x17),
        Step::write_msr(0, 0x17, 1),
        Step::write_msr(0, SCRATCH, 1),
        Step::read_msr(0, SCRATCH),
        Step::read_msr(0, NOWHERE),
        Step::write_msr(0, NOWHERE, 1),
        // The kernel answers this one, so it is not counted.
        Step::read_msr(0, 0x1b),
    ];
    let (answers, outcome) = answers(kernel, CONFIG, &["--msr-stats"], steps)?;
    if !matches!(answers[7], Answer::Value(_)) {
        return Err(format!("IA32_APIC_BASE: {:?}", answers[7]).into());
    }
    let all = statistics(&outcome.stderr);
    let ours = |index| {
        let row = all.iter().find(|(i, ..)| *i == index);
        row.map(|(_, counts, by)| (*counts, by.as_str()))
    };
    let expected = [
        (0x17, Some(([2, 1, 1], "table"))),
        (SCRATCH, Some(([1, 1, 0], "scratch"))),
        (NOWHERE, Some(([1, 1, 2], "default (unclaimed)"))),
        (0x1b, None),
        (0x1ad, None),
    ];
    for (index, expected) in expected {
        if ours(index) != expected {
            let stderr = outcome.stderr;
            return Err(format!("{index:#x}: {all:?}\n{stderr}").into());
        }
    }
    Ok(())
}

fn unclaimed_msrs_are_ignored(kernel: &Kernel) -> Result<(), Failed> {
    let config = "msr.unclaimed = { unknown = \"ignore\", filter = \"fault\", invalid = \"fault\" }\n\
        [[msr.filter.rule]]\nmsrs = [\"IA32_MTRRCAP\"]\naccess = \"r\"\nverdict = \"deny\"\n";
    let steps = [
        Step::write_msr(0, NOWHERE, 5),
        Step::read_msr(0, NOWHERE),
        // Denied by the filter, which is another reason and another answer.
        Step::read_msr(0, 0xfe),
    ];
    let (answers, _) = answers(kernel, config, &[], steps)?;
    if answers == [Answer::Done, Answer::Value(0), GP] {
        Ok(())
    } else {
        Err(format!("{answers:?}").into())
    }
}

fn the_elf_boots(kernel: &Kernel) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let elf = folder.file(
        "vmlinux",
        msr_vmm::boot::unpack(&fs::read(kernel.bzimage())?)?,
    )?;
    let plan = Plan::new([Step::KernelRelease]);
    let bzimage = kernel.with_image(kernel.bzimage());
    let by_bzimage = Guest::with_kernel(&bzimage, "", plan.clone())?.run()?;
    expect_status(&by_bzimage, 0)?;
    // The last --kernel wins.
    let initrd = Initrd::new(&plan, kernel)?;
    let by_elf = Guest::with_initrd(&kernel.with_image(elf), "", plan, initrd)?.run()?;
    expect_status(&by_elf, 0)?;
    let releases = [by_bzimage.report()?, by_elf.report()?].map(|r| r.text(0).map(str::to_owned));
    match &releases {
        [Some(a), Some(b)] if a == b => Ok(()),
        _ => Err(format!("{releases:?}").into()),
    }
}

fn no_initrd(kernel: &Kernel) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let elf = folder.file(
        "vmlinux",
        msr_vmm::boot::unpack(&fs::read(kernel.bzimage())?)?,
    )?;
    for image in [kernel.bzimage(), elf] {
        let mut guest = Guest::without_initrd(&image)?.start()?;
        guest.wait_for("VFS: Unable to mount root fs")?;
        // panic=-1 reboots at once, and a reset is an orderly end.
        expect_status(&guest.wait()?, 0)?;
    }
    Ok(())
}

fn a_reboot_ends_with_status_0(kernel: &Kernel) -> Result<(), Failed> {
    let outcome = Guest::with_kernel(
        kernel,
        "",
        Plan::new([Step::KernelRelease]).ending(End::Reboot),
    )?
    .run()?;
    outcome.report().map_err(|error| BootError::NotSeen {
        expected: "the plan's end".to_owned(),
        console: format!("{error}\n{}", outcome.console),
    })?;
    expect_status(&outcome, 0)
}
