//! `msr-vmm ctl`: steers a running VM through its control socket.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCandidates;
use msr_bus::{Document, U64, nearest};
use msr_filter::names;
use msr_kvm::StatsRow;
use serde_json::{Map, Value};

use crate::AnsweredBy;
use crate::cli::completions::candidates;
use crate::cli::run::debug_exit;
use crate::cli::{Failure, print};
use crate::control_socket::{
    Client, ClientError, DeviceDetails, DeviceParams, DeviceSetParams, DeviceSummary, Error,
    FilterRule, FilterText, Method, MsrParams, MsrResult, MsrStat, Notice, ScenarioText,
    SnapshotParams, SnapshotResult, State, Status, TraceParams, TraceResult, WaitResult,
    WriteMsrParams,
};

/// What `msr-vmm ctl` takes.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The control socket, as `msr-vmm run --control` was given it.
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// Print the result as JSON, in one line.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What can be asked of a running VM.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Print the VM's state.
    Status,
    /// Let vCPUs and devices stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// End the guest at once, as if its power were cut.
    Stop,
    /// Print which MSRs reached userspace, how often, and who answered.
    Stats {
        /// Print them again every second until the VM ends.
        #[arg(long)]
        watch: bool,
    },
    /// Look at the MSR filter, or replace it.
    #[command(subcommand)]
    Filter(FilterCommand),
    /// Look at the MSR devices, and change them.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Read an MSR as the guest would.
    Read {
        /// The MSR, by index (0x611) or name (MSR_PKG_ENERGY_STATUS).
        #[arg(add = ArgValueCandidates::new(candidates::msrs))]
        msr: String,
        /// The vCPU that reads, counted from 0.
        #[arg(long, value_name = "N", default_value_t = 0)]
        vcpu: u32,
    },
    /// Write an MSR as the guest would.
    Write {
        /// The MSR, by index or name.
        #[arg(add = ArgValueCandidates::new(candidates::msrs))]
        msr: String,
        /// The value, decimal or 0x hexadecimal.
        #[arg(value_parser = value)]
        value: U64,
        /// The vCPU that writes, counted from 0.
        #[arg(long, value_name = "N", default_value_t = 0)]
        vcpu: u32,
    },
    /// Save the VM in a new folder, for `msr-vmm restore`. Pause it first and stop it afterwards to carry on from there.
    Snapshot {
        /// The folder, which must not exist.
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Begin scenarios: what happens to the guest step by step, as `[[msr.scenario]]` of a configuration.
    Scenario {
        /// A file with `[[msr.scenario]]` tables and nothing else (TOML). "-" is standard input.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Begin or end a trace of MSR accesses.
    #[command(subcommand)]
    Trace(CtlTraceCommand),
    /// Wait for the guest's end, and end with the exit status that `msr-vmm run` has.
    Wait,
    /// What is no command: the message says what there is.
    #[command(external_subcommand)]
    Unknown(Vec<OsString>),
}

/// What can be done with traces.
#[derive(Debug, Subcommand)]
pub enum CtlTraceCommand {
    /// Record MSR accesses from now on, until `trace stop` or the guest's end.
    Start {
        /// The trace's file, which must not exist.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// End the trace that `trace start` began.
    Stop,
}

/// What can be done with the filter.
#[derive(Debug, Subcommand)]
pub enum FilterCommand {
    /// Print the rules with where each comes from, the first that matches counting.
    Show,
    /// Replace the VM's own rules while the vCPUs run. What devices claim stays theirs, and the CPU model and the profile go on
    /// narrowing what the rules allow.
    Set {
        /// A filter alone, as a profile: `default` and `[[rule]]` tables (TOML). "-" is standard input.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// What can be done with devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Print the devices and their MSRs.
    List,
    /// Print a device's keys and its state.
    Show {
        /// The device's name.
        name: String,
    },
    /// Change keys of a device, all of them or none. `msr-vmm devices` says which can change while the guest runs.
    Set {
        /// The device's name.
        name: String,
        /// A key with its new value as in a configuration, such as celsius=95, or now.0x10=5 for a key of a table.
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = assignment)]
        keys: Vec<(String, Value)>,
    },
}

/// A key with a value in TOML; what is no TOML is a string.
fn assignment(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is no KEY=VALUE, such as celsius=95"))?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"));
    let parsed = parsed.ok().and_then(|mut table| table.remove("value"));
    let value = match parsed {
        Some(value) => serde_json::to_value(value).map_err(|error| error.to_string())?,
        None => value.into(),
    };
    Ok((key.to_owned(), value))
}

/// Keys with dots as the tables that they name.
fn nested(keys: &[(String, Value)]) -> Result<Map<String, Value>, Failure> {
    let mut all = Map::new();
    for (path, value) in keys {
        let mut table = &mut all;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                table.insert(name.to_owned(), value.clone());
                break;
            }
            let within = table.entry(name).or_insert_with(|| Map::new().into());
            table = within
                .as_object_mut()
                .ok_or_else(|| Failure::usage(format!("`{name}` is given a value and keys")))?;
        }
    }
    Ok(all)
}

fn value(text: &str) -> Result<U64, String> {
    serde_json::from_value(text.into()).map_err(|error: serde_json::Error| error.to_string())
}

/// Asks the VM and prints the answer.
pub(crate) fn ctl(args: &CtlArgs) -> Result<(), Failure> {
    // Wrong whether or not somebody serves the socket.
    let method = method(&args.command)?;
    let mut client = Client::connect(&args.path).map_err(Failure::usage)?;
    if let CtlCommand::Stats { watch: true } = args.command {
        return watch(&mut client, args.json);
    }
    let result = client.call(&method).map_err(refused)?;
    if args.json {
        print(&format!("{result}\n"))?;
    } else {
        print(&text(&method, result.clone())?)?;
    }
    match method {
        Method::Wait => ended(result),
        Method::ReadMsr(_) | Method::WriteMsr(_) => faulted(result),
        _ => Ok(()),
    }
}

fn method(command: &CtlCommand) -> Result<Method, Failure> {
    Ok(match command {
        CtlCommand::Status => Method::Status,
        CtlCommand::Pause => Method::Pause,
        CtlCommand::Resume => Method::Resume,
        CtlCommand::PowerButton => Method::PowerButton,
        CtlCommand::Stop => Method::Stop,
        CtlCommand::Stats { .. } => Method::Stats,
        CtlCommand::Filter(FilterCommand::Show) => Method::FilterShow,
        CtlCommand::Filter(FilterCommand::Set { file }) => Method::FilterSet(FilterText {
            toml: Document::read(file)
                .map_err(Failure::usage)?
                .text()
                .to_owned(),
        }),
        CtlCommand::Device(DeviceCommand::List) => Method::DeviceList,
        CtlCommand::Device(DeviceCommand::Show { name }) => {
            Method::DeviceShow(DeviceParams { name: name.clone() })
        }
        CtlCommand::Device(DeviceCommand::Set { name, keys }) => {
            Method::DeviceSet(DeviceSetParams {
                name: name.clone(),
                keys: nested(keys)?,
            })
        }
        CtlCommand::Read { msr, vcpu } => Method::ReadMsr(MsrParams {
            msr: msr.clone(),
            vcpu: *vcpu,
        }),
        CtlCommand::Write { msr, value, vcpu } => Method::WriteMsr(WriteMsrParams {
            msr: msr.clone(),
            value: *value,
            vcpu: *vcpu,
        }),
        CtlCommand::Snapshot { folder } => {
            let folder = std::path::absolute(folder).map_err(Failure::usage)?;
            Method::Snapshot(SnapshotParams { folder })
        }
        CtlCommand::Scenario { file } => {
            let file = Document::read(file).map_err(Failure::usage)?;
            Method::Scenario(ScenarioText {
                toml: file.text().to_owned(),
                file: Some(file.name().to_owned()),
            })
        }
        CtlCommand::Trace(CtlTraceCommand::Start { file }) => {
            let file = std::path::absolute(file).map_err(Failure::usage)?;
            Method::TraceStart(TraceParams { file })
        }
        CtlCommand::Trace(CtlTraceCommand::Stop) => Method::TraceStop,
        CtlCommand::Wait => Method::Wait,
        CtlCommand::Unknown(words) => return Err(unknown(words)),
    })
}

/// What clap, after the path, would call an unexpected argument.
fn unknown(words: &[OsString]) -> Failure {
    let word = words.first().map(|word| word.to_string_lossy());
    let word = word.as_deref().unwrap_or_default();
    let command = CtlCommand::augment_subcommands(clap::Command::new("ctl"));
    let names: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let meant = nearest(word, names.iter().copied());
    let meant = meant.map_or(String::new(), |name| format!("did you mean `{name}`? "));
    let names = names.join(", ");
    Failure::usage(format!(
        "there is no command `{word}`; {meant}there are {names}"
    ))
}

/// A request that the VMM did not understand is the user's to mend.
fn refused(error: ClientError) -> Failure {
    match &error {
        ClientError::Refused(refusal) if refusal.code == Error::INVALID_PARAMS => {
            Failure::usage(error)
        }
        _ => Failure::fault(error),
    }
}

/// Until the VM closes the connection, which is its end.
fn watch(client: &mut Client, json: bool) -> Result<(), Failure> {
    loop {
        match client.call(&Method::Stats) {
            Ok(result) if json => print(&format!("{result}\n"))?,
            Ok(result) => print(&format!("{}\n", text(&Method::Stats, result)?))?,
            Err(ClientError::Closed | ClientError::Io(_)) => return Ok(()),
            Err(error) => return Err(refused(error)),
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn ended(result: Value) -> Result<(), Failure> {
    let result: WaitResult = read(result)?;
    if let Some(status) = result.status {
        return Err(debug_exit(status));
    }
    match result.reason.as_str() {
        "power-off" | "reset" => Ok(()),
        reason => Err(Failure::fault(result.fault.as_deref().unwrap_or(reason))),
    }
}

fn faulted(result: Value) -> Result<(), Failure> {
    match read::<MsrResult>(result)?.value {
        Some(_) => Ok(()),
        None => Err(Failure::fault("the access is #GP")),
    }
}

fn read<T: serde::de::DeserializeOwned>(result: Value) -> Result<T, Failure> {
    serde_json::from_value(result)
        .map_err(|error| Failure::fault(format!("the VMM's answer cannot be read: {error}")))
}

/// A result for people.
fn text(method: &Method, result: Value) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    let state = |state: State| match state {
        State::Running => "running",
        State::Paused => "paused",
    };
    match method {
        Method::Status => {
            let status: Status = read(result)?;
            let yes = if status.handles_power_button {
                "yes"
            } else {
                "no"
            };
            line(format_args!("state         {}", state(status.state)));
            line(format_args!("vCPUs         {}", status.vcpus));
            line(format_args!("uptime        {:.1} s", status.uptime));
            line(format_args!("MSR exits     {}", status.msr_exits));
            line(format_args!("power button  {yes}"));
            if let Some(file) = &status.trace {
                line(format_args!("trace         {file}"));
            }
            line(format_args!("process       {}", status.pid));
        }
        Method::Stats => {
            line(format_args!("{}", StatsRow::head()));
            for stat in read::<Vec<MsrStat>>(result)? {
                let row = StatsRow {
                    index: stat.index,
                    reads: stat.reads,
                    writes: stat.writes,
                    faults: stat.faults,
                    device: stat.device.as_deref(),
                };
                line(format_args!("{row}"));
            }
        }
        Method::FilterShow => {
            for rule in read::<Vec<FilterRule>>(result)? {
                line(format_args!(
                    "{:<6} {:<3} {:<24} {}",
                    rule.verdict, rule.access, rule.msrs, rule.source
                ));
            }
        }
        Method::DeviceList => {
            for device in read::<Vec<DeviceSummary>>(result)? {
                line(format_args!(
                    "{:<16} {}",
                    device.name,
                    device.msrs.join(", ")
                ));
            }
        }
        Method::DeviceShow(_) | Method::DeviceSet(_) => {
            let device: DeviceDetails = read(result)?;
            let model = device.model.as_deref().unwrap_or("a program's own");
            line(format_args!("{} ({model})", device.name));
            for (key, value) in &device.keys {
                line(format_args!("  {key} = {value}"));
            }
            if !device.live.is_empty() {
                line(format_args!("  can be set: {}", device.live.join(", ")));
            }
            if let Method::DeviceShow(_) = method {
                line(format_args!("  state: {}", device.state));
            }
        }
        Method::ReadMsr(_) | Method::WriteMsr(_) => {
            let result: MsrResult = read(result)?;
            let name = names::name(result.index).unwrap_or("-");
            let by = match &result.by {
                AnsweredBy::Kernel => "the kernel (KVM)".to_owned(),
                AnsweredBy::Device(name) => format!("device `{name}`"),
                AnsweredBy::Default => "the default (unclaimed)".to_owned(),
                AnsweredBy::Nobody => "nobody: msr.exits lacks the reason".to_owned(),
            };
            let value = result
                .value
                .map_or("#GP".to_owned(), |U64(value)| format!("{value:#018x}"));
            line(format_args!("{:#x} {name}  {value}  {by}", result.index));
        }
        Method::Snapshot(_) => {
            let result: SnapshotResult = read(result)?;
            let (mib, state) = (result.memory >> 20, state(result.state));
            let pause = match result.state {
                State::Running => format!(" after a pause of {:.1} ms", result.pause * 1e3),
                State::Paused => String::new(),
            };
            line(format_args!("saved, {mib} MiB of memory; {state}{pause}"));
        }
        // The state is still that of before: the guest ends a moment later.
        Method::Stop => line(format_args!("stopping")),
        Method::Wait => {
            let result: WaitResult = read(result)?;
            line(format_args!("{}", result.reason));
        }
        Method::TraceStop => {
            let result: TraceResult = read(result)?;
            let TraceResult {
                file,
                records,
                lost,
                bytes,
            } = result;
            line(format_args!(
                "{file}: {records} records, {lost} lost, {bytes} bytes"
            ));
        }
        Method::Pause
        | Method::Resume
        | Method::PowerButton
        | Method::FilterSet(_)
        | Method::Scenario(_)
        | Method::TraceStart(_) => {
            let notice: Notice = read(result)?;
            line(format_args!("{}", state(notice.state)));
        }
    }
    Ok(text)
}
