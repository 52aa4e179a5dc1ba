//! What is wrong with scenarios, before any of them begins.
//!
//! What a step sets is tried in the order of the steps on devices made for that, with the configuration of the real ones. So
//! a key that counts only after another is set is right in the right order, and a wrong value is refused with the key's own
//! message.

use std::time::Duration;

use msr_bus::{ConfigError, LiveKeys, nearest};
use msr_filter::MsrRange;

use super::{MAX_SCENARIOS, MAX_STEPS, MAX_TEXT, ScenarioConfig, StepConfig};

/// A scenario that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScenarioError {
    /// The key that is wrong, with lists counted from 0: `scenario[0].step[1].after`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Looks whether scenarios can be carried out on a VM of `vcpus` vCPUs with these devices.
///
/// # Errors
///
/// [`ScenarioError`], for the first thing that is wrong.
pub fn check(
    scenarios: &[ScenarioConfig],
    vcpus: u32,
    devices: &[LiveKeys],
) -> Result<(), ScenarioError> {
    if scenarios.len() > MAX_SCENARIOS {
        return Err(ScenarioError {
            key: "scenario".into(),
            message: format!(
                "{} scenarios are too many, a VM runs {MAX_SCENARIOS} at a time",
                scenarios.len()
            ),
        });
    }
    for (number, scenario) in scenarios.iter().enumerate() {
        let within = |error: ScenarioError| ScenarioError {
            key: format!("scenario[{number}]{}", error.key),
            message: format!("scenario {}: {}", scenario.title(number), error.message),
        };
        check_one(scenario, vcpus, devices).map_err(within)?;
    }
    Ok(())
}

fn wrong(key: impl Into<String>, message: impl Into<String>) -> ScenarioError {
    ScenarioError {
        key: key.into(),
        message: message.into(),
    }
}

fn check_one(
    scenario: &ScenarioConfig,
    vcpus: u32,
    devices: &[LiveKeys],
) -> Result<(), ScenarioError> {
    let steps = &scenario.steps;
    if steps.is_empty() || steps.len() > MAX_STEPS {
        let count = steps.len();
        let message =
            format!("it has {count} steps, and can have 1 to {MAX_STEPS}: [[msr.scenario.step]]");
        return Err(wrong("", message));
    }
    if scenario.repeat == 0 && !steps.iter().any(waits) {
        let message = "repeat: none of its steps waits, so that it would do nothing else for ever; give one of them \
                       a `wait` of at least 1ms, or a number of rounds";
        return Err(wrong(".repeat", message));
    }
    let mut stage = Stage::of(devices);
    // A second round may set keys that the first has made wrong.
    let rounds = if scenario.repeat == 1 { 1 } else { 2 };
    for (number, step) in (0..rounds).flat_map(|_| steps.iter().enumerate()) {
        let within = |error: ScenarioError| ScenarioError {
            key: format!(".step[{number}]{}", error.key),
            message: format!("step {}: {}", number + 1, error.message),
        };
        check_step(step, vcpus).map_err(within)?;
        stage.rehearse(step).map_err(within)?;
    }
    Ok(())
}

/// Whether a step cannot be done at once in every round.
fn waits(step: &StepConfig) -> bool {
    let least = Duration::from_millis(1);
    let long = step.wait.is_some_and(|wait| wait.0 >= least);
    long || step.after.is_some() || step.accesses.is_some()
}

fn check_step(step: &StepConfig, vcpus: u32) -> Result<(), ScenarioError> {
    if step.set.is_empty() && step.write.is_none() && step.deed.is_none() {
        return Err(wrong(
            "",
            "it does nothing; it needs `set`, `write` or `do`",
        ));
    }
    if let Some(text) = &step.after
        && (text.is_empty() || text.len() > MAX_TEXT || text.contains(['\n', '\r']))
    {
        let message = format!("after: it is a text of 1 to {MAX_TEXT} bytes within one line");
        return Err(wrong(".after", message));
    }
    if let Some(accesses) = &step.accesses {
        one_msr(accesses.msr)
            .map_err(|message| wrong(".accesses.msr", format!("accesses.msr: {message}")))?;
        if accesses.count == 0 {
            return Err(wrong(
                ".accesses.count",
                "accesses.count: it is 0, and counts from 1",
            ));
        }
    }
    if let Some(write) = &step.write {
        one_msr(write.msr)
            .map_err(|message| wrong(".write.msr", format!("write.msr: {message}")))?;
        if write.vcpu >= vcpus {
            let (vcpu, last) = (write.vcpu, vcpus.saturating_sub(1));
            let message = format!("write.vcpu: there is no vCPU {vcpu}; they are 0 to {last}");
            return Err(wrong(".write.vcpu", message));
        }
    }
    Ok(())
}

fn one_msr(msr: MsrRange) -> Result<(), String> {
    match msr.len() {
        1 => Ok(()),
        _ => Err(format!("{msr} is a range: name one MSR")),
    }
}

/// The devices of the VM, and those made to try changes on.
struct Stage<'a> {
    devices: &'a [LiveKeys],
    tried: Vec<LiveKeys>,
}

impl<'a> Stage<'a> {
    fn of(devices: &'a [LiveKeys]) -> Self {
        Self {
            devices,
            tried: Vec::new(),
        }
    }

    fn rehearse(&mut self, step: &StepConfig) -> Result<(), ScenarioError> {
        for (name, keys) in &step.set {
            let of_device = |error: ConfigError| {
                let (key, dot) = match error.key() {
                    "" => ("", ""),
                    key => (key, "."),
                };
                wrong(format!(".set.{name}{dot}{key}"), error.to_string())
            };
            let place = match self.tried.iter().position(|tried| tried.device() == name) {
                Some(place) => place,
                None => {
                    let device = self.device(name)?;
                    self.tried.push(device.rehearsal().map_err(of_device)?);
                    self.tried.len() - 1
                }
            };
            self.tried[place].set(keys).map_err(of_device)?;
        }
        Ok(())
    }

    fn device(&self, name: &str) -> Result<&'a LiveKeys, ScenarioError> {
        let found = self.devices.iter().find(|device| device.device() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.devices.iter().map(LiveKeys::device).collect();
            let advice = match nearest(name, names.iter().copied()) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None if names.is_empty() => "the configuration has none".into(),
                None => format!("there are {}", names.join(", ")),
            };
            wrong(
                format!(".set.{name}"),
                format!("set: there is no MSR device `{name}`; {advice}"),
            )
        })
    }
}
