//! What can be asked for: the methods with their parameters.

use std::path::PathBuf;

use msr_bus::U64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::protocol::{Error, Request};

/// The methods with their parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Method {
    /// The VM's state: `Status`.
    Status,
    /// Pauses the VM: its vCPUs and devices stand still. Paused already, it stays so. Gives `Notice`.
    Pause,
    /// Ends the pause that `pause` began. Gives `Notice`.
    Resume,
    /// Presses the ACPI power button. What follows is the guest's decision. Gives `Notice`.
    PowerButton,
    /// Ends the guest at once, as if its power were cut. Gives `Notice`.
    Stop,
    /// How often which MSR reached userspace: a list of `MsrStat`.
    Stats,
    /// What the kernel may answer: a list of `FilterRule`, the first that matches counting.
    FilterShow,
    /// Replaces the filter's own rules while the vCPUs run. What devices claim stays theirs, and CPU models and the profile
    /// narrow the new rules as they did the old. Gives `Notice`.
    FilterSet(FilterText),
    /// The MSR devices: a list of `DeviceSummary`.
    DeviceList,
    /// One MSR device: `DeviceDetails`.
    DeviceShow(DeviceParams),
    /// Changes keys of an MSR device, all of them or none: `DeviceDetails`.
    DeviceSet(DeviceSetParams),
    /// Reads an MSR as the guest would: `MsrResult`.
    ReadMsr(MsrParams),
    /// Writes an MSR as the guest would: `MsrResult`.
    WriteMsr(WriteMsrParams),
    /// Saves the VM in a new folder: `SnapshotResult`. Other requests wait meanwhile.
    Snapshot(SnapshotParams),
    /// Begins a trace of MSR accesses in a new file. Gives `Notice`.
    TraceStart(TraceParams),
    /// Ends the trace that `trace-start` began: `TraceResult`.
    TraceStop,
    /// Begins scenarios, all of them or none, beside those that run. Gives `Notice`.
    Scenario(ScenarioText),
    /// Answers once the guest has ended: `WaitResult`.
    Wait,
}

impl Method {
    /// The names, as requests have them.
    pub const NAMES: &[&str] = &[
        "status",
        "pause",
        "resume",
        "power-button",
        "stop",
        "stats",
        "filter-show",
        "filter-set",
        "device-list",
        "device-show",
        "device-set",
        "read-msr",
        "write-msr",
        "snapshot",
        "trace-start",
        "trace-stop",
        "scenario",
        "wait",
    ];

    /// The method of a request.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        if !Self::NAMES.contains(&request.method.as_str()) {
            return Err(Error::method(&request.method));
        }
        let mut call = serde_json::json!({ "method": request.method });
        let empty = |params: &Value| params.is_null() || *params == serde_json::json!({});
        if let Some(params) = request.params.as_ref().filter(|params| !empty(params)) {
            call["params"] = params.clone();
        }
        serde_json::from_value(call)
            .map_err(|error| Error::params(format!("`{}`: {error}", request.method)))
    }
}

/// A filter as `[msr.filter]` of a configuration has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterText {
    /// TOML: `default` and `[[rule]]` tables, as in a profile.
    pub toml: String,
}

/// Which MSR device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceParams {
    /// Its name.
    pub name: String,
}

/// Which MSR device, and what to change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceSetParams {
    /// Its name.
    pub name: String,
    /// The keys with their new values, as a configuration has them.
    pub keys: Map<String, Value>,
}

/// Which MSR of which vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrParams {
    /// The MSR, by index (`0x611`) or name (`MSR_PKG_ENERGY_STATUS`).
    pub msr: String,
    /// The vCPU, counted from 0.
    #[serde(default)]
    pub vcpu: u32,
}

/// Which MSR of which vCPU, and its new value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteMsrParams {
    /// The MSR, by index or name.
    pub msr: String,
    /// The value: a number, or a string such as "0x1f00".
    pub value: U64,
    /// The vCPU, counted from 0.
    #[serde(default)]
    pub vcpu: u32,
}

/// Where to save the VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotParams {
    /// The folder, which must not exist. Relative to where the VMM was started.
    pub folder: PathBuf,
}

/// Where to write a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceParams {
    /// The file, which must not exist. Relative to where the VMM was started.
    pub file: PathBuf,
}

/// Scenarios as a configuration has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScenarioText {
    /// TOML: `[[msr.scenario]]` tables.
    pub toml: String,
    /// What messages call the file that they are from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

#[cfg(test)]
mod tests {
    use schemars::schema_for;

    use super::*;

    #[test]
    fn every_name_is_a_method_and_every_method_has_its_name() {
        let variants = schema_for!(Method).to_value()["oneOf"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(variants, Method::NAMES.len());
        for name in Method::NAMES {
            let request = Request {
                jsonrpc: "2.0".into(),
                id: None,
                method: (*name).into(),
                params: None,
            };
            // Wrong at most because parameters are missing.
            if let Err(error) = Method::of(&request) {
                assert_eq!(error.code, -32602, "{name}: {error}");
            }
        }
    }

    #[test]
    fn parameters_are_checked_to_the_last_key() {
        let method = |method: &str, params: Value| {
            Method::of(&Request {
                jsonrpc: "2.0".into(),
                id: None,
                method: method.into(),
                params: Some(params),
            })
        };
        let read = method("read-msr", serde_json::json!({"msr": "0x10", "vcpu": 1}));
        let expected = MsrParams {
            msr: "0x10".into(),
            vcpu: 1,
        };
        assert_eq!(read, Ok(Method::ReadMsr(expected)));
        assert_eq!(method("status", serde_json::json!({})), Ok(Method::Status));
        for (name, params, words) in [
            ("status", serde_json::json!({"a": 1}), "status"),
            ("read-msr", serde_json::json!({"msr": 1}), "string"),
            (
                "read-msr",
                serde_json::json!({"msr": "1", "cpu": 1}),
                "`cpu`",
            ),
            ("write-msr", serde_json::json!({"msr": "1"}), "`value`"),
        ] {
            let error = method(name, params).unwrap_err();
            assert_eq!(error.code, -32602);
            assert!(error.message.contains(words), "{error}");
        }
        assert_eq!(method("reboot", Value::Null).unwrap_err().code, -32601);
    }
}
