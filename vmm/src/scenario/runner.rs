//! Carries out the steps of scenarios on a running VM.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use msr_bus::VcpuId;
use msr_kvm::scenario::{self, Deed, MAX_SCENARIOS, ScenarioConfig, ScenarioError, StepConfig};

use super::Watches;
use super::schedule::{Due, Schedule, Seen, Watch};
use crate::msr_access::AnsweredBy;
use crate::running::RunningVm;
use crate::trace::{LiveTrace, monotonic};

/// How many steps are done before others get their turn in the event loop.
const TURN: usize = 64;
/// How many steps are logged: a guest may have one taken as often as it likes, by what it writes to its console or by its accesses.
const LOGGED: u32 = 1000;

/// The scenarios of a VM: a subscriber of the event loop that serves it.
pub struct Scenarios<'a> {
    vm: &'a RunningVm,
    schedule: Schedule,
    watches: Watches,
    trace: Rc<RefCell<LiveTrace>>,
    /// What `monotonic` said when the VM started.
    origin: u64,
    /// Whether a step has paused the VM.
    paused: bool,
    lines: Lines,
}

impl Watch for Watches {
    fn console(&mut self, id: u32, text: &str) {
        self.console.look_for(id, text);
    }

    fn accesses(&mut self, id: u32, msr: u32, count: u64) {
        self.accesses.count(id, msr, count);
    }
}

/// The scenarios of a VM that has not started: what their first steps wait for is watched for already.
#[derive(Debug)]
pub struct PreparedScenarios {
    schedule: Schedule,
    watches: Watches,
}

impl PreparedScenarios {
    /// Begins scenarios that have been checked ([`MsrPlanBuilder::config`](msr_kvm::MsrPlanBuilder::config) does), as soon as
    /// the VM that `watches` watch starts.
    pub fn new(mut watches: Watches, scenarios: Vec<ScenarioConfig>) -> Self {
        let mut schedule = Schedule::default();
        for scenario in scenarios {
            schedule.begin(scenario, Duration::ZERO, &mut watches);
        }
        Self { schedule, watches }
    }
}

impl<'a> Scenarios<'a> {
    /// Those of `prepared`, for a VM that has just started. Steps are marked in `trace`.
    pub fn new(
        vm: &'a RunningVm,
        prepared: PreparedScenarios,
        trace: Rc<RefCell<LiveTrace>>,
    ) -> Self {
        let PreparedScenarios { schedule, watches } = prepared;
        // Both are CLOCK_MONOTONIC, so that one reading of each tells how far they are apart for ever.
        let uptime = nanoseconds(vm.uptime());
        Self {
            vm,
            schedule,
            watches,
            trace,
            origin: monotonic() - uptime,
            paused: false,
            lines: Lines(LOGGED),
        }
    }

    /// Begins scenarios, beside those that run, all of them or none.
    ///
    /// # Errors
    ///
    /// [`ScenarioError`].
    pub fn begin(&mut self, scenarios: Vec<ScenarioConfig>) -> Result<(), ScenarioError> {
        scenario::check(&scenarios, self.vm.vcpus(), &self.vm.msr_plan().live)?;
        let running = self.schedule.len();
        if running + scenarios.len() > MAX_SCENARIOS {
            return Err(ScenarioError {
                key: "scenario".into(),
                message: format!(
                    "{running} scenarios run already, and a VM runs at most {MAX_SCENARIOS} at a time"
                ),
            });
        }
        let now = self.vm.uptime();
        for scenario in scenarios {
            self.schedule.begin(scenario, now, &mut self.watches);
        }
        Ok(())
    }

    /// How long it is until the next step is due, if that is known.
    pub fn timeout(&self) -> Option<Duration> {
        let deadline = self.schedule.deadline()?;
        Some(deadline.saturating_sub(self.vm.uptime()))
    }

    /// Does the steps that are due. Belongs after each turn of the event loop.
    pub fn run(&mut self) {
        for _ in 0..TURN {
            let now = self.vm.uptime();
            let Some(due) = self.schedule.take_due(now, &mut self.watches) else {
                return;
            };
            self.take(&due, now);
        }
    }

    /// Does a step. Its mark has the time `now`, from which the next step's wait counts: what the trace has of its effects comes after it.
    fn take(&mut self, due: &Due, now: Duration) {
        let Due { title, step } = due;
        let outcome = match self.carry_out(step) {
            Ok(()) => (log::Level::Info, format!("{title}: {step}")),
            Err(error) => (log::Level::Warn, format!("{title}: {step}: {error}")),
        };
        let (level, text) = outcome;
        if let Some(left) = self.lines.take() {
            log::log!(level, "{text}");
            if left == 0 {
                log::warn!("further steps of scenarios are in the trace alone, if there is one");
            }
        }
        let time = self.origin + nanoseconds(now);
        self.trace.borrow().mark(time, text);
    }

    /// Does what a step names. What fails keeps nothing else from being done.
    fn carry_out(&mut self, step: &StepConfig) -> Result<(), String> {
        let mut outcome = Ok(());
        for (name, keys) in &step.set {
            let mut devices = self.vm.msr_plan().live.iter();
            // It was there when the scenario was checked, and devices stay.
            if let Some(device) = devices.find(|device| device.device() == name)
                && let Err(error) = self.vm.set_device(device, keys)
            {
                outcome = Err(error.to_string());
            }
        }
        if let Some(write) = &step.write {
            let vcpu = VcpuId(write.vcpu);
            match self.vm.write_msr(vcpu, write.msr.first(), write.value.0) {
                Ok(answer) if answer.value.is_none() => {
                    outcome = Err(match answer.by {
                        AnsweredBy::Device(device) => format!("#GP by device `{device}`"),
                        _ => "#GP".into(),
                    });
                }
                Ok(_) => {}
                Err(gone) => outcome = Err(gone.to_string()),
            }
        }
        match step.deed {
            Some(Deed::PowerButton) => self.vm.press_power_button(),
            Some(Deed::Pause) if !self.paused => match self.vm.pause() {
                Ok(()) => self.paused = true,
                Err(stalled) => outcome = Err(stalled.to_string()),
            },
            Some(Deed::Resume) if self.paused => {
                self.vm.resume();
                self.paused = false;
            }
            Some(Deed::Stop) => self.vm.stop(),
            Some(Deed::Pause | Deed::Resume) | None => {}
        }
        outcome
    }
}

/// 584 years fit.
fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

impl MutEventSubscriber for Scenarios<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let event = Events::new_raw(self.watches.event.as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.add(event) {
            log::error!("cannot watch for what scenarios wait for: {error}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Not readable means that an earlier event was already served.
        let _ = self.watches.event.read();
        let now = self.vm.uptime();
        for id in self.watches.console.take_found() {
            self.schedule.seen(id, Seen::Console, now);
        }
        for id in self.watches.accesses.take_found() {
            self.schedule.seen(id, Seen::Accesses, now);
        }
    }
}

/// How many lines there may still be.
struct Lines(u32);

impl Lines {
    /// Takes one, and says how many are left then.
    fn take(&mut self) -> Option<u32> {
        self.0 = self.0.checked_sub(1)?;
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_a_guest_has_taken_all_the_time_fill_no_log() {
        let mut lines = Lines(LOGGED);
        let taken: Vec<u32> = (0..10 * LOGGED).filter_map(|_| lines.take()).collect();
        assert_eq!(taken.len(), LOGGED as usize);
        assert_eq!(taken.last(), Some(&0));
    }
}
