//! Guests of random accesses on two vCPUs, in the sandbox, while a client of the control socket asks, pauses, replaces filters and saves.
//!
//! For the first part of the time one guest does it that does not end itself, so that what it makes the VMM keep would be
//! seen to grow; should it come to an end all the same, the next one begins. In the rest, each guest ends itself in the
//! middle of everything, in one of five ways.
//!
//! The VMM must answer every request and end in order. How long answers take is printed, beside how late a thread is on this host
//! that only sleeps and wakes.
//!
//! `HOSTILE_SECONDS=` says how long it takes all together, and `SEED=` which guests they are.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use guest_tests::random::Random;
use guest_tests::settings;
use libtest_mimic::{Failed, Trial};

mod host;
mod life;
mod long;
mod real;
mod times;

use life::{Life, Lived};
use long::Ending;
use times::{Sleeper, Times};

/// In seconds, unless `HOSTILE_SECONDS` says.
const SHORT: u64 = 10;
/// From how many seconds on the client asks once a second, and not ten times.
const LONG: u64 = 120;

/// What is promised of a host that has time: the longest that an answer and a pause take. Printed, not asserted, as a test cannot
/// have a host to itself.
const PROMISED: [(&str, Duration); 2] = [
    ("status", Duration::from_millis(100)),
    ("pause", Duration::from_millis(50)),
];
/// How long a guest may take to end itself, which a host with time needs a second for.
const END_LIMIT: Duration = Duration::from_secs(60);
/// The most lines that a VMM may log of what its guest does; the threat model's table of bounds has what they are.
const LOG_LIMIT: usize = 200;
/// How much larger the VMM may be at the end than at the first look, in KiB. A leak of one byte an access would be more.
const GROWTH: u64 = 2048;

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "storm::a_vmm_outlives_its_guests_and_answers_meanwhile",
        storm,
    )]
}

fn storm() -> Result<(), Failed> {
    let seconds = settings::number("HOSTILE_SECONDS")?.unwrap_or(SHORT);
    let mut seeds = Random::new(settings::seed()?);
    let all = Duration::from_secs(seconds);
    let tick = if seconds < LONG {
        Duration::from_millis(100)
    } else {
        Duration::from_secs(1)
    };
    let begin = Instant::now();
    let host = host::Log::now();
    let sleeper = Sleeper::start();
    let mut summary = Summary::default();
    let endless = begin + all.mul_f64(0.8);
    while Instant::now() < endless {
        let seed = seeds.next();
        summary.add(seed, Life::new(seed, Ending::Never, tick)?.live(endless)?);
    }
    for ending in Ending::ALL.into_iter().cycle() {
        if begin.elapsed() > all {
            break;
        }
        let seed = seeds.next();
        let until = Instant::now() + END_LIMIT;
        let lived = Life::new(seed, ending, Duration::from_millis(20))?.live(until)?;
        if !lived.ended_itself {
            return Err(format!("SEED={seed}: it did not end by {ending:?}").into());
        }
        summary.add(seed, lived);
    }
    print!("{summary}");
    println!("a thread that only sleeps was late: {}", sleeper.late());
    println!("host: {}", host.since()?);
    summary.check()
}

/// What was seen of all guests.
#[derive(Default)]
struct Summary {
    guests: usize,
    /// How they ended, and how many of them.
    ends: BTreeMap<String, usize>,
    times: BTreeMap<&'static str, Times>,
    /// How many answers were late, and how many of these although the VMM's threads did not wait for a CPU for that long.
    late: BTreeMap<&'static str, (usize, usize)>,
    refused: BTreeMap<String, usize>,
    log_lines: usize,
    /// Of the guest that lived longest: how long, and the VMM's memory at first and at last, in KiB.
    longest: (Duration, u64, u64),
    /// Those that were asked for.
    exits: u64,
    msr_exits: u64,
}

impl Summary {
    fn add(&mut self, seed: u64, lived: Lived) {
        self.guests += 1;
        if !lived.exits.is_empty() {
            println!(
                "SEED={seed}: {:?}, then {}; exits of its vCPUs: {:?}",
                lived.lived, lived.end, lived.exits
            );
        }
        // Of faults, not where.
        let end = lived.end.split(", rip").next().unwrap_or_default();
        *self.ends.entry(end.to_owned()).or_default() += 1;
        for (method, took) in lived.times {
            self.times.entry(method).or_default().push(took.time);
            let promised = PROMISED.iter().find(|(promised, _)| *promised == method);
            let late = promised.map_or(Duration::ZERO, |(_, limit)| {
                took.time.saturating_sub(*limit)
            });
            if !late.is_zero() {
                let (all, own) = self.late.entry(method).or_default();
                *all += 1;
                *own += usize::from(took.waited < late);
            }
        }
        for words in lived.refused {
            *self.refused.entry(words).or_default() += 1;
        }
        self.log_lines = self.log_lines.max(lived.log_lines);
        self.exits += lived.exits.iter().sum::<u64>();
        self.msr_exits += lived.msr_exits;
        if lived.lived > self.longest.0 {
            self.longest = (lived.lived, lived.memory.0, lived.memory.1);
        }
    }

    fn check(self) -> Result<(), Failed> {
        for method in ["status", "pause", "filter-set", "snapshot"] {
            if self.times.get(method).is_none_or(Times::is_empty) {
                return Err(format!("no {method} was answered").into());
            }
        }
        if self.log_lines > LOG_LIMIT {
            return Err(format!("a VMM logged {} lines", self.log_lines).into());
        }
        let (_, first, last) = self.longest;
        if last > first + GROWTH {
            return Err(format!("a VMM grew from {first} KiB to {last} KiB").into());
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} guests, {} MSR accesses answered by the VMM, {} exits in all of guests that did not end themselves",
            self.guests, self.msr_exits, self.exits
        )?;
        for (end, count) in &self.ends {
            writeln!(f, "  {count} ended: {end}")?;
        }
        for (method, times) in &self.times {
            writeln!(f, "{method}: {times}")?;
        }
        for (method, limit) in PROMISED {
            let (late, own) = self.late.get(method).copied().unwrap_or_default();
            writeln!(
                f,
                "{method}: {late} beyond the {limit:?} that are promised, {own} of them not for want of a CPU"
            )?;
        }
        for (words, count) in &self.refused {
            writeln!(f, "  {count} refused: {words}")?;
        }
        let (lived, first, last) = self.longest;
        writeln!(
            f,
            "at most {} lines of log; the VMM that lived longest, {lived:?}: {first} KiB resident at first, {last} KiB at last",
            self.log_lines
        )
    }
}
