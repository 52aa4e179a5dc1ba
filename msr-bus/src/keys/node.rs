//! A JSON schema as a tree of what may stand where, and kinds of value in words.

use std::collections::BTreeMap;

use serde_json::Value;

use super::LIVE;

/// How deep tables may nest. Only a schema that refers to itself comes this far.
pub(super) const MAX_DEPTH: usize = 8;

/// A schema within a document of schemas.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    root: &'a Value,
    schema: &'a Value,
}

impl<'a> Node<'a> {
    /// A whole document.
    pub(super) fn new(root: &'a Value) -> Self {
        Self { root, schema: root }
    }

    fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    pub(super) fn get(self, keyword: &str) -> Option<&'a Value> {
        self.schema.get(keyword)
    }

    pub(super) fn text(self, keyword: &str) -> Option<&'a str> {
        self.get(keyword).and_then(Value::as_str)
    }

    /// The schemas that a value may follow: this one, or the alternatives it stands for, references
    /// resolved.
    pub(super) fn alternatives(self) -> Vec<Self> {
        let mut found = Vec::new();
        self.collect_alternatives(0, &mut found);
        found
    }

    fn collect_alternatives(self, depth: usize, found: &mut Vec<Self>) {
        if depth > MAX_DEPTH {
            return;
        }
        let reference = self.text("$ref");
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
    pub(super) fn properties(self) -> BTreeMap<&'a str, Vec<Self>> {
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
    pub(super) fn contents(self, keyword: &str) -> Vec<Self> {
        let alternatives = self.alternatives();
        let schemas = alternatives.iter().filter_map(|node| node.get(keyword));
        schemas
            .filter(|s| s.is_object())
            .map(|s| self.at(s))
            .collect()
    }

    /// Whether a table may have keys that the schema says nothing of.
    pub(super) fn is_open(self) -> bool {
        self.get("additionalProperties") == Some(&Value::Bool(true))
    }

    /// The keys that a table must have.
    pub(super) fn required(self) -> impl Iterator<Item = &'a str> {
        let names = self.get("required").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The keyword stands beside a reference, where there is one, so the alternatives are not looked at.
    pub(super) fn is_live(self) -> bool {
        self.get(LIVE).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn is_required(self, key: &str) -> bool {
        // A key of one alternative among several is required there at most.
        let alternatives = self.alternatives();
        let mut tables = alternatives
            .iter()
            .filter(|node| node.get("properties").is_some())
            .peekable();
        tables.peek().is_some() && tables.all(|node| node.required().any(|name| name == key))
    }

    /// The names of JSON's types that the schema itself speaks of.
    pub(super) fn types(self) -> Vec<&'a str> {
        match self.get("type") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// The values that the schema itself names, if it lists them.
    pub(super) fn values(self) -> Option<Vec<&'a Value>> {
        if let Some(value) = self.get("const") {
            return Some(vec![value]);
        }
        let values = self.get("enum")?.as_array()?;
        Some(values.iter().filter(|v| !v.is_null()).collect())
    }

    /// The kind of value in words, such as `a number from 1 to 128`.
    pub(super) fn kind(self) -> String {
        self.kind_at(0)
    }

    fn kind_at(self, depth: usize) -> String {
        let mut kinds: Vec<String> = Vec::new();
        for node in self.alternatives() {
            for kind in node.own_kinds(depth) {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        either(&kinds)
    }

    fn own_kinds(self, depth: usize) -> Vec<String> {
        let types = self.types();
        // A table's title is the name of a type in the source.
        if let Some(title) = self.text("title")
            && !types.contains(&"object")
        {
            return vec![title.to_owned()];
        }
        if let Some(values) = self.values() {
            return values.into_iter().map(Value::to_string).collect();
        }
        let word = |kind: &str| match kind {
            "null" => None,
            "object" => Some("a table".to_owned()),
            "boolean" => Some("true or false".to_owned()),
            "string" => Some("a string".to_owned()),
            "number" => Some(self.range("a number")),
            "integer" => Some(self.range("a whole number")),
            "array" if depth < MAX_DEPTH => {
                let items = self.get("items").map(|items| self.at(items));
                Some(items.map_or("a list".into(), |items| {
                    format!("a list, each {}", items.kind_at(depth + 1))
                }))
            }
            other => Some(other.to_owned()),
        };
        types.into_iter().filter_map(word).collect()
    }

    /// A kind of number with its bounds, where the schema gives both.
    fn range(self, kind: &str) -> String {
        match (self.get("minimum"), self.get("maximum")) {
            (Some(least), Some(most)) => format!("{kind} from {least} to {most}"),
            (Some(least), None) if *least != 0 => format!("{kind} of {least} or more"),
            _ => kind.to_owned(),
        }
    }
}

/// `a, b or c`.
pub(super) fn either(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
