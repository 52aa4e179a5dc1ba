//! The methods, carried out on a running VM.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use msr_bus::{Access, Document, MsrRange, U64, VcpuId};
use msr_filter::{FilterConfig, names};
use msr_kvm::scenario::ScenarioConfig;
use msr_kvm::{MsrStats, VmMsrsError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::method::{
    DeviceSetParams, FilterText, Method, MsrParams, ScenarioText, SnapshotParams, TraceParams,
    WriteMsrParams,
};
use super::protocol::Error;
use super::results::{
    DeviceDetails, DeviceSummary, FilterRule, MsrResult, MsrStat, Notice, SnapshotResult, State,
    Status, TraceResult,
};
use super::server::Handler;
use crate::msr_access::MsrAnswer;
use crate::running::{RunningVm, VcpuGone};
use crate::scenario::Scenarios;
use crate::trace::{LiveTrace, LiveTraceError};

/// A VM under control.
pub struct VmMethods<'a> {
    vm: &'a RunningVm,
    stats: Arc<MsrStats>,
    trace: Rc<RefCell<LiveTrace>>,
    scenarios: Option<Rc<RefCell<Scenarios<'a>>>>,
    /// Whether a client has paused the VM.
    paused: bool,
    files: Files,
}

/// Where the process may make files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Files {
    /// Wherever its user may.
    #[default]
    Any,
    /// In the sandbox: snapshots in this folder, if in any, and nothing else.
    Under(Option<PathBuf>),
}

impl<'a> VmMethods<'a> {
    /// Controls `vm`, whose MSR accesses `stats` counts and `trace` records. Who made `trace` ends it with the guest.
    pub fn new(vm: &'a RunningVm, stats: Arc<MsrStats>, trace: Rc<RefCell<LiveTrace>>) -> Self {
        Self {
            vm,
            stats,
            trace,
            scenarios: None,
            paused: false,
            files: Files::Any,
        }
    }

    /// Says where the process may make files. `snapshot` and `trace-start` are refused where it may not.
    #[must_use]
    pub fn files(mut self, files: Files) -> Self {
        self.files = files;
        self
    }

    /// Lets clients begin scenarios among these, which the event loop runs.
    #[must_use]
    pub fn scenarios(mut self, scenarios: Rc<RefCell<Scenarios<'a>>>) -> Self {
        self.scenarios = Some(scenarios);
        self
    }

    fn begin_scenarios(&self, text: ScenarioText) -> Result<(), Error> {
        let Some(scenarios) = &self.scenarios else {
            return Err(Error::vm("nobody runs scenarios of this VM"));
        };
        let name = text.file.unwrap_or_else(|| "the text".into());
        let file = Document::new(name, text.toml);
        let parsed: ScenarioFile = file
            .parse()
            .map_err(|error| Error::params(error.to_string()))?;
        let begun = scenarios.borrow_mut().begin(parsed.msr.scenario);
        begun.map_err(|error| {
            let place = file.error(&format!("msr.{}", error.key), &error);
            Error::params(place.to_string())
        })
    }

    /// Where a snapshot of this name is made, if it may be.
    fn snapshot_path(&self, folder: PathBuf) -> Result<PathBuf, Error> {
        let allowed = match &self.files {
            Files::Any => return Ok(folder),
            Files::Under(None) => {
                return Err(Error::vm(
                    "the sandbox lets the VMM make no files; a VM is saved that was started with --snapshots FOLDER",
                ));
            }
            Files::Under(Some(allowed)) => allowed,
        };
        let parent = folder.parent().filter(|parent| *parent != Path::new(""));
        let is_there = parent.is_none_or(|parent| {
            parent == allowed || parent.canonicalize().is_ok_and(|path| path == *allowed)
        });
        match folder.file_name() {
            Some(name) if is_there => Ok(allowed.join(name)),
            _ => Err(Error::params(format!(
                "{}: the sandbox lets the VMM make snapshots in {} only (--snapshots)",
                folder.display(),
                allowed.display()
            ))),
        }
    }

    fn state(&self) -> State {
        if self.vm.is_paused() {
            State::Paused
        } else {
            State::Running
        }
    }

    fn status(&self) -> Status {
        let counts = self.stats.counts();
        Status {
            state: self.state(),
            vcpus: self.vm.vcpus(),
            uptime: self.vm.uptime().as_secs_f64(),
            msr_exits: counts
                .values()
                .map(|count| count.reads + count.writes)
                .sum(),
            handles_power_button: self.vm.handles_power_button(),
            trace: self
                .trace
                .borrow()
                .path()
                .map(|path| path.display().to_string()),
            pid: std::process::id(),
        }
    }

    fn stats(&self) -> Vec<MsrStat> {
        let counts = self.stats.counts();
        let stat = |(index, counts): (u32, msr_kvm::Counts)| MsrStat {
            index,
            name: names::name(index).map(str::to_owned),
            reads: counts.reads,
            writes: counts.writes,
            faults: counts.faults,
            device: self
                .vm
                .msr_bus()
                .device(index)
                .map(|device| device.name().to_owned()),
        };
        counts.into_iter().map(stat).collect()
    }

    fn devices(&self) -> Vec<DeviceSummary> {
        let mut devices: Vec<DeviceSummary> = Vec::new();
        for (range, device) in self.vm.msr_bus().claims() {
            let range = range.to_string();
            match devices.iter_mut().find(|d| d.name == device.name()) {
                Some(summary) => summary.msrs.push(range),
                None => devices.push(DeviceSummary {
                    name: device.name().to_owned(),
                    msrs: vec![range],
                }),
            }
        }
        devices
    }

    fn device(&self, name: &str) -> Result<DeviceDetails, Error> {
        let mut claims = self.vm.msr_bus().claims();
        let device = claims.find(|(_, device)| device.name() == name);
        let Some((_, device)) = device else {
            let names: Vec<String> = self.devices().into_iter().map(|d| d.name).collect();
            return Err(Error::params(format!(
                "there is no MSR device `{name}`; there are {}",
                names.join(", ")
            )));
        };
        let plan = self.vm.msr_plan();
        let live = plan.live.iter().find(|live| live.device() == name);
        let keys = live.map(|live| serde_json::to_value(live.current()));
        let keys = keys.transpose().map_err(Error::vm)?;
        Ok(DeviceDetails {
            name: name.to_owned(),
            model: live.map(|live| live.model().to_owned()),
            keys: keys
                .and_then(|keys| keys.as_object().cloned())
                .unwrap_or_default(),
            live: live.map_or(Vec::new(), |live| {
                live.live().into_iter().map(|key| key.key).collect()
            }),
            state: json(&device.save())?,
        })
    }

    fn set_device(&self, params: &DeviceSetParams) -> Result<DeviceDetails, Error> {
        let name = &params.name;
        // Says what there is, if it is not there.
        self.device(name)?;
        let changes: toml::Table = serde_json::from_value(Value::Object(params.keys.clone()))
            .map_err(|error| Error::params(format!("keys: {error}")))?;
        let plan = self.vm.msr_plan();
        let live = plan.live.iter().find(|live| live.device() == name);
        let live = live.ok_or_else(|| {
            Error::params(format!(
                "device `{name}` is a program's own and has no keys"
            ))
        })?;
        self.vm
            .set_device(live, &changes)
            .map_err(|error| Error::params(error.to_string()))?;
        self.device(name)
    }

    fn filter(&self) -> Result<Vec<FilterRule>, Error> {
        let plan = self.vm.filter_in_force();
        if plan.rules.is_none() {
            let message = "the filter was replaced by one whose rules are not known";
            return Err(Error::vm(message));
        }
        let mut rules: Vec<FilterRule> = plan
            .spec
            .rules
            .iter()
            .zip(&plan.sources)
            .map(|(rule, source)| FilterRule {
                msrs: rule.range.to_string(),
                access: rule.access.to_string(),
                verdict: rule.verdict.to_string(),
                source: source.to_string(),
            })
            .collect();
        rules.push(FilterRule {
            msrs: "default".into(),
            access: Access::all().to_string(),
            verdict: plan.spec.default.to_string(),
            source: "the default".into(),
        });
        Ok(rules)
    }

    fn set_filter(&self, text: &FilterText) -> Result<(), Error> {
        let config: FilterConfig = toml::from_str(&text.toml)
            .map_err(|error| Error::params(format!("the filter: {error}")))?;
        let set = self.vm.set_filter_rules(&config);
        set.map_err(|error| match error {
            VmMsrsError::Plan(error) => Error::params(format!("the filter: {error}")),
            error => Error::vm(error),
        })
    }

    fn notice(&self) -> Result<Value, Error> {
        json(&Notice {
            state: self.state(),
        })
    }
}

impl Handler for VmMethods<'_> {
    fn call(&mut self, method: Method) -> Result<Value, Error> {
        match method {
            Method::Status => json(&self.status()),
            Method::Pause => {
                if !self.paused {
                    self.vm.pause().map_err(Error::vm)?;
                    self.paused = true;
                }
                self.notice()
            }
            Method::Resume => {
                if std::mem::take(&mut self.paused) {
                    self.vm.resume();
                }
                self.notice()
            }
            Method::PowerButton => {
                self.vm.press_power_button();
                self.notice()
            }
            Method::Stop => {
                self.vm.stop();
                self.notice()
            }
            Method::Stats => json(&self.stats()),
            Method::FilterShow => json(&self.filter()?),
            Method::FilterSet(text) => {
                self.set_filter(&text)?;
                self.notice()
            }
            Method::DeviceList => json(&self.devices()),
            Method::DeviceShow(params) => json(&self.device(&params.name)?),
            Method::DeviceSet(params) => json(&self.set_device(&params)?),
            Method::ReadMsr(MsrParams { msr, vcpu }) => {
                let index = index(&msr)?;
                answered(index, self.vm.read_msr(VcpuId(vcpu), index))
            }
            Method::WriteMsr(WriteMsrParams { msr, value, vcpu }) => {
                let index = index(&msr)?;
                answered(index, self.vm.write_msr(VcpuId(vcpu), index, value.0))
            }
            Method::Snapshot(SnapshotParams { folder }) => {
                let folder = self.snapshot_path(folder)?;
                let saved = self.vm.snapshot(&folder).map_err(Error::vm)?;
                json(&SnapshotResult {
                    memory: saved.memory,
                    pause: saved.pause.as_secs_f64(),
                    state: self.state(),
                })
            }
            Method::TraceStart(_)
                if self.files != Files::Any && self.trace.borrow().path().is_none() =>
            {
                Err(Error::vm(
                    "the sandbox lets the VMM make no files; a sandboxed VM is traced from its start, by run --trace FILE",
                ))
            }
            Method::TraceStart(TraceParams { file }) => {
                let started = self.trace.borrow_mut().start(self.vm, &file);
                started.map_err(Error::of_trace)?;
                self.notice()
            }
            Method::TraceStop => {
                let stopped = self.trace.borrow_mut().stop(self.vm);
                let (file, summary) = stopped.map_err(Error::of_trace)?;
                json(&TraceResult {
                    file: file.display().to_string(),
                    records: summary.records,
                    lost: summary.lost,
                    bytes: summary.bytes,
                })
            }
            Method::Scenario(text) => {
                self.begin_scenarios(text)?;
                self.notice()
            }
            // The server's own.
            Method::Wait => self.notice(),
        }
    }
}

/// A file of scenarios.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ScenarioFile {
    /// Who answers which MSR, of which there are scenarios here.
    msr: ScenariosAlone,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ScenariosAlone {
    /// The scenarios.
    scenario: Vec<ScenarioConfig>,
}

impl Error {
    /// A file's name is the caller's to mend; the rest is how the VM is.
    fn of_trace(error: LiveTraceError) -> Self {
        match error {
            LiveTraceError::Exists(_) => Self::params(error.to_string()),
            error => Self::vm(error),
        }
    }
}

fn json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(Error::vm)
}

fn answered(index: u32, answer: Result<MsrAnswer, VcpuGone>) -> Result<Value, Error> {
    let answer = answer.map_err(|error| Error::params(error.to_string()))?;
    json(&MsrResult {
        index,
        value: answer.value.map(U64),
        by: answer.by,
    })
}

/// The index of an MSR by index or name.
fn index(text: &str) -> Result<u32, Error> {
    let range: MsrRange = text
        .parse()
        .map_err(|error| Error::params(format!("msr: {error}")))?;
    if range.len() != 1 {
        return Err(Error::params(format!(
            "msr: {text} is a range: name one MSR"
        )));
    }
    Ok(range.first())
}
