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

fn refused(text: &str) -> Result<(), (String, String)> {
    let table: toml::Table = toml::from_str(text).unwrap();
    check(&schema(), &table).map_err(|error| (error.key.clone(), error.to_string()))
}

#[test]
fn keys_are_listed_with_types_defaults_and_meanings() {
    let listed: Vec<_> = Key::list(&schema())
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
    expect("sensor", "a whole number", true, "", "The sensor's number.");
    expect("idle", "a number", false, "1.5", "Watts when idle.");
    expect("limit", "a 64-bit value", false, "", "May be left out.");
    expect(
        "source",
        "a table",
        false,
        "",
        "Where the value comes from.",
    );
    expect("source.from", "\"constant\" or \"host\"", true, "", "");
    expect("source.value", "a whole number", false, "", "Degrees.");
    expect("source.path", "a string", false, "", "A file.");
    expect("step", "a list, each a table", false, "", "Steps.");
    expect("step[].at", "a 64-bit value", true, "", "");
    expect("step[].marks", "a table", false, "", "");
    expect(
        "step[].marks.*.bits",
        "a whole number from 0 to 255",
        false,
        "",
        "",
    );
    let scope = listed.iter().find(|key| key.0 == "scope").unwrap();
    assert_eq!(scope.1, "\"thread\", \"core\" or \"package\"");
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
    assert_eq!(refused(text), Ok(()));
}

#[test]
fn what_is_wrong_is_found_with_its_place_and_what_would_be_right() {
    for (text, key, message) in [
        (
            "sensr = 1",
            "sensr",
            "there is no key `sensr` here; did you mean `sensor`?",
        ),
        (
            "sensor = 1\n[[step]]\nat = 1\n[[step]]\nta = 1",
            "step[1].ta",
            "there is no key `ta` here; the keys are at, marks",
        ),
        (
            "sensor = 1\n[[step]]\nat = 1\nmarks.a.bit = 1",
            "step[0].marks.a.bit",
            "there is no key `bit` here; did you mean `bits`?",
        ),
        (
            "sensor = 1\nsource = { form = 'host' }",
            "source.form",
            "there is no key `form` here; did you mean `from`?",
        ),
        (
            "sensor = 1\nsource = { from = 'host', paht = 'x' }",
            "source.paht",
            "there is no key `paht` here; did you mean `path`?",
        ),
        (
            "sensor = 1\nsource = { from = 'host' }",
            "source",
            "the key `path` is missing; it takes a string",
        ),
        (
            "sensor = {}",
            "sensor",
            "`sensor` is a table; it takes a whole number",
        ),
        (
            "sensor = 1\nstep = [1]",
            "step[0]",
            "`step[0]` is 1; it takes a table",
        ),
        (
            "sensor = 1\nsource = 'host'",
            "source",
            "`source` is the string \"host\"; it takes a table",
        ),
        (
            "sensor = 1\nscope = 'corr'",
            "scope",
            "`scope` is the string \"corr\"; did you mean \"core\"?",
        ),
        (
            "sensor = -1",
            "sensor",
            "`sensor` is -1; it takes a whole number",
        ),
        (
            "",
            "",
            "the key `sensor` is missing; it takes a whole number",
        ),
    ] {
        assert_eq!(refused(text), Err((key.into(), message.into())), "{text}");
    }
}

#[test]
fn a_key_prints_its_type_default_and_wrapped_meaning() {
    let key = Key {
        key: "limit".into(),
        kind: "a whole number".into(),
        required: false,
        live: false,
        default: Some(5.into()),
        description: "word ".repeat(30),
    };
    let text = key.to_string();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("    limit: a whole number; default 5"));
    for line in lines {
        assert!(
            line.starts_with("        word") && line.len() <= WIDTH,
            "{line:?}"
        );
    }
    assert_eq!(text.matches("word").count(), 30);
}
