//! When which step is due. Time is what the caller says it is.

use std::time::Duration;

use msr_bus::SplitMix64;
use msr_kvm::scenario::{ScenarioConfig, StepConfig};

/// What watches for what steps wait for.
pub(super) trait Watch {
    /// Looks for a text on the console.
    fn console(&mut self, id: u32, text: &str);
    /// Counts accesses to an MSR down.
    fn accesses(&mut self, id: u32, msr: u32, count: u64);
}

/// What a step waited for has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Console,
    Accesses,
}

/// A step to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Due {
    /// Which, for people: the scenario, the round where there are several, and the step.
    pub(super) title: String,
    pub(super) step: StepConfig,
}

/// The scenarios that run.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    running: Vec<Running>,
    /// How many there were.
    begun: u32,
}

#[derive(Debug)]
struct Running {
    id: u32,
    config: ScenarioConfig,
    title: String,
    random: SplitMix64,
    /// When the round began.
    began: Duration,
    /// Which round, from 0.
    round: u32,
    /// Which step of it waits, from 0.
    step: usize,
    awaits_console: bool,
    awaits_accesses: bool,
    /// When the step is to be done, once nothing but time is left to wait for.
    due: Option<Duration>,
}

impl Schedule {
    /// How many scenarios run.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Begins a scenario, which has been checked.
    pub(super) fn begin(&mut self, config: ScenarioConfig, now: Duration, watch: &mut impl Watch) {
        let id = self.begun;
        self.begun = self.begun.wrapping_add(1);
        let mut running = Running {
            id,
            title: config.title(id as usize).into_owned(),
            random: SplitMix64(config.seed),
            config,
            began: now,
            round: 0,
            step: 0,
            awaits_console: false,
            awaits_accesses: false,
            due: None,
        };
        running.begin_step(now, watch);
        self.running.push(running);
    }

    /// Takes note of what a scenario waited for.
    pub(super) fn seen(&mut self, id: u32, what: Seen, now: Duration) {
        let running = self.running.iter_mut().find(|running| running.id == id);
        if let Some(running) = running {
            match what {
                Seen::Console => running.awaits_console = false,
                Seen::Accesses => running.awaits_accesses = false,
            }
            running.settle(now);
        }
    }

    /// When the next step is due, if that is known.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.running.iter().filter_map(|running| running.due).min()
    }

    /// Takes the step that is due longest; the one after it begins.
    pub(super) fn take_due(&mut self, now: Duration, watch: &mut impl Watch) -> Option<Due> {
        let due = self.deadline().filter(|due| *due <= now)?;
        let place = self.running.iter().position(|r| r.due == Some(due))?;
        let running = &mut self.running[place];
        let taken = Due {
            title: running.title_of_step(),
            step: running.config.steps[running.step].clone(),
        };
        if !running.advance(now, watch) {
            self.running.remove(place);
        }
        Some(taken)
    }
}

impl Running {
    fn title_of_step(&self) -> String {
        let (title, step) = (&self.title, self.step + 1);
        if self.config.repeat == 1 {
            format!("scenario {title}, step {step}")
        } else {
            format!("scenario {title}, round {}, step {step}", self.round + 1)
        }
    }

    /// Goes on to the next step, or says that there is none.
    fn advance(&mut self, now: Duration, watch: &mut impl Watch) -> bool {
        self.step += 1;
        if self.step == self.config.steps.len() {
            self.step = 0;
            self.round = self.round.saturating_add(1);
            self.began = now;
            if self.config.repeat != 0 && self.round == self.config.repeat {
                return false;
            }
        }
        self.begin_step(now, watch);
        true
    }

    fn begin_step(&mut self, now: Duration, watch: &mut impl Watch) {
        self.due = None;
        let step = &self.config.steps[self.step];
        self.awaits_console = step.after.is_some();
        self.awaits_accesses = step.accesses.is_some();
        if let Some(text) = &step.after {
            watch.console(self.id, text);
        }
        if let Some(accesses) = &step.accesses {
            watch.accesses(self.id, accesses.msr.first(), accesses.count);
        }
        self.settle(now);
    }

    /// Says when the step is due, once only time is left.
    fn settle(&mut self, now: Duration) {
        if self.awaits_console || self.awaits_accesses || self.due.is_some() {
            return;
        }
        let step = &self.config.steps[self.step];
        let at = step.at.map_or(now, |at| now.max(self.began + at.0));
        let wait = step.wait.map_or(Duration::ZERO, |wait| wait.0);
        let jitter = match step.jitter {
            Some(jitter) => jitter.0.mul_f64(self.random.fraction()),
            None => Duration::ZERO,
        };
        self.due = Some(at + wait + jitter);
    }
}

#[cfg(test)]
mod tests;
