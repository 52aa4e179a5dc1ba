//! Tests that share the boot of a guest: each brings its steps and looks at the answers to them.

use std::sync::OnceLock;

use guest_tests::assets;
use guest_tests::guest::{Answer, Guest, Initrd, Outcome, Plan, Report, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};

use super::PREFIX;

/// A test: its name, what the guest does for it, and what is to be seen of that.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) steps: fn() -> Vec<Step>,
    pub(super) check: fn(&Seen<'_>) -> Result<(), Failed>,
}

/// A guest that is booted once with each release's kernel, when the first of its tests runs, and takes the steps of all of them in order.
pub(super) struct Boot {
    pub(super) kernel: Flavour,
    pub(super) config: &'static str,
    /// Adds files to the initrd.
    pub(super) files: fn(&mut Initrd) -> Result<(), Failed>,
    pub(super) cases: &'static [Case],
    /// By release, in the order of [`Release::ALL`].
    pub(super) seen: Runs,
}

/// What the guests of a boot left behind, one for each release's kernel.
pub(super) struct Runs([OnceLock<Result<(Outcome, Report), String>>; Release::ALL.len()]);

impl Runs {
    /// None has run yet.
    pub(super) const fn new() -> Self {
        Self([const { OnceLock::new() }; Release::ALL.len()])
    }
}

/// What a test sees of the guest.
pub(super) struct Seen<'a> {
    /// The answers to its own steps.
    pub(super) answers: Vec<&'a Answer>,
    /// What `msr-vmm` said.
    pub(super) stderr: &'a str,
    /// Whose kernel it ran.
    pub(super) release: Release,
}

impl Boot {
    /// The boot's tests.
    pub(super) fn trials(&'static self) -> Vec<Trial> {
        let mut trials = Vec::new();
        for (release, seen) in Release::ALL.into_iter().zip(&self.seen.0) {
            for case in self.cases {
                let name = format!("{PREFIX}{release}::{}", case.name);
                trials.push(Trial::test(name, move || self.check(case, release, seen)));
            }
        }
        trials
    }

    fn check(
        &self,
        case: &Case,
        release: Release,
        seen: &OnceLock<Result<(Outcome, Report), String>>,
    ) -> Result<(), Failed> {
        let seen = seen.get_or_init(|| {
            self.run(release)
                .map_err(|error| error.message().unwrap_or_default().to_owned())
        });
        let (outcome, report) = seen
            .as_ref()
            .map_err(|error| Failed::from(error.as_str()))?;
        let before = self
            .cases
            .iter()
            .take_while(|other| other.name != case.name);
        let first = before.map(|other| (other.steps)().len()).sum();
        let count = (case.steps)().len();
        let answers = report.steps()[first..first + count]
            .iter()
            .map(|(_, answer)| answer)
            .collect();
        (case.check)(&Seen {
            answers,
            stderr: &outcome.stderr,
            release,
        })
    }

    fn run(&self, release: Release) -> Result<(Outcome, Report), Failed> {
        let kernel = match self.kernel {
            Flavour::Cloud => assets::cloud_kernel(release)?,
            Flavour::Full => assets::kernel_of(release, Flavour::Full)?,
        };
        let plan = Plan::new(self.cases.iter().flat_map(|case| (case.steps)()));
        let mut initrd = Initrd::new(&plan, &kernel)?;
        (self.files)(&mut initrd)?;
        let outcome = Guest::with_initrd(&kernel, self.config, plan, initrd)?.run()?;
        if outcome.status.code() != Some(0) {
            let Outcome {
                status,
                console,
                stderr,
                ..
            } = &outcome;
            return Err(format!("{status}\nstderr:\n{stderr}\nconsole:\n{console}").into());
        }
        let report = outcome.report()?;
        Ok((outcome, report))
    }
}

impl Seen<'_> {
    /// The value that a step read.
    pub(super) fn value(&self, step: usize) -> Result<u64, Failed> {
        match self.answers[step] {
            Answer::Value(value) => Ok(*value),
            other => Err(format!("step {step}: {other:?} instead of a value").into()),
        }
    }

    /// The text that a step read, or a program printed.
    pub(super) fn text(&self, step: usize) -> Result<String, Failed> {
        match self.answers[step] {
            Answer::Text(text) => Ok(text.clone()),
            Answer::Exited {
                status: 0,
                stdout,
                stderr,
            } => Ok(format!("{stdout}{stderr}")),
            other => Err(format!("step {step}: {other:?} instead of text").into()),
        }
    }

    /// The number that a step read as decimal text.
    pub(super) fn number(&self, step: usize) -> Result<u64, Failed> {
        let text = self.text(step)?;
        let number = text.trim().parse();
        number.map_err(|_| format!("step {step}: {text:?} is no number").into())
    }

    /// The hexadecimal number that a step read as text, with or without `0x`.
    pub(super) fn hex(&self, step: usize) -> Result<u64, Failed> {
        let text = self.text(step)?;
        let digits = text.trim();
        let number = u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16);
        number.map_err(|_| format!("step {step}: {text:?} is no hexadecimal number").into())
    }

    /// Expects that a step was done.
    pub(super) fn done(&self, step: usize) -> Result<(), Failed> {
        expect(&format!("step {step}"), self.answers[step], &Answer::Done)
    }
}

/// Expects one value and no other.
pub(super) fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    expected: T,
) -> Result<(), Failed> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:#x?} instead of {expected:#x?}").into())
    }
}

/// Expects the kernel log to say that microcode was updated early: as `before` says it up to Linux 6.6, and with
/// the two revisions since then (arch/x86/kernel/cpu/microcode/core.c).
pub(super) fn expect_early_update(
    seen: &Seen<'_>,
    log: &str,
    before: &str,
    from: u32,
    to: u32,
) -> Result<(), Failed> {
    match seen.release {
        Release::Bookworm => expect_in(log, before),
        Release::Trixie => {
            expect_in(log, &format!("microcode: Current revision: {to:#010x}"))?;
            expect_in(log, &format!("microcode: Updated early from: {from:#010x}"))
        }
    }
}

/// Expects a text to contain another.
pub(super) fn expect_in(text: &str, part: &str) -> Result<(), Failed> {
    if text.contains(part) {
        Ok(())
    } else {
        Err(format!("no {part:?} in:\n{text}").into())
    }
}

/// Expects a figure within 10 % of another.
pub(super) fn expect_about(what: &str, found: f64, expected: f64) -> Result<(), Failed> {
    println!("{what}: {found:.3}, expected {expected:.3}");
    if (found / expected - 1.0).abs() <= 0.1 {
        Ok(())
    } else {
        Err(format!("{what}: {found:.3} is not within 10 % of {expected:.3}").into())
    }
}

/// Expects a kernel log in which nobody complains of MSRs.
pub(super) fn expect_no_complaint(log: &str) -> Result<(), Failed> {
    let complaint = log
        .lines()
        .find(|line| line.contains("unchecked MSR access error"));
    match complaint {
        None => expect_in(log, "Linux version"),
        Some(line) => Err(format!("{line}\nin\n{log}").into()),
    }
}

/// The power in watts from two readings of energy in joules, and of time in nanoseconds.
pub(super) fn watts(joules: [f64; 2], nanoseconds: [u64; 2]) -> f64 {
    (joules[1] - joules[0]) / ((nanoseconds[1] - nanoseconds[0]) as f64 / 1e9)
}
