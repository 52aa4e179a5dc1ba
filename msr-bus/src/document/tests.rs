use schemars::JsonSchema;
use serde::Deserialize;

use super::*;
use crate::{MsrRange, Unclaimed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Config {
    #[schemars(range(min = 1, max = 128))]
    cpus: u8,
    #[serde(default)]
    path: String,
    unclaimed: Option<Unclaimed>,
    #[serde(default)]
    rule: Vec<Rule>,
    table: Option<Table>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Rule {
    msr: MsrRange,
    #[serde(default)]
    deny: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Table {
    watts: f64,
}

fn refusal(text: &str) -> String {
    let document = Document::new("vm.toml", text);
    document.parse::<Config>().unwrap_err().to_string()
}

#[test]
fn errors_are_one_line_with_the_place_and_say_what_would_be_right() {
    for (text, message) in [
        (
            "cpus = 1\npaht = 'x'\n",
            "vm.toml:2:1: there is no key `paht` here; did you mean `path`?",
        ),
        (
            "cpus = 1\n[[rule]]\nmsr = 1\n[[rule]]\nmsr = 2\n  zzz = 1",
            "vm.toml:6:3: there is no key `zzz` here; the keys are deny, msr",
        ),
        (
            "cpus = \"many\"",
            "vm.toml:1:8: `cpus` is the string \"many\"; it takes a whole number from 1 to 128",
        ),
        (
            "cpus = 300",
            "vm.toml:1:8: `cpus` is 300; it takes a whole number from 1 to 128",
        ),
        (
            "cpus = 1\npath = 5",
            "vm.toml:2:8: `path` is 5; it takes a string",
        ),
        (
            "path = ''",
            "vm.toml:1:1: the key `cpus` is missing; it takes a whole number from 1 to 128",
        ),
        (
            "cpus = 1\ntable = 5",
            "vm.toml:2:9: `table` is 5; it takes a table",
        ),
        (
            "cpus = 1\nrule = { msr = 1 }",
            "vm.toml:2:8: `rule` is a table; it takes a list, each a table",
        ),
        (
            "cpus = 1\nrule = [5]",
            "vm.toml:2:9: `rule[0]` is 5; it takes a table",
        ),
        (
            "cpus = 1\n[table]\nwatts = true",
            "vm.toml:3:9: `watts` is true; it takes a number",
        ),
        (
            "cpus = 1\n\n[table]",
            "vm.toml:3:1: the key `watts` is missing; it takes a number",
        ),
        (
            "cpus = 1\nunclaimed = 'ignor'",
            "vm.toml:2:13: `unclaimed` is the string \"ignor\"; did you mean \"ignore\"?",
        ),
        (
            "cpus = 1\nunclaimed = 'x'",
            "vm.toml:2:13: `unclaimed` is the string \"x\"; it takes \"fault\" or \"ignore\"",
        ),
        (
            "cpus = 1\npath = 'ü' \nrule = [{ msr = 'IA32_EFFER' }]",
            "vm.toml:3:17: no MSR is called \"IA32_EFFER\"; did you mean IA32_EFER?",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn what_is_no_toml_is_refused_where_it_ends_to_be_some() {
    for (text, start) in [
        ("cpus = 1\n[table\n", "vm.toml:2:7: "),
        ("cpus = ", "vm.toml:1:8: "),
        ("cpus = 1\ncpus = 2", "vm.toml:2:1: "),
        ("=", "vm.toml:1:1: "),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(start), "{message}");
        assert!(
            !message.contains('\n') && message.len() > start.len(),
            "{message:?}"
        );
    }
}

#[test]
fn messages_have_no_names_of_types_in_them() {
    for text in [
        "",
        "cpus = []",
        "cpus = 1\nrule = 1",
        "cpus = 1\ntable.watts = []",
    ] {
        let message = refusal(text);
        for word in ["struct", "u8", "f64", "map", "sequence", "expected"] {
            assert!(!message.contains(word), "{message}");
        }
    }
}

#[test]
fn keys_are_located_or_else_their_innermost_table() {
    let text = "cpus = 1\n[[rule]]\nmsr = 1\n[[rule]]\nmsr = 2\n[table]\n  watts = 5\n";
    let document = Document::new("-", text);
    for (key, place, has) in [
        ("cpus", (1, 8), true),
        ("rule[1].msr", (5, 7), true),
        ("rule[1].deny", (4, 1), false),
        ("rule[7].msr", (2, 1), false),
        ("table.watts", (7, 11), true),
        ("nothing", (1, 1), false),
        ("", (1, 1), true),
    ] {
        let Location { line, column, .. } = document.locate(key);
        assert_eq!((line, column), place, "{key}");
        assert_eq!(document.has(key), has, "{key}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_text_cannot_be_read() {
    let error = Document::read(Path::new("/nonexistent.toml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read /nonexistent.toml: "),
        "{error}"
    );
    let error = Document::read(Path::new("/")).unwrap_err();
    assert!(matches!(error, DocumentError::Read { .. }));
}
