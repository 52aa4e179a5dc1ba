//! Every system call of a VMM's life fails once, in each way that it can: nothing hangs, panics or is left behind, and the
//! VMM goes on as if nothing had been, or says in words what failed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use guest_tests::failures::Point;
use libtest_mimic::{Failed, Trial};

mod scenario;
mod verdict;

use scenario::{ALL, Scenario, attempt};
use verdict::Verdict;

/// How many failures of a scenario are tried where not all are.
const SAMPLE: usize = 60;

/// How many calls of KVM_RUN are tried.
const MOST: usize = 40;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for scenario in ALL {
        let name = scenario.name;
        let sampled = move || fail_each(scenario, Some(SAMPLE));
        trials.push(Trial::test(format!("failures::{name}::sample"), sampled));
        let all = move || fail_each(scenario, None);
        let all = Trial::test(format!("failures::{name}::all"), all);
        trials.push(all.with_ignored_flag(true));
    }
    trials
}

/// The points of a scenario that are tried: all, or as many as `sample` spread evenly.
fn points(scenario: &Scenario, sample: Option<usize>) -> Result<Vec<Point>, Failed> {
    let ran = attempt(scenario, None)?;
    if let Verdict::Fault(what) = ran.verdict {
        return Err(format!("without a failure: {what}\n{}", ran.stderr).into());
    }
    // How often a guest that waits leaves KVM_RUN is another number each time.
    let mut points = ran.points;
    points.retain(|point| point.number < MOST || !point.call.is_kvm_run());
    println!(
        "{}: {} system calls after main, which can fail in {} ways",
        scenario.name,
        ran.calls,
        points.len()
    );
    if let Some(sample) = sample {
        let step = points.len().div_ceil(sample).max(1);
        points = points.into_iter().step_by(step).collect();
    }
    // `POINT=KVM_RUN` tries what has that in its name.
    if let Ok(only) = std::env::var("POINT") {
        points.retain(|point| named(point).contains(&only));
    }
    Ok(points)
}

fn named(point: &Point) -> String {
    format!("{} {} {}", point.call, point.number, point.fault)
}

/// What came of the points so far.
#[derive(Default)]
struct Outcomes {
    went_on: usize,
    told: BTreeMap<String, usize>,
    not_reached: usize,
    faults: Vec<String>,
}

fn fail_each(scenario: &'static Scenario, sample: Option<usize>) -> Result<(), Failed> {
    let points = Mutex::new(points(scenario, sample)?.into_iter());
    let outcomes = Mutex::<Outcomes>::default();
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);
    let next = || points.lock().expect("no holder panics").next();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    while let Some(point) = next() {
                        let ran = attempt(scenario, Some(&point));
                        let ran = ran.map_err(|error| format!("{}: {error:?}", named(&point)))?;
                        let mut outcomes = outcomes.lock().expect("no holder panics");
                        match ran.verdict {
                            _ if !ran.failed => outcomes.not_reached += 1,
                            Verdict::WentOn => outcomes.went_on += 1,
                            Verdict::Told(words) => *outcomes.told.entry(words).or_default() += 1,
                            Verdict::Fault(what) => outcomes.faults.push(format!(
                                "{}: {what}\n    {}",
                                named(&point),
                                ran.stderr.trim_end().replace('\n', "\n    ")
                            )),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    let outcomes = outcomes.into_inner().expect("no holder panics");
    let told: usize = outcomes.told.values().sum();
    println!(
        "{}: {} went on, {told} were told, {} came otherwise, {} are faults",
        scenario.name,
        outcomes.went_on,
        outcomes.not_reached,
        outcomes.faults.len()
    );
    if std::env::var_os("VERBOSE").is_some() {
        for (words, count) in &outcomes.told {
            println!("{count:6} {words}");
        }
    }
    if outcomes.faults.is_empty() {
        Ok(())
    } else {
        Err(outcomes.faults.join("\n").into())
    }
}
