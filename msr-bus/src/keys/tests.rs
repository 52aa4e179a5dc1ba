use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::*;
use crate::{Scope, U64};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Config {
    /// The sensor's number.
    sensor: u32,
    /// Watts when idle.
    #[serde(default = "one")]
    idle: f64,
    #[serde(default)]
    scope: Scope,
    /// May be left out.
    limit: Option<U64>,
    /// Where the value comes from.
    source: Option<Source>,
    /// Steps.
    #[serde(default)]
    step: Vec<Step>,
}

fn one() -> f64 {
    1.5
}

#[derive(Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "lowercase", deny_unknown_fields)]
#[allow(dead_code)]
enum Source {
    Constant {
        /// Degrees.
        value: u32,
    },
    Host {
        /// A file.
        path: String,
    },
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Step {
    at: U64,
    #[serde(default)]
    marks: BTreeMap<String, Mark>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Mark {
    bits: Option<u8>,
}

fn schema() -> Value {
    schemars::schema_for!(Config).to_value()
}

fn unknown(text: &str) -> Result<(), (String, String, Vec<String>)> {
    let table: toml::Table = toml::from_str(text).unwrap();
    check(&schema(), &table).map_err(|error| (error.table, error.key, error.known))
}

#[test]
fn keys_are_listed_with_types_defaults_and_meanings() {
    let listed: Vec<_> = list(&schema())
        .into_iter()
        .map(|key| {
            let default = key.default.map_or(String::new(), |value| value.to_string());
            (key.key, key.kind, key.required, default, key.description)
        })
        .collect();
    let expect = |key: &str, kind: &str, required, default: &str, description: &str| {
        let entry = (
            key.to_owned(),
            kind.to_owned(),
            required,
            default.to_owned(),
            description.to_owned(),
        );
        assert!(listed.contains(&entry), "{entry:?} in {listed:#?}");
    };
    expect("sensor", "integer", true, "", "The sensor's number.");
    expect("idle", "number", false, "1.5", "Watts when idle.");
    expect("limit", "64-bit value", false, "", "May be left out.");
    expect("source", "table", false, "", "Where the value comes from.");
    expect("source.from", "\"constant\" or \"host\"", true, "", "");
    expect("source.value", "integer", false, "", "Degrees.");
    expect("source.path", "string", false, "", "A file.");
    expect("step", "list of table", false, "", "Steps.");
    expect("step[].at", "64-bit value", true, "", "");
    expect("step[].marks", "table", false, "", "");
    expect("step[].marks.*.bits", "integer", false, "", "");
    let scope = listed.iter().find(|key| key.0 == "scope").unwrap();
    assert_eq!(scope.1, "\"thread\" or \"core\" or \"package\"");
    assert_eq!(scope.3, "\"thread\"");
    assert_eq!(listed.len(), 12, "{listed:#?}");
}

#[test]
fn known_keys_pass_wherever_they_stand() {
    let text = "
        sensor = 1
        source = { from = 'host', path = 'x' }
        [[step]]
        at = 1
        [[step]]
        at = 2
        marks = { any = { bits = 1 }, other = {} }
    ";
    assert_eq!(unknown(text), Ok(()));
}

#[test]
fn an_unknown_key_is_found_with_its_place_and_the_keys_there() {
    for (text, table, key, known) in [
        (
            "sensr = 1",
            "",
            "sensr",
            &["idle", "limit", "scope", "sensor", "source", "step"][..],
        ),
        (
            "[[step]]\nat = 1\n[[step]]\nta = 1",
            "step[1].",
            "ta",
            &["at", "marks"],
        ),
        (
            "[[step]]\nmarks.a.bit = 1",
            "step[0].marks.a.",
            "bit",
            &["bits"],
        ),
        (
            "source = { form = 'host' }",
            "source.",
            "form",
            &["from", "path", "value"],
        ),
    ] {
        let known = known.iter().map(ToString::to_string).collect();
        assert_eq!(
            unknown(text),
            Err((table.into(), key.into(), known)),
            "{text}"
        );
    }
}

#[test]
fn values_of_the_wrong_type_are_left_to_the_deserializer() {
    for text in [
        "sensor = {}",
        "step = 1",
        "step = [1]",
        "source = 'host'",
        "scope = { a = 1 }",
    ] {
        assert_eq!(unknown(text), Ok(()), "{text}");
    }
}

#[test]
fn a_key_prints_its_type_default_and_wrapped_meaning() {
    let key = Key {
        key: "limit".into(),
        kind: "integer".into(),
        required: false,
        default: Some(5.into()),
        description: "word ".repeat(30),
    };
    let text = key.to_string();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("    limit: integer, default 5"));
    for line in lines {
        assert!(
            line.starts_with("        word") && line.len() <= WIDTH,
            "{line:?}"
        );
    }
    assert_eq!(text.matches("word").count(), 30);
}
