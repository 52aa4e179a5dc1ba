//! Debian's programs that read MSRs, run in a guest of each CPU model: they end as they do on the real processor, and
//! neither they nor Linux complain of an MSR.
//!
//! The programs are Debian 13's, in a root file system of their own (`make clients`), under its full kernel, which has the
//! drivers that some of them ask. One boot for each model runs all of them.

use std::env;
use std::sync::OnceLock;

use guest_tests::assets;
use guest_tests::guest::{Answer, Guest, Initrd, Outcome, Plan, Report, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};

mod programs;

use programs::{MODELS, Model, Program};

/// What the names of all these tests begin with: they need the full kernel and the programs.
pub(crate) const PREFIX: &str = "clients::";

/// This module's tests: a program of a model's each, and the log of each model's guest.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for model in &MODELS {
        let module = format!("{PREFIX}{}", model.name.replace('-', "_"));
        for (number, program) in model.programs.iter().enumerate() {
            let name = format!("{module}::{}", program.name);
            trials.push(Trial::test(name, move || {
                judge(program, model.report()?, number)
            }));
        }
        let name = format!("{module}::the_log_has_no_complaint");
        trials.push(Trial::test(name, move || {
            judge_log(model.name, model.report()?, model.programs.len())
        }));
    }
    trials
}

/// Where the programs' root file system is mounted.
const ROOT: &str = "/clients";

/// What programs and drivers look into, and what they write to, as the file system is read-only.
const MOUNTS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/root"),
    ("tmpfs", "/var"),
];

/// What reads MSRs in the kernel, and what the disk needs.
const MODULES: [&str; 9] = [
    "virtio_mmio",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "msr",
    "cpuid",
    "intel_rapl_msr",
    "coretemp",
    "x86_pkg_temp_thermal",
];

/// The steps before those of the programs.
fn set_up() -> Vec<Step> {
    let mut steps: Vec<Step> = MODULES.into_iter().map(Step::load_module).collect();
    steps.push(Step::MountDisk {
        disk: "/dev/vda".to_owned(),
        at: ROOT.to_owned(),
    });
    steps.extend(MOUNTS.map(|(kind, at)| Step::mount(kind, &format!("{ROOT}{at}"))));
    steps
}

/// When a program is taken to hang, in seconds: half of what its guest has.
const LIMIT: &str = "120";

fn run(program: &Program) -> Step {
    let limit = program.seconds.unwrap_or(LIMIT);
    let command = ["timeout", limit]
        .into_iter()
        .chain(program.argv.iter().copied());
    Step::execute_in(ROOT, command)
}

/// What the guest of a model left behind.
type Seen = OnceLock<Result<Report, String>>;

impl Model {
    /// The answers of the model's guest, which is booted when the first test asks.
    fn report(&self) -> Result<&Report, Failed> {
        let seen = self.seen.get_or_init(|| {
            self.boot()
                .map_err(|error| error.message().unwrap_or_default().to_owned())
        });
        seen.as_ref().map_err(|error| Failed::from(error.as_str()))
    }

    fn boot(&self) -> Result<Report, Failed> {
        let kernel = assets::kernel_of(Release::Trixie, Flavour::Full)?;
        let mut steps = set_up();
        for program in self.programs {
            steps.extend([run(program), Step::Uptime]);
        }
        steps.push(Step::KernelLog);
        let plan = Plan::new(steps);
        let initrd = Initrd::new(&plan, &kernel)?;
        // One CPU: powertop and rasdaemon switch tracepoints on, for which Linux patches code that its other CPUs execute meanwhile,
        // and under TCG one of them may be left at the breakpoint of such a patch (src/bin/outer-init.rs).
        let config = format!("model = \"{}\"\n[vm]\nmemory = 768\n", self.name);
        let outcome = Guest::with_initrd(&kernel, &config, plan, initrd)?
            .option("--disk", format!("{},ro", assets::clients()?.display()))
            .run()?;
        if outcome.status.code() != Some(0) {
            let Outcome {
                status,
                console,
                stderr,
                ..
            } = &outcome;
            return Err(format!("{status}\nstderr:\n{stderr}\nconsole:\n{console}").into());
        }
        Ok(outcome.report()?)
    }
}

/// Judges how a program ended and what it said.
fn judge(program: &Program, report: &Report, number: usize) -> Result<(), Failed> {
    let step = set_up().len() + 2 * number;
    let Some(Answer::Exited {
        status,
        stdout,
        stderr,
    }) = report.answer(step)
    else {
        return Err(format!("{:?}", report.answer(step)).into());
    };
    let said = format!("{stdout}{stderr}");
    if env::var_os("VERBOSE").is_some() {
        let ended = report.value(step + 1).unwrap_or_default() / 1_000_000;
        println!(
            "{}: status {status}, {ended} ms after boot\n{said}",
            program.argv.join(" ")
        );
    }
    let wrong = |what: String| Err(format!("{what}; status {status}, and it said\n{said}").into());
    if *status != program.status {
        return wrong(format!("status {} was expected", program.status));
    }
    if let Some(missing) = program.shows.iter().find(|text| !said.contains(**text)) {
        return wrong(format!("it does not say {missing:?}"));
    }
    let complains = |line: &&str| {
        let line = line.to_lowercase();
        COMPLAINTS.iter().any(|text| line.contains(text))
    };
    match said.lines().find(complains) {
        Some(line) => wrong(format!("it complains: {line}")),
        None => Ok(()),
    }
}

/// What programs say of an MSR that they cannot read, in lower case.
const COMPLAINTS: [&str; 6] = [
    "pread",
    "rdmsr",
    "wrmsr",
    "cannot read",
    "cannot set",
    "input/output error",
];

/// What Linux says of an access that failed.
const LOGGED: [&str; 3] = [
    "unchecked MSR access",
    "Failed to access",
    "general protection",
];

fn judge_log(model: &str, report: &Report, programs: usize) -> Result<(), Failed> {
    let log = report
        .text(set_up().len() + 2 * programs)
        .ok_or("no kernel log")?;
    if let Some(line) = log
        .lines()
        .find(|line| LOGGED.iter().any(|text| line.contains(text)))
    {
        return Err(format!("{line}\n{log}").into());
    }
    // The drivers that the programs ask were there: the set-up was done, but for the drivers of
    // Intel's sensors elsewhere.
    let mut steps = report.steps().iter().take(set_up().len());
    let undone = |(step, answer): &&(Step, Answer)| {
        let elsewhere = model == "zen3-server"
            && ["coretemp", "x86_pkg_temp_thermal"]
                .map(Step::load_module)
                .contains(step);
        *answer != Answer::Done && !(elsewhere && *answer == Answer::Errno(libc::ENODEV))
    };
    match steps.find(undone) {
        Some(step) => Err(format!("{step:?}\n{log}").into()),
        None if log.contains("Linux version") => Ok(()),
        None => Err(format!("not a kernel's log: {log}").into()),
    }
}
