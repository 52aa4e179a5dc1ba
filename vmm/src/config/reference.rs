//! The reference of configuration files, made of the types that read them: as a JSON Schema, and as text.

use msr_bus::{DeviceConfig, DeviceModel, Key};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;

/// A table of the file, and its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The header that begins it, such as `[vm]` or `[[vm.disk]]`; empty for the keys at the top.
    pub header: String,
    /// What it is.
    pub description: String,
    /// Its keys, without the tables in it.
    pub keys: Vec<Key>,
}

/// The sections of a configuration file, with one for each of `models`, the MSR device models there are.
pub fn sections(models: &[DeviceModel]) -> Vec<Section> {
    let keys = Key::list(schemars::schema_for!(Config).as_value());
    let mut sections = vec![Section {
        header: String::new(),
        description: String::new(),
        keys: Vec::new(),
    }];
    for key in keys {
        // A section has keys of its own: not one of words or a table, and not a table of free names.
        let is_key = [".unclaimed", ".set"]
            .iter()
            .any(|end| key.key.ends_with(end));
        let is_table = key.kind.contains("a table") && !is_key;
        if is_table {
            let name = key.key.replace("[]", "");
            let is_list = key.kind.starts_with("a list");
            sections.push(Section {
                header: if is_list {
                    format!("[[{name}]]")
                } else {
                    format!("[{name}]")
                },
                description: key.description,
                keys: Vec::new(),
            });
            continue;
        }
        let (table, name) = key.key.rsplit_once('.').unwrap_or(("", &key.key));
        let table = table.replace("[]", "");
        let name = name.to_owned();
        // The keys of `msr.unclaimed` as a table are among those of [msr].
        let (table, name) = match table.rsplit_once('.') {
            Some((parent, last)) if last == "unclaimed" => {
                (parent.to_owned(), format!("{last}.{name}"))
            }
            _ => (table, name),
        };
        let is_it = |section: &&mut Section| section.header.trim_matches(['[', ']']) == table;
        if let Some(section) = sections.iter_mut().find(is_it) {
            section.keys.push(Key { key: name, ..key });
        }
    }
    sections.sort_by_key(|section| order(&section.header));
    let devices = models.iter().map(|model| Section {
        header: format!("[[msr.device]] type = \"{}\"", model.name()),
        description: format!("{}.", model.summary()),
        keys: model.keys(),
    });
    sections.extend(devices);
    sections
}

/// The order of the file: the machine, its CPU, its MSRs; a table before those in it.
fn order(header: &str) -> (usize, String) {
    let name = header.trim_matches(['[', ']']).to_owned();
    let first = name.split('.').next().unwrap_or_default();
    let place = ["", "vm", "cpu", "msr"]
        .iter()
        .position(|top| *top == first);
    (place.unwrap_or(usize::MAX), name)
}

/// The reference as text, for a terminal.
pub fn text(models: &[DeviceModel]) -> String {
    let sections = sections(models).into_iter().map(|section| {
        let keys: String = section.keys.iter().map(ToString::to_string).collect();
        let title = [section.header.as_str(), section.description.as_str()];
        let title: Vec<&str> = title.into_iter().filter(|text| !text.is_empty()).collect();
        let lead = if title.is_empty() {
            "At the top of the file".to_owned()
        } else {
            title.join("\n  ")
        };
        format!("{lead}\n{keys}")
    });
    sections.collect::<Vec<_>>().join("\n")
}

/// The JSON Schema of configuration files (draft 7, which editors for TOML know), with the keys of each of `models`.
pub fn json_schema(models: &[DeviceModel]) -> Value {
    let mut schema = generate::<Config>();
    schema["title"] = json!("msr-vmm's configuration");
    let mut definitions = Map::new();
    let devices: Vec<Value> = models
        .iter()
        .map(|model| device_schema(model, &mut definitions))
        .collect();
    if let Some(all) = schema["definitions"].as_object_mut() {
        if !devices.is_empty() {
            all.insert(
                DeviceConfig::schema_name().into_owned(),
                json!({ "oneOf": devices }),
            );
        }
        all.extend(definitions);
    }
    schema
}

/// A schema in the draft that editors know. Bounds that only programs care for are left out.
fn generate<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

/// The schema of one model's devices. What it refers to goes to `definitions`, under the model's name.
fn device_schema(model: &DeviceModel, definitions: &mut Map<String, Value>) -> Value {
    let mut schema = model.schema().to_value();
    let prefix = format!("{}.", model.name());
    if let Some(Value::Object(own)) = schema.as_object_mut().and_then(|s| s.remove("$defs")) {
        for (name, mut definition) in own {
            refer(&mut definition, &prefix);
            definitions.insert(format!("{prefix}{name}"), definition);
        }
    }
    refer(&mut schema, &prefix);
    let mut common = DeviceConfig::json_schema(&mut Default::default()).to_value();
    common["properties"]["type"] = json!({ "const": model.name(), "description": model.summary() });
    if let (Some(object), Some(Value::Object(common))) =
        (schema.as_object_mut(), common.get("properties").cloned())
    {
        object.remove("$schema");
        object.insert("title".into(), json!(model.name()));
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.extend(common);
        }
        let required = object.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            required.insert(0, json!("type"));
        }
    }
    schema
}

/// Has references lead to the definitions of one model.
fn refer(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        let name = target.trim_start_matches("#/$defs/");
                        *target = format!("#/definitions/{prefix}{name}");
                    }
                    (_, value) => refer(value, prefix),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| refer(value, prefix)),
        _ => {}
    }
}
