//! Device models by name, for configurations.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::keys::{self, Key, KeyError};
use crate::{DeviceContext, LiveKeys, Model, MsrDevice, Syscall, devices, nearest};

/// A device as a configuration describes it: `type`, optionally `name`, and the model's own keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct DeviceConfig {
    /// Which model.
    #[serde(rename = "type")]
    pub model: String,
    /// What messages and tables call the device; the model's name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model's own keys.
    #[serde(flatten)]
    pub keys: toml::Table,
}

crate::toml_in_binary_formats!(DeviceConfig);

impl JsonSchema for DeviceConfig {
    fn schema_name() -> Cow<'static, str> {
        "DeviceConfig".into()
    }

    /// The keys that every device has. What else there may be is for the models to say: see [`DeviceModel::schema`].
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "Which device model answers. `msr-vmm devices` lists them, with the keys of each.",
                },
                "name": {
                    "type": "string",
                    "description": "What messages and tables call the device; the model's name unless given.",
                },
            },
            "additionalProperties": true,
        })
    }
}

/// What is wrong with a device's configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no such model.
    #[error(
        "there is no device type `{model}`; {}",
        nearest.as_ref().map_or("`msr-vmm devices` lists them".into(), |name| format!("did you mean `{name}`?"))
    )]
    UnknownModel {
        /// The type asked for.
        model: String,
        /// The model whose name is most like it.
        nearest: Option<String>,
    },
    /// A key is unknown, missing, or has a value of the wrong kind.
    #[error("device `{device}`: {error}")]
    Key {
        /// The device's name.
        device: String,
        /// Which key of the device's table, and what is wrong with it.
        error: Box<KeyError>,
    },
    /// A key has a value it cannot have.
    #[error("device `{device}`: {}{message}", in_key(key))]
    Value {
        /// The device's name.
        device: String,
        /// The key, with its path within the device's table; empty where it is not one key alone.
        key: String,
        /// What is wrong with the value.
        message: String,
    },
    /// A key cannot change while the guest runs.
    #[error("device `{device}`: `{key}` cannot change while the guest runs; {live}")]
    NotLive {
        /// The device's name.
        device: String,
        /// The key.
        key: String,
        /// Which can.
        live: String,
    },
    /// The keys are well-formed but cannot be had together or here.
    #[error("device `{device}`: {message}")]
    Device {
        /// The device's name.
        device: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

fn in_key(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}

impl ConfigError {
    /// The key of the device's table that is wrong, with its path; empty where it is the device as a whole.
    pub fn key(&self) -> &str {
        match self {
            Self::UnknownModel { .. } => "type",
            Self::Key { error, .. } => &error.key,
            Self::Value { key, .. } | Self::NotLive { key, .. } => key,
            // Models name the key first.
            Self::Device { message, .. } => message.split_once(": ").map_or("", |(key, _)| key),
        }
    }
}

type Built = (Arc<dyn MsrDevice>, LiveKeys);
type Build = fn(&DeviceModel, String, toml::Table, &DeviceContext) -> Result<Built, ConfigError>;

/// An entry of the registry: a [`Model`] with its types erased.
#[derive(Clone, Copy)]
pub struct DeviceModel {
    name: &'static str,
    summary: &'static str,
    syscalls: &'static [Syscall],
    pub(crate) schema: fn() -> Schema,
    build: Build,
}

impl DeviceModel {
    /// The entry for `M`.
    pub const fn of<M: Model>() -> Self
    where
        M::Config: DeserializeOwned + JsonSchema,
    {
        Self {
            name: M::TYPE,
            summary: M::SUMMARY,
            syscalls: M::SYSCALLS,
            schema: || schemars::schema_for!(M::Config),
            build: build::<M>,
        }
    }

    /// The models this crate comes with.
    pub fn all() -> &'static [Self] {
        devices::MODELS
    }

    /// What a configuration writes as `type`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the model is, in one line.
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// The system calls that reads and writes make on a vCPU's thread.
    pub fn syscalls(&self) -> &'static [Syscall] {
        self.syscalls
    }

    /// The model's keys, with types, defaults and descriptions, as a JSON schema.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// Whether the keys of the device called `name` are those that the model has.
    fn check(&self, name: &str, keys: &toml::Table) -> Result<(), ConfigError> {
        keys::check(self.schema().as_value(), keys).map_err(|error| ConfigError::Key {
            device: name.to_owned(),
            error: Box::new(error),
        })
    }

    /// The model's keys, those of a table before those of the tables in it. Every device has `type` and
    /// `name` besides.
    pub fn keys(&self) -> Vec<Key> {
        Key::list(self.schema().as_value())
    }
}

impl fmt::Debug for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceModel").field(&self.name).finish()
    }
}

impl fmt::Display for DeviceModel {
    /// The model and its keys with types, defaults and meanings, for people; for programs there is
    /// [`Serialize`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.summary)?;
        self.keys().iter().try_for_each(|key| write!(f, "{key}"))
    }
}

impl Serialize for DeviceModel {
    /// As `{"type": ..., "summary": ..., "keys": [...]}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut model = serializer.serialize_struct("DeviceModel", 3)?;
        model.serialize_field("type", self.name)?;
        model.serialize_field("summary", self.summary)?;
        model.serialize_field("keys", &self.keys())?;
        model.end()
    }
}

impl DeviceConfig {
    /// Makes the device from one of `models`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn build(
        &self,
        models: &[DeviceModel],
        context: &DeviceContext,
    ) -> Result<Arc<dyn MsrDevice>, ConfigError> {
        let (device, _) = self.build_live(models, context)?;
        Ok(device)
    }

    /// Makes the device from one of `models`, with what changes its keys while the guest runs.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn build_live(
        &self,
        models: &[DeviceModel],
        context: &DeviceContext,
    ) -> Result<(Arc<dyn MsrDevice>, LiveKeys), ConfigError> {
        let model = models
            .iter()
            .find(|m| m.name == self.model)
            .ok_or_else(|| {
                let nearest =
                    nearest(&self.model, models.iter().map(|m| m.name)).map(str::to_owned);
                ConfigError::UnknownModel {
                    model: self.model.clone(),
                    nearest,
                }
            })?;
        let name = self.name.clone().unwrap_or_else(|| self.model.clone());
        model.check(&name, &self.keys)?;
        (model.build)(model, name, self.keys.clone(), context)
    }
}

fn build<M: Model>(
    model: &DeviceModel,
    name: String,
    keys: toml::Table,
    context: &DeviceContext,
) -> Result<Built, ConfigError>
where
    M::Config: DeserializeOwned,
{
    let device = M::build(name.clone(), read::<M>(&name, keys.clone())?, context);
    let device = Arc::new(device.map_err(|message| ConfigError::Device {
        device: name.clone(),
        message,
    })?);
    let (changed, called, context_of_changes) = (device.clone(), name.clone(), context.clone());
    let of = *model;
    let apply = move |keys, names: &[&str]| {
        of.check(&called, &keys)?;
        let applied = changed.apply(read::<M>(&called, keys)?, names, &context_of_changes);
        applied.map_err(|message| ConfigError::Device {
            device: called.clone(),
            message,
        })
    };
    let (as_called, within) = (name.clone(), context.clone());
    let rebuild = move |keys| {
        let (_, live) = build::<M>(&of, as_called.clone(), keys, &within)?;
        Ok(live)
    };
    let live = LiveKeys::new(name, model, keys, Box::new(apply), Box::new(rebuild));
    Ok((device, live))
}

/// The keys of the device called `name` as the model has them.
fn read<M: Model>(name: &str, keys: toml::Table) -> Result<M::Config, ConfigError>
where
    M::Config: DeserializeOwned,
{
    serde_path_to_error::deserialize(toml::Value::Table(keys)).map_err(|error| {
        // The path of the table itself is a dot.
        let key = error.path().to_string().trim_matches('.').to_owned();
        ConfigError::Value {
            device: name.to_owned(),
            key,
            message: error.inner().message().trim().replace('\n', "; "),
        }
    })
}

#[cfg(test)]
mod tests;
