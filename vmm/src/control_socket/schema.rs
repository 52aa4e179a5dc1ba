//! The JSON schema of what is said on the socket.

use schemars::{Schema, schema_for};
use serde_json::{Map, Value};

use super::method::Method;
use super::protocol::{Error, Request, Response};
use super::results::{
    DeviceDetails, DeviceSummary, FilterRule, MsrResult, MsrStat, Notice, SnapshotResult, State,
    Status, TraceResult, WaitResult,
};

/// The JSON schemas of everything that is said: one for each type, by its name.
pub fn schema() -> Map<String, Value> {
    let schemas: [(&str, Schema); 15] = [
        ("request", schema_for!(Request)),
        ("response", schema_for!(Response)),
        ("method", schema_for!(Method)),
        ("status", schema_for!(Status)),
        ("notice", schema_for!(Notice)),
        ("msr-stat", schema_for!(MsrStat)),
        ("filter-rule", schema_for!(FilterRule)),
        ("device-summary", schema_for!(DeviceSummary)),
        ("device-details", schema_for!(DeviceDetails)),
        ("msr-result", schema_for!(MsrResult)),
        ("snapshot-result", schema_for!(SnapshotResult)),
        ("trace-result", schema_for!(TraceResult)),
        ("wait-result", schema_for!(WaitResult)),
        ("state", schema_for!(State)),
        ("error", schema_for!(Error)),
    ];
    let named = schemas.map(|(name, schema)| (name.to_owned(), schema.to_value()));
    named.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schema_is_that_of_the_code() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/control-socket.schema.json"
        );
        let now = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            committed, now,
            "the protocol has changed: run this test with UPDATE_SCHEMA=1 and commit {path}"
        );
    }
}
