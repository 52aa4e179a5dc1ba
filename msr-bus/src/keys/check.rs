//! What keeps a table from following a schema, in words.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value as Json;
use toml::Value;

use super::node::{Node, either};
use crate::nearest;

/// What is wrong with a key of a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct KeyError {
    /// The key, or the table that lacks one, from the table that was checked: `register[1].msr`, counted from 0. Empty for
    /// that table itself.
    pub key: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The table has no such key.
    Unknown {
        /// The key, without the table's path.
        key: String,
        /// The key whose name is most like it.
        nearest: Option<String>,
        /// The keys that the table may have.
        known: Vec<String>,
    },
    /// A key that must be given is not.
    Missing {
        /// The key, without the table's path.
        key: String,
        /// What it takes.
        kind: String,
    },
    /// The value is of another kind than the key takes.
    Value {
        /// The key, without the table's path.
        key: String,
        /// The value, in words.
        value: String,
        /// What the key takes.
        kind: String,
        /// Of the values that the key takes, the one most like it.
        nearest: Option<String>,
    },
}

impl fmt::Display for Problem {
    /// Writes what is wrong; what would be right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown {
                key,
                nearest,
                known,
            } => {
                write!(f, "there is no key `{key}` here; ")?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean `{nearest}`?"),
                    None => write!(f, "the keys are {}", known.join(", ")),
                }
            }
            Self::Missing { key, kind } => write!(f, "the key `{key}` is missing; it takes {kind}"),
            Self::Value {
                key,
                value,
                kind,
                nearest,
            } => {
                write!(f, "`{key}` is {value}; ")?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean {nearest}?"),
                    None => write!(f, "it takes {kind}"),
                }
            }
        }
    }
}

pub(super) fn check(node: Node<'_>, table: &toml::Table) -> Result<(), KeyError> {
    check_table(&[node], "", table)
}

/// Whether `value`, at `path` and called `key`, follows one of `nodes`.
fn check_value(nodes: &[Node<'_>], path: &str, key: &str, value: &Value) -> Result<(), KeyError> {
    let alternatives: Vec<Node<'_>> = nodes.iter().flat_map(|node| node.alternatives()).collect();
    if alternatives.is_empty() {
        return Ok(());
    }
    if alternatives.iter().any(|node| holds(*node, value)) {
        return match value {
            Value::Table(table) => check_table(&alternatives, path, table),
            Value::Array(values) => check_items(&alternatives, path, values),
            _ => Ok(()),
        };
    }
    let named = alternatives.iter().filter_map(|node| node.values());
    let named: Vec<&str> = named.flatten().filter_map(Json::as_str).collect();
    let nearest = value
        .as_str()
        .and_then(|text| nearest(text, named.iter().copied()));
    let kinds: Vec<String> = nodes.iter().map(|node| node.kind()).collect();
    Err(KeyError {
        key: path.to_owned(),
        problem: Problem::Value {
            key: key.to_owned(),
            value: words(value),
            kind: either(&kinds),
            nearest: nearest.map(|name| format!("{name:?}")),
        },
    })
}

fn check_items(nodes: &[Node<'_>], path: &str, values: &[Value]) -> Result<(), KeyError> {
    let items: Vec<_> = nodes.iter().flat_map(|n| n.contents("items")).collect();
    let mut numbered = (0..).zip(values);
    numbered.try_for_each(|(i, value)| {
        let path = format!("{path}[{i}]");
        let key = path.rsplit('.').next().unwrap_or(&path);
        check_value(&items, &path, key, value)
    })
}

fn check_table(nodes: &[Node<'_>], path: &str, table: &toml::Table) -> Result<(), KeyError> {
    let mut tables: Vec<Node<'_>> = nodes
        .iter()
        .flat_map(|node| node.alternatives())
        .filter(|node| node.types().contains(&"object") || node.get("properties").is_some())
        .collect();
    if tables.len() > 1 {
        check_keys(&tables, path, table)?;
        // Which kind of table it is may be said by a key with one value for each.
        let tagged = tables.iter().filter(|node| has_tags(**node, table));
        let tagged: Vec<_> = tagged.copied().collect();
        if !tagged.is_empty() {
            tables = tagged;
        }
    }
    let mut wrong = None;
    for node in &tables {
        match check_keys(&[*node], path, table).and_then(|()| check_missing(*node, path, table)) {
            Ok(()) => return Ok(()),
            Err(error) if is_further(&error, wrong.as_ref()) => wrong = Some(error),
            Err(_) => {}
        }
    }
    wrong.map_or(Ok(()), Err)
}

/// Whether `table` has what a kind of table has by itself: the keys that can have one value only.
fn has_tags(node: Node<'_>, table: &toml::Table) -> bool {
    node.properties().into_iter().all(|(key, nodes)| {
        let constant = nodes.iter().find_map(|node| node.get("const"));
        constant.is_none_or(|named| table.get(key).is_some_and(|value| is_same(named, value)))
    })
}

/// Whether an error is found deeper, or after the keys were all known.
fn is_further(error: &KeyError, than: Option<&KeyError>) -> bool {
    let rank = |error: &KeyError| {
        let known = !matches!(error.problem, Problem::Unknown { .. });
        (error.key.matches(['.', '[']).count(), known)
    };
    than.is_none_or(|than| rank(error) > rank(than))
}

/// Whether each key of `table` is one of those of `nodes`, and what it takes.
fn check_keys(nodes: &[Node<'_>], path: &str, table: &toml::Table) -> Result<(), KeyError> {
    let mut properties: BTreeMap<&str, Vec<Node<'_>>> = BTreeMap::new();
    for (key, found) in nodes.iter().flat_map(|node| node.properties()) {
        properties.entry(key).or_default().extend(found);
    }
    let free: Vec<_> = nodes
        .iter()
        .flat_map(|node| node.contents("additionalProperties"))
        .collect();
    let is_open = nodes.iter().any(|node| node.is_open());
    if properties.is_empty() && free.is_empty() {
        return Ok(());
    }
    for (key, value) in table {
        let at = join(path, key);
        match properties.get(key.as_str()) {
            Some(nodes) => check_value(nodes, &at, key, value)?,
            None if is_open => {}
            None if !free.is_empty() => check_value(&free, &at, key, value)?,
            None => {
                return Err(KeyError {
                    key: at,
                    problem: Problem::Unknown {
                        key: key.clone(),
                        nearest: nearest(key, properties.keys().copied()).map(str::to_owned),
                        known: properties.into_keys().map(str::to_owned).collect(),
                    },
                });
            }
        }
    }
    Ok(())
}

fn check_missing(node: Node<'_>, path: &str, table: &toml::Table) -> Result<(), KeyError> {
    let Some(key) = node.required().find(|key| !table.contains_key(*key)) else {
        return Ok(());
    };
    let properties = node.properties();
    let kinds = properties.get(key).into_iter().flatten();
    let kinds: Vec<String> = kinds.map(|node| node.kind()).collect();
    Err(KeyError {
        key: path.to_owned(),
        problem: Problem::Missing {
            key: key.to_owned(),
            kind: either(&kinds),
        },
    })
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Whether a value is of a kind that one schema speaks of. What tables and lists hold is not looked at.
fn holds(node: Node<'_>, value: &Value) -> bool {
    if let Some(values) = node.values() {
        return values.iter().any(|named| is_same(named, value));
    }
    let types = node.types();
    let is = |kind: &str| types.contains(&kind);
    match value {
        Value::String(_) => is("string"),
        Value::Boolean(_) => is("boolean"),
        Value::Integer(number) => {
            (is("integer") || is("number")) && in_range(node, *number as f64, is("string"))
        }
        Value::Float(number) => is("number") && in_range(node, *number, false),
        Value::Array(_) => is("array"),
        Value::Table(_) => is("object") || node.get("properties").is_some(),
        Value::Datetime(_) => false,
    }
}

/// `any_size` where a larger number may be written as a string: the bounds are then that type's own affair.
fn in_range(node: Node<'_>, number: f64, any_size: bool) -> bool {
    let bound = |keyword| node.get(keyword).and_then(Json::as_f64);
    any_size
        || (bound("minimum").is_none_or(|least| number >= least)
            && bound("maximum").is_none_or(|most| number <= most))
}

fn is_same(json: &Json, value: &Value) -> bool {
    match value {
        Value::String(text) => json.as_str() == Some(text),
        Value::Boolean(flag) => json.as_bool() == Some(*flag),
        Value::Integer(number) => json.as_i64() == Some(*number),
        Value::Float(number) => json.as_f64() == Some(*number),
        _ => false,
    }
}

/// How much of a value a message quotes, in characters.
const QUOTED: usize = 60;

/// A value in words, as a message names it.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > QUOTED => {
            let start: String = text.chars().take(QUOTED).collect();
            format!("the string {start:?}...")
        }
        Value::String(text) => format!("the string {text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Table(_) => "a table".into(),
        Value::Datetime(time) => format!("the date {time}"),
        other => other.to_string(),
    }
}
