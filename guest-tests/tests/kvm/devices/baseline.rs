//! What a model's guest can read, as committed in `tests/baselines`.

use std::collections::BTreeMap;

use guest_tests::guest::{Answer, Step};
use guest_tests::kernel::Release;
use libtest_mimic::Failed;
use msr_filter::MsrRange;

/// The windows in which processors and hypervisors have their MSRs. KVM filters no access to the x2APIC's in the first of
/// them, and gives #GP itself while the APIC is not in that mode, as in these guests.
const WINDOWS: [(u32, u32); 5] = [
    (0, 0x1fff),
    (0x4000_0000, 0x4000_01ff),
    (0x4b56_4d00, 0x4b56_4dff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

/// Steps that read every index of the windows, on CPU 0.
pub(super) fn scan() -> Vec<Step> {
    WINDOWS
        .into_iter()
        .map(|(first, last)| Step::ScanMsrs {
            cpu: 0,
            first,
            last,
        })
        .collect()
}

/// What a baseline says of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It reads as this.
    Constant(u64),
    /// It can be read; what it holds changes.
    Volatile,
    /// It can be read where the host's CPU has the feature.
    Host,
}

/// Reads a baseline: lines of an MSR or a range, a value, `volatile` or `host`, and the Linux version (6.1, 6.12) where the
/// line holds for no other; it then comes before a line for all. `FIRST-LAST/STEP` is every STEP-th MSR of a range. `#`
/// begins a comment.
fn parse(release: Release, text: &str) -> Result<BTreeMap<u32, Expected>, Failed> {
    let mut baseline = BTreeMap::new();
    let mut of_release = BTreeMap::new();
    for line in text.lines() {
        let entry = line.split('#').next().unwrap_or_default();
        let mut words = entry.split_whitespace();
        let (Some(msrs), Some(value), version, None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            if entry.trim().is_empty() {
                continue;
            }
            return Err(format!("not a line of a baseline: {line}").into());
        };
        let expected = match (value, value.strip_prefix("0x")) {
            ("volatile", _) => Expected::Volatile,
            ("host", _) => Expected::Host,
            (_, Some(digits)) => Expected::Constant(u64::from_str_radix(digits, 16)?),
            _ => return Err(format!("no value, `volatile` or `host`: {line}").into()),
        };
        let (range, step) = match msrs.split_once('/') {
            Some((range, step)) => (range, step.parse()?),
            None => (msrs, 1),
        };
        let range: MsrRange = range.parse()?;
        let into = match version {
            None => &mut baseline,
            Some(version) if version == release.linux() => &mut of_release,
            Some(version) if Release::ALL.iter().any(|r| r.linux() == version) => continue,
            Some(version) => return Err(format!("no Linux version {version}: {line}").into()),
        };
        for index in (range.first()..=range.last()).step_by(step) {
            if into.insert(index, expected).is_some() {
                return Err(format!("{index:#x} is in the baseline twice").into());
            }
        }
    }
    baseline.extend(of_release);
    Ok(baseline)
}

/// Compares the answers to [`scan`] with a baseline.
pub(super) fn compare(release: Release, answers: &[&Answer], baseline: &str) -> Result<(), Failed> {
    let baseline = parse(release, baseline)?;
    let mut found = BTreeMap::new();
    for answer in answers {
        match answer {
            Answer::Values(values) => found.extend(values.iter().copied()),
            other => return Err(format!("{other:?} instead of a scan").into()),
        }
    }
    let mut differences = Vec::new();
    for (index, value) in &found {
        match baseline.get(index) {
            None => differences.push(format!("{index:#x} reads as {value:#x}, and is not there")),
            Some(Expected::Constant(expected)) if expected != value => {
                differences.push(format!("{index:#x} reads as {value:#x}, not {expected:#x}"));
            }
            Some(_) => {}
        }
    }
    for (index, expected) in &baseline {
        if *expected != Expected::Host && !found.contains_key(index) {
            differences.push(format!("{index:#x} cannot be read"));
        }
    }
    if differences.is_empty() {
        let scanned: u32 = WINDOWS.iter().map(|(first, last)| last - first + 1).sum();
        println!("{scanned} MSRs read, {} readable, as expected", found.len());
        Ok(())
    } else {
        Err(differences.join("\n").into())
    }
}
