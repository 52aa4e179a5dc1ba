//! A configuration laid over the model it names.

use msr_filter::MsrRange;
use toml::{Table, Value};

/// Lays `config`, the keys of a configuration, over those of a `model`.
///
/// The model's filter becomes a layer of its own, called `name`, so that the configuration's rules can narrow it and not
/// widen it. Else a key of the configuration wins over the model's, and tables are laid over each other key by key. Lists
/// are joined: layers with the configuration's first, devices and features with the model's first, and so are bits of CPUID leaves, PCI functions and faults; initial values, of which the configuration's replaces the model's for the
/// same MSR. A device of the same name and type as one of the model's (the name is the type unless given) is
/// that device, with the configuration's keys laid over the model's. Where the configuration asks for KVM's performance counters
/// (`cpu.pmu = true`), the model's device called `pmu`, which stands in for them, is left out.
pub fn overlay(config: Table, name: &str, mut model: Table) -> Table {
    if let Some(Value::Table(msr)) = model.get_mut("msr")
        && let Some(filter) = msr.remove("filter")
    {
        let mut layer = Table::new();
        layer.insert("name".into(), name.into());
        layer.insert("filter".into(), filter);
        if let Value::Array(layers) = msr.entry("layer").or_insert(Value::Array(Vec::new())) {
            layers.insert(0, Value::Table(layer));
        }
    }
    let wants_counters =
        config.get("cpu").and_then(|cpu| cpu.get("pmu")) == Some(&Value::Boolean(true));
    if wants_counters
        && let Some(Value::Array(devices)) =
            model.get_mut("msr").and_then(|msr| msr.get_mut("device"))
    {
        devices.retain(|device| device.get("name").and_then(Value::as_str) != Some(STANDS_IN));
    }
    overlay_table("", config, model)
}

/// The name of a model's device that answers where KVM's performance counters are not asked for.
const STANDS_IN: &str = "pmu";

fn overlay_table(path: &str, over: Table, mut under: Table) -> Table {
    for (key, value) in over {
        let below = under.remove(&key);
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let value = match (path.as_str(), below, value) {
            (path, Some(Value::Table(below)), Value::Table(value)) => {
                Value::Table(overlay_table(path, value, below))
            }
            ("msr.device", Some(Value::Array(below)), Value::Array(devices)) => {
                Value::Array(overlay_devices(devices, below))
            }
            ("msr.layer", Some(Value::Array(below)), Value::Array(mut layers)) => {
                layers.extend(below);
                Value::Array(layers)
            }
            ("msr.initial", Some(Value::Array(below)), Value::Array(values)) => {
                Value::Array(overlay_initial(values, below))
            }
            (
                "cpu.hide" | "cpu.show" | "cpu.leaf" | "cpu.pci" | "msr.fault",
                Some(Value::Array(mut below)),
                Value::Array(features),
            ) => {
                below.extend(features);
                Value::Array(below)
            }
            (_, _, value) => value,
        };
        under.insert(key, value);
    }
    under
}

fn overlay_devices(devices: Vec<Value>, mut under: Vec<Value>) -> Vec<Value> {
    for device in devices {
        let same = under
            .iter_mut()
            .find(|below| identity(below).is_some() && identity(below) == identity(&device));
        match (same, device) {
            // The device's own keys are replaced whole: what tables within them mean is the device's affair.
            (Some(Value::Table(below)), Value::Table(device)) => below.extend(device),
            (_, device) => under.push(device),
        }
    }
    under
}

/// A configuration's initial value takes the place of the model's for the same MSR.
fn overlay_initial(values: Vec<Value>, mut under: Vec<Value>) -> Vec<Value> {
    let index = |value: &Value| -> Option<u32> {
        let range: MsrRange = value.get("msr")?.clone().try_into().ok()?;
        Some(range.first())
    };
    for value in values {
        let same = under
            .iter_mut()
            .find(|below| index(below).is_some() && index(below) == index(&value));
        match same {
            Some(below) => *below = value,
            None => under.push(value),
        }
    }
    under
}

/// A device's type and name.
fn identity(device: &Value) -> Option<(&str, &str)> {
    let kind = device.get("type")?.as_str()?;
    let name = device.get("name").map_or(Some(kind), Value::as_str)?;
    Some((kind, name))
}
