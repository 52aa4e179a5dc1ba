//! Whether a VMM took a failure as it should.

use std::time::Duration;

use guest_tests::failures::{End, Fault, Object, Point};
use msr_vmm::snapshot::Snapshot;
use syscalls::Sysno;

use super::scenario::{MARK, Scenario, Seen};

/// How long it may take to get over a failure.
const AT_ONCE: Duration = Duration::from_secs(4);

/// What came of a failure.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Everything was done all the same.
    WentOn,
    /// The VMM said what failed; with the numbers left out, so that what is alike is counted together.
    Told(String),
    /// What must not be.
    Fault(String),
}

pub(super) fn of(scenario: &Scenario, point: Option<&Point>, seen: &Seen) -> Verdict {
    match judge(scenario, point, seen) {
        Ok(verdict) => verdict,
        Err(what) => Verdict::Fault(what),
    }
}

fn judge(scenario: &Scenario, point: Option<&Point>, seen: &Seen) -> Result<Verdict, String> {
    let status = match seen.end {
        End::Exited(status) => status,
        End::Killed(signal) => return Err(format!("it was ended by signal {signal}")),
        End::Hung => return Err("it hangs".to_owned()),
    };
    if ["panicked", "fatal runtime error"]
        .iter()
        .any(|words| seen.stderr.contains(words))
    {
        return Err("it panicked".to_owned());
    }
    if seen.took > AT_ONCE {
        return Err(format!("it took {:?}", seen.took));
    }
    // What cannot be removed stays.
    let removal = point.is_some_and(|point| {
        matches!(
            point.call.number,
            Sysno::unlink | Sysno::unlinkat | Sysno::rmdir | Sysno::getdents64
        )
    });
    if !seen.left.is_empty() && !removal {
        return Err(format!("it left {:?}", seen.left));
    }
    snapshot_is_whole_or_not_there(seen)?;
    let wrong = what_is_wrong(scenario, seen, status);
    let Some(wrong) = wrong else {
        return Ok(Verdict::WentOn);
    };
    if point.is_some_and(Point::must_be_retried) {
        return Err(format!("it was not tried again: {wrong}"));
    }
    // With standard error closed, the status is all there is.
    let mute = point.is_some_and(|point| {
        point.call.object == Object::Pipe && matches!(point.fault, Fault::Fails(_))
    });
    if mute && (1..=2).contains(&status) {
        return Ok(Verdict::Told("nothing but the status".to_owned()));
    }
    // What a program says last is why it ends; warnings and answers tell what it went on without.
    let told = match seen.stderr.lines().last() {
        Some(line) if status == scenario.status || status == 1 || status == 2 => line.to_owned(),
        _ => match seen.answers.refused.first() {
            Some((method, words)) if status == scenario.status => format!("{method}: {words}"),
            _ => return Err(format!("status {status}, and nobody is told: {wrong}")),
        },
    };
    Ok(Verdict::Told(without_numbers(&told)))
}

/// The first thing that is not as it is without a failure.
fn what_is_wrong(scenario: &Scenario, seen: &Seen, status: i32) -> Option<String> {
    if status != scenario.status {
        return Some(format!("status {status}"));
    }
    if seen.console != scenario.console {
        return Some(format!("the console has {:?}", seen.console));
    }
    if let Some(refused) = seen.answers.refused.first() {
        return Some(format!("{refused:?}"));
    }
    if scenario.name == "disk" {
        let disk = std::fs::read(&seen.disk).unwrap_or_default();
        if disk.get(512..1024) != Some(&MARK) {
            return Some("the sector was not written".to_owned());
        }
    }
    None
}

fn snapshot_is_whole_or_not_there(seen: &Seen) -> Result<(), String> {
    let read = Snapshot::read(&seen.snapshot);
    let there = seen.snapshot.exists();
    match (there, seen.answers.has("snapshot"), read) {
        (true, _, Err(error)) => Err(format!("half a snapshot: {error}")),
        (false, true, _) => Err("it said that there is a snapshot, and there is none".to_owned()),
        _ => Ok(()),
    }
}

fn without_numbers(text: &str) -> String {
    let text = text.split_once("] ").map_or(text, |(_, rest)| rest);
    let mut short = String::new();
    for character in text.chars() {
        match character {
            '0'..='9' if short.ends_with('#') => {}
            '0'..='9' => short.push('#'),
            other => short.push(other),
        }
    }
    short
}
