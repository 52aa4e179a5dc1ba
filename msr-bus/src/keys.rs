//! The keys of a configuration, read off its JSON schema: to list them, and to say in words what is wrong with a table
//! that does not follow it.
//!
//! One Rust type is the source of the parser (serde), of the schema (schemars) and, by this module, of the reference and of
//! the errors, so that they cannot drift apart.

mod check;
mod node;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

pub use check::{KeyError, Problem};

use node::{MAX_DEPTH, Node};

/// The keyword of a key's schema that says that it can change while the guest runs:
/// `#[schemars(extend("x-live" = true))]`.
pub const LIVE: &str = "x-live";

/// One key that a configuration takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Where it stands in its table: `scope`, or `register[].msr` for a key of each table in a
    /// list, or `register[].fields.*.bits` for one in tables whose names are free.
    pub key: String,
    /// What kind of value it takes, in words.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it must be given.
    pub required: bool,
    /// Whether it can change while the guest runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// What holds where it is not given, if that is one value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// What it means, with its unit.
    pub description: String,
}

impl Key {
    /// Every key of a JSON schema, those of a table before those of the tables in it.
    pub fn list(schema: &Value) -> Vec<Self> {
        let mut keys = Vec::new();
        list(Node::new(schema), "", 0, &mut keys);
        keys
    }

    /// The value that holds where the key is not given, as a configuration would write it. `None` where the key is required,
    /// where there is no one value, and where it stands for nothing: an empty list or table.
    pub fn written_default(&self) -> Option<String> {
        let default = self.default.as_ref().filter(|_| !self.required)?;
        let is_empty = match default {
            Value::Array(items) => items.is_empty(),
            Value::Object(_) => true,
            Value::Null => true,
            _ => false,
        };
        (!is_empty).then(|| default.to_string())
    }
}

/// Finds what keeps `table` from following `schema`.
///
/// # Errors
///
/// The first key that is unknown, missing, or has a value of the wrong kind.
pub fn check(schema: &Value, table: &toml::Table) -> Result<(), KeyError> {
    check::check(Node::new(schema), table)
}

fn list(node: Node<'_>, path: &str, depth: usize, keys: &mut Vec<Key>) {
    if depth > MAX_DEPTH {
        return;
    }
    let properties = node.properties();
    for (key, nodes) in &properties {
        let mut kinds = Vec::new();
        for kind in nodes.iter().map(|node| node.kind()) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let default = nodes.iter().find_map(|node| node.get("default"));
        let description = nodes.iter().find_map(|node| node.text("description"));
        keys.push(Key {
            key: format!("{path}{key}"),
            kind: node::either(&kinds),
            required: node.is_required(key),
            live: nodes.iter().any(|node| node.is_live()),
            default: default.filter(|d| !d.is_null()).cloned(),
            description: description.unwrap_or_default().into(),
        });
    }
    for (key, nodes) in properties {
        for node in nodes {
            list(node, &format!("{path}{key}."), depth + 1, keys);
            for item in node.contents("items") {
                list(item, &format!("{path}{key}[]."), depth + 1, keys);
            }
            for value in node.contents("additionalProperties") {
                list(value, &format!("{path}{key}.*."), depth + 1, keys);
            }
        }
    }
}

impl fmt::Display for Key {
    /// Two or more lines: the key with its type and default, and what it means.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}: {}", self.key, self.kind)?;
        if self.required {
            write!(f, "; required")?;
        }
        if let Some(default) = self.written_default() {
            write!(f, "; default {default}")?;
        }
        if self.live {
            write!(f, "; can be set while the guest runs")?;
        }
        let mut column = WIDTH;
        for word in self.description.split_whitespace() {
            if column + 1 + word.chars().count() > WIDTH {
                write!(f, "\n        {word}")?;
                column = 8 + word.chars().count();
            } else {
                write!(f, " {word}")?;
                column += 1 + word.chars().count();
            }
        }
        writeln!(f)
    }
}

/// The columns that a description fills.
const WIDTH: usize = 100;

#[cfg(test)]
mod tests;
