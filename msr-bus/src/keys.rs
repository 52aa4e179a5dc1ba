//! The keys of a device model, read off its JSON schema: to list them, and to find the one that is misspelt.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// One key that a device model takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Where it stands in the device's table: `scope`, or `register[].msr` for a key of each table in a
    /// list, or `register[].fields.*.bits` for one in tables whose names are free.
    pub key: String,
    /// What kind of value it takes, in words.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it must be given.
    pub required: bool,
    /// What holds where it is not given, if that is one value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// What it means, with its unit.
    pub description: String,
}

/// A key that a model does not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownKey {
    /// The table it stands in: empty for the device's own, else with a `.` at the end.
    pub(crate) table: String,
    /// The key.
    pub(crate) key: String,
    /// The keys that the table may have.
    pub(crate) known: Vec<String>,
}

/// How deep tables may nest. Only a schema that refers to itself comes this far.
const MAX_DEPTH: usize = 8;

/// Every key of `schema`, those of a table before those of the tables in it.
pub(crate) fn list(schema: &Value) -> Vec<Key> {
    let mut keys = Vec::new();
    Node {
        root: schema,
        schema,
    }
    .list("", 0, &mut keys);
    keys
}

/// Finds a key of `table` that `schema` lacks, however deep it stands. Values of the wrong type are passed
/// over: deserializing tells those.
pub(crate) fn check(schema: &Value, table: &toml::Table) -> Result<(), UnknownKey> {
    Node {
        root: schema,
        schema,
    }
    .check_table("", table)
}

/// A schema within a document of schemas.
#[derive(Clone, Copy)]
struct Node<'a> {
    root: &'a Value,
    schema: &'a Value,
}

impl<'a> Node<'a> {
    fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    fn get(self, keyword: &str) -> Option<&'a Value> {
        self.schema.get(keyword)
    }

    /// The schemas that a value may follow: this one, or the alternatives it stands for, references
    /// resolved.
    fn alternatives(self) -> Vec<Self> {
        let mut found = Vec::new();
        self.collect_alternatives(0, &mut found);
        found
    }

    fn collect_alternatives(self, depth: usize, found: &mut Vec<Self>) {
        if depth > MAX_DEPTH {
            return;
        }
        let reference = self.get("$ref").and_then(Value::as_str);
        if let Some(target) = reference.and_then(|r| self.root.pointer(r.trim_start_matches('#'))) {
            self.at(target).collect_alternatives(depth + 1, found);
        }
        for keyword in ["anyOf", "oneOf", "allOf"] {
            for schema in self
                .get(keyword)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.at(schema).collect_alternatives(depth + 1, found);
            }
        }
        let own = ["type", "const", "enum", "properties"];
        if own.iter().any(|keyword| self.get(keyword).is_some()) {
            found.push(self);
        }
    }

    /// The named keys of a table that follows this schema.
    fn properties(self) -> BTreeMap<&'a str, Vec<Self>> {
        let mut found: BTreeMap<&str, Vec<Self>> = BTreeMap::new();
        for node in self.alternatives() {
            let properties = node.get("properties").and_then(Value::as_object);
            for (key, schema) in properties.into_iter().flatten() {
                found.entry(key).or_default().push(self.at(schema));
            }
        }
        found
    }

    /// What tables of free names, or lists, hold: the schemas under `keyword` of every alternative.
    fn contents(self, keyword: &str) -> Vec<Self> {
        let alternatives = self.alternatives();
        let schemas = alternatives.iter().filter_map(|node| node.get(keyword));
        schemas
            .filter(|s| s.is_object())
            .map(|s| self.at(s))
            .collect()
    }

    fn is_required(self, key: &str) -> bool {
        // A key of one alternative among several is required there at most.
        let alternatives = self.alternatives();
        let tables = alternatives
            .iter()
            .filter(|node| node.get("properties").is_some());
        tables.clone().count() > 0
            && tables.into_iter().all(|node| {
                let required = node.get("required").and_then(Value::as_array);
                required.is_some_and(|names| names.iter().any(|name| name == key))
            })
    }

    fn list(self, path: &str, depth: usize, keys: &mut Vec<Key>) {
        if depth > MAX_DEPTH {
            return;
        }
        let properties = self.properties();
        for (key, nodes) in &properties {
            let mut kinds = Vec::new();
            for kind in nodes.iter().map(|node| node.kind(0)) {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
            let text = |node: &&Node<'a>| node.get("description").and_then(Value::as_str);
            let default = nodes.iter().find_map(|node| node.get("default"));
            keys.push(Key {
                key: format!("{path}{key}"),
                kind: kinds.join(" or "),
                required: self.is_required(key),
                default: default.filter(|d| !d.is_null()).cloned(),
                description: nodes
                    .iter()
                    .find_map(|n| text(&n))
                    .unwrap_or_default()
                    .into(),
            });
        }
        for (key, nodes) in properties {
            for node in nodes {
                node.list(&format!("{path}{key}."), depth + 1, keys);
                for item in node.contents("items") {
                    item.list(&format!("{path}{key}[]."), depth + 1, keys);
                }
                for value in node.contents("additionalProperties") {
                    value.list(&format!("{path}{key}.*."), depth + 1, keys);
                }
            }
        }
    }

    /// The kind of value in words.
    fn kind(self, depth: usize) -> String {
        let mut kinds: Vec<String> = Vec::new();
        for node in self.alternatives() {
            for kind in node.own_kinds(depth) {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        kinds.join(" or ")
    }

    fn own_kinds(self, depth: usize) -> Vec<String> {
        if let Some(title) = self.get("title").and_then(Value::as_str) {
            return vec![title.to_owned()];
        }
        if let Some(value) = self.get("const") {
            return vec![value.to_string()];
        }
        if let Some(values) = self.get("enum").and_then(Value::as_array) {
            return values
                .iter()
                .filter(|v| !v.is_null())
                .map(Value::to_string)
                .collect();
        }
        let types = match self.get("type") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let word = |kind: &str| match kind {
            "null" => None,
            "object" => Some("table".to_owned()),
            "array" if depth < MAX_DEPTH => {
                let items = self
                    .get("items")
                    .map(|items| self.at(items).kind(depth + 1));
                Some(items.map_or("list".into(), |items| format!("list of {items}")))
            }
            other => Some(other.to_owned()),
        };
        types.into_iter().filter_map(word).collect()
    }

    fn check(self, path: &str, value: &toml::Value) -> Result<(), UnknownKey> {
        match value {
            toml::Value::Table(table) => self.check_table(&format!("{path}."), table),
            toml::Value::Array(values) => {
                let items = self.contents("items");
                let mut numbered = (0..).zip(values);
                numbered.try_for_each(|(i, value)| any(&items, &format!("{path}[{i}]"), value))
            }
            _ => Ok(()),
        }
    }

    fn check_table(self, path: &str, table: &toml::Table) -> Result<(), UnknownKey> {
        let properties = self.properties();
        let free = self.contents("additionalProperties");
        if properties.is_empty() && free.is_empty() {
            return Ok(());
        }
        for (key, value) in table {
            match properties.get(key.as_str()) {
                Some(nodes) => any(nodes, &format!("{path}{key}"), value)?,
                None if !free.is_empty() => any(&free, &format!("{path}{key}"), value)?,
                None => {
                    return Err(UnknownKey {
                        table: path.to_owned(),
                        key: key.clone(),
                        known: properties.into_keys().map(str::to_owned).collect(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether `value` has only known keys by one of `nodes`; else what the first of them lacks.
fn any(nodes: &[Node<'_>], path: &str, value: &toml::Value) -> Result<(), UnknownKey> {
    let mut first = Ok(());
    for node in nodes {
        match node.check(path, value) {
            Ok(()) => return Ok(()),
            error if first.is_ok() => first = error,
            Err(_) => {}
        }
    }
    first
}

impl fmt::Display for Key {
    /// Two or more lines: the key with its type and default, and what it means.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}: {}", self.key, self.kind)?;
        match &self.default {
            _ if self.required => write!(f, ", required")?,
            Some(Value::String(text)) => write!(f, ", default {text}")?,
            Some(value) => write!(f, ", default {value}")?,
            None => {}
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
