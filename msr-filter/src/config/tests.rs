use std::string::ToString;
use std::vec;

use super::*;

const EXAMPLE: &str = r#"
default = "deny"

[[rule]]
msrs = ["IA32_PERF_STATUS", "0x600-0x63f", 0xce]
access = "r"
verdict = "allow"
reason = "Seen at boot."

[[rule]]
msrs = ["IA32_EFER"]
verdict = "allow"
weight = 7
"#;

fn example() -> FilterConfig {
    FilterConfig {
        default: Verdict::Deny,
        rules: vec![
            RuleConfig {
                msrs: vec![
                    MsrRange::single(0x198),
                    MsrRange::new(0x600, 0x63f).unwrap(),
                    MsrRange::single(0xce),
                ],
                access: Access::READ,
                verdict: Verdict::Allow,
                reason: Some("Seen at boot.".to_string()),
                weight: 0,
            },
            RuleConfig {
                msrs: vec![MsrRange::single(0xc000_0080)],
                access: Access::all(),
                verdict: Verdict::Allow,
                reason: None,
                weight: 7,
            },
        ],
    }
}

#[test]
fn toml_is_read_with_names_numbers_and_defaults() {
    assert_eq!(toml::from_str(EXAMPLE), Ok(example()));
}

#[test]
fn toml_and_json_come_back_the_same() {
    let toml = toml::to_string(&example()).unwrap();
    assert_eq!(toml::from_str(&toml), Ok(example()));
    let json = serde_json::to_string(&example()).unwrap();
    assert_eq!(
        serde_json::from_str::<FilterConfig>(&json).unwrap(),
        example()
    );
}

#[test]
fn nothing_at_all_allows_everything() {
    let empty = FilterConfig {
        default: Verdict::Allow,
        rules: vec![],
    };
    assert_eq!(toml::from_str(""), Ok(empty));
}

#[test]
fn mistakes_are_refused_with_what_would_be_right() {
    for (text, part) in [
        ("defualt = 'deny'", "unknown field `defualt`"),
        ("default = 'denied'", "unknown variant `denied`"),
        (
            "[[rule]]\nmsrs = ['IA32_EFFER']\nverdict = 'deny'",
            "did you mean IA32_EFER?",
        ),
        (
            "[[rule]]\nmsrs = [4294967296]\nverdict = 'deny'",
            "expected an MSR index (0 to 0xffffffff)",
        ),
        ("[[rule]]\nmsrs = [-1]\nverdict = 'deny'", "integer `-1`"),
        (
            "[[rule]]\nmsrs = [1]\naccess = 'x'\nverdict = 'deny'",
            "write r, w or rw",
        ),
        ("[[rule]]\nmsrs = [1]", "missing field `verdict`"),
        ("[[rule]]\nmsrs = []\nverdict = 'deny'", "at least one MSR"),
        (
            "[[rule]]\nmsrs = [1]\nverdict = 'deny'\nmsr = 2",
            "unknown field `msr`",
        ),
    ] {
        let error = toml::from_str::<FilterConfig>(text)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{text}\n{error}");
    }
}

#[test]
fn a_spec_has_a_rule_for_each_range_and_knows_where_it_came_from() {
    let config = example();
    let spec = FilterSpec::from(&config);
    assert_eq!(spec.default, Verdict::Deny);
    assert_eq!(spec.rules.len(), 4);
    assert_eq!(
        spec.rules[1],
        Rule::new(
            MsrRange::new(0x600, 0x63f).unwrap(),
            Access::READ,
            Verdict::Allow
        )
    );
    assert_eq!(spec.rules[3].weight, 7);
    let origins: Vec<_> = (0..5).map(|rule| config.origin(rule)).collect();
    assert_eq!(origins, [Some(0), Some(0), Some(0), Some(1), None]);
}

#[test]
fn a_spec_comes_back_from_configuration_unchanged() {
    let spec = FilterSpec::from(&example());
    let config = FilterConfig::from(&spec);
    assert_eq!(config.rules.len(), 2);
    assert_eq!(FilterSpec::from(&config), spec);
}
