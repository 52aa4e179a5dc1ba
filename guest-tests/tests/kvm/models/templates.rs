//! Firecracker CPU templates, dumps and fingerprints, imported and booted: what a template gives is what the guest finds.
//!
//! What is expected is read from the template itself, not from what the importer made of it. An MSR must read as given, unless
//! Linux writes it at boot, `run` said that KVM does not take it, or KVM lets no guest read it. A write must do what it does in a guest without the
//! template's MSRs, which is KVM's own rule. A bit of CPUID must be as given, unless it is this machine's own or `run` said that
//! KVM does not offer it.
//!
//! The templates of this project's own are in `tests/templates`, one of each shape. `make soak FIRECRACKER_TEMPLATES=DIRECTORY`
//! does the same with every JSON file of a directory, and prints a table.

use std::fs;
use std::ops::RangeInclusive;

use guest_tests::assets;
use guest_tests::guest::{Answer, Guest, Outcome, Plan, Report, Step};
use libtest_mimic::Failed;
use msr_vmm::models::import::firecracker;
use serde_json::Value;

/// The committed templates, by name.
const OWN: [(&str, &str); 3] = [
    ("custom", include_str!("../../templates/custom.json")),
    ("dump", include_str!("../../templates/dump.json")),
    (
        "fingerprint",
        include_str!("../../templates/fingerprint.json"),
    ),
];

pub(super) fn of_each_shape() -> Result<(), Failed> {
    for (name, text) in OWN {
        println!("{name}: {}", boot(text)?);
    }
    Ok(())
}

pub(super) fn of_a_folder() -> Result<(), Failed> {
    let Some(folder) = assets::templates() else {
        println!("FIRECRACKER_TEMPLATES names no directory: the committed templates");
        return of_each_shape();
    };
    let mut failures = Vec::new();
    let mut files: Vec<_> = fs::read_dir(&folder)?.flatten().map(|e| e.path()).collect();
    files.sort();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match boot(&fs::read_to_string(&file)?) {
            Ok(row) => println!("{name}: {row}"),
            Err(error) => {
                println!("{name}: FAILED");
                failures.push(format!("{name}: {}", error.message().unwrap_or_default()));
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n").into())
    }
}

/// Bits of an MSR or of a register of CPUID, as a template gives them.
#[derive(Clone, Copy, Debug)]
struct Bits {
    mask: u64,
    value: u64,
}

impl Bits {
    /// From a bitmap: `0b`, and 0, 1 or x for each bit, the highest first.
    fn parse(bitmap: &str) -> Self {
        let mut bits = Self { mask: 0, value: 0 };
        for digit in bitmap
            .trim_start_matches("0b")
            .chars()
            .filter(|c| *c != '_')
        {
            bits.mask = bits.mask << 1 | u64::from(digit != 'x');
            bits.value = bits.value << 1 | u64::from(digit == '1');
        }
        bits
    }
}

/// What a template gives.
struct Given {
    msrs: Vec<(u32, Bits)>,
    /// By leaf and subleaf: the bits of EAX, EBX, ECX and EDX.
    cpuid: Vec<(u32, u32, [Bits; 4])>,
}

fn number(value: &Value) -> Result<u32, Failed> {
    let text = value.as_str().ok_or("a number that is no string")?;
    let digits = text.strip_prefix("0x");
    let parsed = digits.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    parsed.map_err(|error| format!("{text}: {error}").into())
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

impl Given {
    fn parse(text: &str) -> Result<Self, Failed> {
        let file: Value = serde_json::from_str(text)?;
        let template = file.get("guest_cpu_config").unwrap_or(&file);
        let bitmap = |value: &Value| Bits::parse(value["bitmap"].as_str().unwrap_or_default());
        let mut msrs = Vec::new();
        for msr in list(template, "msr_modifiers") {
            msrs.push((number(&msr["addr"])?, bitmap(msr)));
        }
        let mut cpuid = Vec::new();
        for leaf in list(template, "cpuid_modifiers") {
            let mut registers = [Bits { mask: 0, value: 0 }; 4];
            for register in list(leaf, "modifiers") {
                let names = ["eax", "ebx", "ecx", "edx"];
                let name = register["register"].as_str().unwrap_or_default();
                let place = names
                    .iter()
                    .position(|n| *n == name)
                    .ok_or("no such register")?;
                registers[place] = bitmap(register);
            }
            cpuid.push((number(&leaf["leaf"])?, number(&leaf["subleaf"])?, registers));
        }
        Ok(Self { msrs, cpuid })
    }
}

/// What Linux, or KVM for Linux, writes at boot, or what runs by itself: the time, the APIC, memory types, entry points, segment bases,
/// machine checks, mitigations, KVM's and Hyper-V's own.
const OF_LINUX: [RangeInclusive<u32>; 17] = [
    0x10..=0x12,
    0x1b..=0x1b,
    0x3b..=0x3b,
    0x48..=0x49,
    0x140..=0x140,
    0x174..=0x17b,
    0x1a0..=0x1a0,
    0x1c4..=0x1c5,
    0x1d9..=0x1d9,
    0x200..=0x2ff,
    0x400..=0x4ff,
    0x6e0..=0x6e0,
    0xda0..=0xda0,
    0x4000_0000..=0x4b56_4dff,
    0xc000_0080..=0xc000_0104,
    0xc001_0015..=0xc001_0015,
    0xc001_1029..=0xc001_1029,
];

/// Bits of CPUID that are the machine's own, whatever a template gives: who the CPU is called by, topology, the TSC, the layout of the
/// XSAVE area, what KVM and Linux switch at run time, and what a hypervisor is called by.
fn of_the_machine(leaf: u32, subleaf: u32, register: usize) -> u64 {
    const ALL: u64 = u32::MAX as u64;
    match (leaf, subleaf, register) {
        (0x0 | 0x8000_0000, _, 1..) | (0x8000_0001, _, 0) => ALL,
        (0x1, _, 1) => 0xffff_0000,
        (0x1, _, 2) => 1 << 24 | 1 << 27 | 1 << 31,
        (0x1, _, 3) => 1 << 28,
        (0x4, _, 0) => 0xffff_c000,
        (0x7, 0, 2) => 1 << 4,
        (0xb | 0x1f | 0x8000_001e | 0x8000_0026 | 0x15 | 0x16, ..) => ALL,
        (0xd, 0, 1 | 2) | (0xd, 1, 1) | (0xd, 2.., _) => ALL,
        (0x8000_0001, _, 2) => 1 << 1,
        (0x8000_0008, _, 2) => 0xf0ff,
        (0x8000_001d, _, 0) => 0x03ff_c000,
        (0x4000_0000..=0x4fff_ffff, ..) => ALL,
        _ => 0,
    }
}

fn of_linux(index: u32) -> bool {
    OF_LINUX.iter().any(|range| range.contains(&index))
}

fn run(config: &str, steps: Vec<Step>) -> Result<(Outcome, Report), Failed> {
    let outcome = Guest::new(config, Plan::new(steps))?.run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!(
            "{}\n{}\n{}",
            outcome.status, outcome.stderr, outcome.console
        )
        .into());
    }
    let report = outcome.report()?;
    Ok((outcome, report))
}

/// What a write did: the answer, and whether it changed what is read.
fn written(report: &Report, at: usize) -> (&Answer, bool) {
    let answer = |step: usize| &report.steps()[step].1;
    (answer(at + 1), answer(at) != answer(at + 2))
}

/// Boots a guest of a template and one without its MSRs, and compares them with what the template gives. Returns a row of the table.
fn boot(text: &str) -> Result<String, Failed> {
    let given = Given::parse(text)?;
    let mut model = firecracker::import(text)?.model;
    // A summary is a model's; this is to be a configuration.
    model.summary.clear();
    let config = |model: &_| -> Result<String, Failed> {
        Ok(format!("{}\n[vm]\nmemory = 256\n", toml::to_string(model)?))
    };
    let with = config(&model)?;
    model.msr.initial.clear();
    model.msr.devices.clear();
    let without = config(&model)?;

    let mut steps = vec![Step::load_module("msr")];
    for (index, bits) in &given.msrs {
        let other = bits.value ^ (bits.mask & bits.mask.wrapping_neg()).max(1);
        // Linux's own are left alone.
        let write = if of_linux(*index) {
            Step::Uptime
        } else {
            Step::write_msr(0, *index, other)
        };
        steps.extend([Step::read_msr(0, *index), write, Step::read_msr(0, *index)]);
    }
    let leaves = given.cpuid.iter();
    steps.extend(leaves.map(|&(leaf, subleaf, _)| Step::Cpuid {
        cpu: 0,
        leaf,
        subleaf,
    }));
    let (outcome, report) = run(&with, steps.clone())?;
    let (_, control) = run(&without, steps)?;

    let (mut held, mut linux, mut hidden, mut refused) = (0, 0, 0, Vec::new());
    let mut wrong = Vec::new();
    for (number, (index, bits)) in given.msrs.iter().enumerate() {
        let at = 1 + 3 * number;
        let told = outcome.stderr.contains(&format!("{index:#x}"));
        match &report.steps()[at].1 {
            _ if of_linux(*index) => {
                linux += 1;
                continue;
            }
            Answer::Value(value) if value & bits.mask == bits.value => held += 1,
            _ if told => refused.push(format!("{index:#x}")),
            // Such as IA32_SMBASE, which KVM keeps for the host and gives to guests in system management mode alone.
            Answer::Errno(libc::EIO) if control.faulted(at) => hidden += 1,
            answer => wrong.push(format!("MSR {index:#x} is {answer:x?}, given {bits:x?}")),
        }
        let in_kvm = matches!(control.steps()[at].1, Answer::Value(_));
        if in_kvm && written(&report, at) != written(&control, at) {
            let (one, other) = (written(&report, at), written(&control, at));
            wrong.push(format!(
                "a write of MSR {index:#x}: {one:?}, in KVM {other:?}"
            ));
        }
    }
    let first = 1 + 3 * given.msrs.len();
    let (mut bits_held, mut own, mut not_offered) = (0, 0, 0);
    for (number, (leaf, subleaf, registers)) in given.cpuid.iter().enumerate() {
        let Answer::Cpuid(found) = report.steps()[first + number].1 else {
            return Err(format!("no CPUID {leaf:#x}.{subleaf:#x}").into());
        };
        for (place, (bits, found)) in registers.iter().zip(found).enumerate() {
            let machine = of_the_machine(*leaf, *subleaf, place);
            let differ = (u64::from(found) ^ bits.value) & bits.mask & !machine;
            own += (bits.mask & machine).count_ones();
            bits_held += (bits.mask & !machine & !differ).count_ones();
            not_offered += (differ & bits.value).count_ones();
            let more = differ & !bits.value;
            if more != 0 {
                wrong.push(format!(
                    "CPUID {leaf:#x}.{subleaf:#x}, register {place}: {more:#x} are shown"
                ));
            }
        }
    }
    if not_offered > 0 && !outcome.stderr.contains("does not offer") {
        wrong.push(format!(
            "{not_offered} bits of CPUID are missing, and nobody said so"
        ));
    }
    if wrong.is_empty() {
        let refused = if refused.is_empty() {
            "none".to_owned()
        } else {
            refused.join(" ")
        };
        Ok(format!(
            "MSRs: {held} as given, {linux} written by Linux, {hidden} that no guest may read, not taken by KVM: {refused}; CPUID: {bits_held} bits as given, \
             {own} the machine's own, {not_offered} not offered by KVM"
        ))
    } else {
        Err(format!("{}\nrun said\n{}", wrong.join("\n"), outcome.stderr).into())
    }
}
