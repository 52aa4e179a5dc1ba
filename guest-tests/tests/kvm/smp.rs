//! Debian's kernel on several vCPUs: it finds them all, arranged as configured, and each has its own MSRs.

use std::fmt::Write;

use guest_tests::guest::{Answer, End, Guest, Plan, Report, Step};
use guest_tests::kernel::Kernel;
use libtest_mimic::{Failed, Trial};

use crate::{TestOnKernel, on_all_kernels};

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, TestOnKernel); 4] = [
        ("one_cpu_is_alone", |kernel| {
            boot(kernel, &Shape::flat(1), End::PowerOff)
        }),
        (
            "two_flat_cpus_are_cores_of_a_package_and_have_5_gib_above_and_below_the_hole",
            |kernel| {
                boot(
                    kernel,
                    &Shape {
                        memory: "5G",
                        ..Shape::flat(2)
                    },
                    End::Reboot,
                )
            },
        ),
        (
            "eight_cpus_are_two_packages_of_two_cores_of_two_threads",
            |kernel| {
                boot(
                    kernel,
                    &Shape {
                        packages: 2,
                        cores: 2,
                        threads: 2,
                        memory: "512",
                    },
                    End::PowerOff,
                )
            },
        ),
        ("soak::thirty_two_cpus_boot", |kernel| {
            boot(kernel, &Shape::flat(32), End::PowerOff)
        }),
    ];
    on_all_kernels("smp", &tests)
}

/// A machine's CPUs and its memory.
struct Shape {
    packages: u32,
    cores: u32,
    threads: u32,
    memory: &'static str,
}

/// A scratch register for each scope, and the value that CPU 0 writes to it.
const SCOPES: [(&str, u32, u64); 3] = [
    ("thread", 0xc001_1f00, 0x1000),
    ("core", 0xc001_1f01, 0x2000),
    ("package", 0xc001_1f02, 0x3000),
];

impl Shape {
    fn flat(cores: u32) -> Self {
        Self {
            packages: 1,
            cores,
            threads: 1,
            memory: "512",
        }
    }

    fn cpus(&self) -> u32 {
        self.packages * self.cores * self.threads
    }

    fn core(&self, cpu: u32) -> u32 {
        cpu / self.threads
    }

    fn package(&self, cpu: u32) -> u32 {
        self.core(cpu) / self.cores
    }

    fn config(&self) -> String {
        let Self {
            packages,
            cores,
            threads,
            memory,
        } = self;
        let cpus = self.cpus();
        let mut text = format!(
            "[vm]\ncpus = {cpus}\nmemory = \"{memory}\"\n\
             topology = {{ packages = {packages}, cores = {cores}, threads = {threads} }}\n"
        );
        for (scope, msr, _) in SCOPES {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[msr.device]]\ntype = \"scratch\"\nname = \"{scope}\"\nmsr = {msr}\nscope = \"{scope}\"\n"
            );
        }
        text
    }

    /// The members of a CPU's group, as Linux lists them: groups are of consecutive CPUs.
    fn list(&self, group: impl Fn(u32) -> u32, cpu: u32) -> String {
        let members: Vec<u32> = (0..self.cpus())
            .filter(|other| group(*other) == group(cpu))
            .collect();
        match members.as_slice() {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => unreachable!("a CPU is of its own group"),
        }
    }
}

/// A file of sysfs for each CPU, and what it holds.
fn topology(shape: &Shape) -> Vec<(String, String)> {
    let file = |cpu: u32, name: &str| format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}");
    (0..shape.cpus())
        .flat_map(|cpu| {
            [
                (
                    file(cpu, "physical_package_id"),
                    shape.package(cpu).to_string(),
                ),
                (
                    file(cpu, "core_id"),
                    (shape.core(cpu) % shape.cores).to_string(),
                ),
                (
                    file(cpu, "core_cpus_list"),
                    shape.list(|c| shape.core(c), cpu),
                ),
                (
                    file(cpu, "package_cpus_list"),
                    shape.list(|c| shape.package(c), cpu),
                ),
            ]
        })
        .collect()
}

/// The numbers after `key` in /proc/cpuinfo, one for each CPU.
fn cpuinfo(text: &str, key: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == key)
        .filter_map(|(_, value)| value.trim().parse().ok())
        .collect()
}

fn boot(kernel: &Kernel, shape: &Shape, end: End) -> Result<(), Failed> {
    let mut steps = vec![
        Step::LoadModule {
            name: "msr".to_owned(),
        },
        Step::read_file("/sys/devices/system/cpu/online"),
        Step::read_file("/proc/cpuinfo"),
        Step::read_file("/proc/meminfo"),
    ];
    // Each scope is written one CPU after the other, where they share a register, and all at once where not.
    for (scope, index, first) in SCOPES {
        if scope == "thread" {
            steps.push(Step::WriteMsrOnAll { index, first });
        } else {
            steps.extend(
                (0..shape.cpus()).map(|cpu| Step::write_msr(cpu, index, first + u64::from(cpu))),
            );
        }
        steps.push(Step::ReadMsrOnAll { index, times: 20 });
    }
    let files = topology(shape);
    steps.extend(files.iter().map(|(path, _)| Step::read_file(path)));
    let outcome =
        Guest::with_kernel(kernel, &shape.config(), Plan::new(steps).ending(end))?.run()?;
    if outcome.status.code() != Some(0) {
        let (console, stderr) = (&outcome.console, &outcome.stderr);
        return Err(format!("{}\n{stderr}\n{console}", outcome.status).into());
    }
    let report = outcome.report()?;
    expect_cpus(shape, &report)?;
    expect_memory(shape, &report)?;
    expect_msrs(shape, &report)?;
    for (path, expected) in files {
        let read = |step: &Step| *step == Step::read_file(&path);
        let answer = report
            .steps()
            .iter()
            .find(|(step, _)| read(step))
            .map(|(_, answer)| answer);
        match answer {
            Some(Answer::Text(text)) if text.trim() == expected => {}
            other => return Err(format!("{path}: {other:?} instead of {expected}").into()),
        }
    }
    Ok(())
}

fn expect_cpus(shape: &Shape, report: &Report) -> Result<(), Failed> {
    let online = report.text(1).unwrap_or_default().trim();
    let expected = shape.list(|_| 0, 0);
    if online != expected {
        return Err(format!("online: {online} instead of {expected}").into());
    }
    let text = report.text(2).unwrap_or_default();
    let cpus = || 0..shape.cpus();
    let all = |value: u32| cpus().map(|_| value).collect();
    let mut table: Vec<(&str, Vec<u32>)> = vec![("processor", cpus().collect())];
    // Linux says nothing of the arrangement of a CPU that is alone.
    if shape.cpus() > 1 {
        table.extend([
            (
                "physical id",
                cpus().map(|cpu| shape.package(cpu)).collect(),
            ),
            (
                "core id",
                cpus().map(|cpu| shape.core(cpu) % shape.cores).collect(),
            ),
            ("siblings", all(shape.cores * shape.threads)),
            ("cpu cores", all(shape.cores)),
        ]);
    }
    for (key, expected) in table {
        let actual = cpuinfo(text, key);
        if actual != expected {
            return Err(format!("{key}: {actual:?} instead of {expected:?}").into());
        }
    }
    Ok(())
}

/// All of the memory but what the kernel takes for itself: with 512 MiB, some 50.
fn expect_memory(shape: &Shape, report: &Report) -> Result<(), Failed> {
    let text = report.text(3).unwrap_or_default();
    let total = cpuinfo(&text.replace(" kB", ""), "MemTotal");
    let size: msr_vmm::config::MemorySize = shape.memory.parse()?;
    let kib = u32::try_from(size.0 >> 10)?;
    match total.as_slice() {
        [total] if (kib / 5 * 4..kib).contains(total) => Ok(()),
        _ => Err(format!("MemTotal: {total:?} KiB of {kib}").into()),
    }
}

fn expect_msrs(shape: &Shape, report: &Report) -> Result<(), Failed> {
    let reads = report
        .steps()
        .iter()
        .filter_map(|(step, answer)| match step {
            Step::ReadMsrOnAll { .. } => Some(answer),
            _ => None,
        });
    for ((scope, _, first), answer) in SCOPES.iter().zip(reads) {
        // The last CPU that wrote to the same register.
        let writer = |cpu: u32| match *scope {
            "thread" => cpu,
            "core" => (shape.core(cpu) + 1) * shape.threads - 1,
            _ => (shape.package(cpu) + 1) * shape.cores * shape.threads - 1,
        };
        let expected = (0..shape.cpus())
            .map(|cpu| (cpu, first + u64::from(writer(cpu))))
            .collect();
        if *answer != Answer::Values(expected) {
            return Err(format!("{scope}: {answer:x?}").into());
        }
    }
    // A write that failed would leave the reset value, but might have failed after another's.
    match report.steps().iter().find(|(step, answer)| {
        matches!(step, Step::WriteMsr { .. } | Step::WriteMsrOnAll { .. })
            && *answer != Answer::Done
    }) {
        None => Ok(()),
        Some(failed) => Err(format!("{failed:?}").into()),
    }
}
