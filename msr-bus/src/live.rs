//! Keys of a device that change while its guest runs.
//!
//! A model marks such a key where it defines it, in its `Config`: `#[schemars(extend("x-live" = true))]`. A change goes the
//! way of a configuration: it is laid over the keys that the device was built with, all of them are checked and read as
//! if they came from a file, and the model takes over what it can ([`Model::apply`]). So a value out of range is refused with
//! the message that a file would get, and there is no second list of keys.
//!
//! A key that is a table changes key by key: what a change does not name in it stays.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use schemars::Schema;

use crate::registry::ConfigError;
use crate::{DeviceModel, Key};

/// Gives a device its keys, and the names of those that have just been changed.
type Apply = Box<dyn Fn(toml::Table, &[&str]) -> Result<(), ConfigError> + Send + Sync>;
/// Makes another device of these keys.
type Rebuild = Box<dyn Fn(toml::Table) -> Result<LiveKeys, ConfigError> + Send + Sync>;

/// The keys of one device, with what changes them.
pub struct LiveKeys {
    device: String,
    model: &'static str,
    schema: fn() -> Schema,
    keys: Mutex<Keys>,
    apply: Apply,
    rebuild: Rebuild,
}

/// The keys of a configuration, and what was set since.
#[derive(Clone, Debug)]
struct Keys {
    configured: toml::Table,
    set: toml::Table,
}

impl Keys {
    fn current(&self) -> toml::Table {
        let mut keys = self.configured.clone();
        lay_over(&mut keys, &self.set);
        keys
    }
}

/// Lays `changes` over `keys`, tables key by key.
fn lay_over(keys: &mut toml::Table, changes: &toml::Table) {
    for (key, change) in changes {
        match (keys.get_mut(key), change) {
            (Some(toml::Value::Table(keys)), toml::Value::Table(changes)) => {
                lay_over(keys, changes);
            }
            _ => drop(keys.insert(key.clone(), change.clone())),
        }
    }
}

/// The paths of what `changes` sets, such as `celsius` and `now.0x10`.
fn paths(changes: &toml::Table, within: &str, found: &mut Vec<String>) {
    for (key, change) in changes {
        let path = format!("{within}{key}");
        match change {
            toml::Value::Table(changes) => paths(changes, &format!("{path}."), found),
            _ => found.push(path),
        }
    }
}

impl LiveKeys {
    pub(crate) fn new(
        device: String,
        model: &DeviceModel,
        keys: toml::Table,
        apply: Apply,
        rebuild: Rebuild,
    ) -> Self {
        Self {
            device,
            model: model.name(),
            schema: model.schema,
            keys: Mutex::new(Keys {
                configured: keys,
                set: toml::Table::new(),
            }),
            apply,
            rebuild,
        }
    }

    /// The keys of another device, made like this one and with the keys that this one has now: to try changes on that are for
    /// later.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], where a device with these keys cannot be made any more.
    pub fn rehearsal(&self) -> Result<Self, ConfigError> {
        (self.rebuild)(self.current())
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The device's model.
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// The keys that can change, with their types and meanings.
    pub fn live(&self) -> Vec<Key> {
        let known = Key::list((self.schema)().as_value());
        known.into_iter().filter(|key| key.live).collect()
    }

    /// The keys as they are now: those of the configuration, and what was set since.
    pub fn current(&self) -> toml::Table {
        self.keys().current()
    }

    /// What was set since the device was built.
    pub fn changes(&self) -> toml::Table {
        self.keys().set.clone()
    }

    /// Changes keys, all of them or none.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], for a key that cannot change and for a value that it cannot have; nothing has changed then.
    pub fn set(&self, changes: &toml::Table) -> Result<(), ConfigError> {
        let live = self.live();
        for key in changes.keys() {
            if !live.iter().any(|live| live.key == *key) {
                let live: Vec<&str> = live.iter().map(|live| live.key.as_str()).collect();
                return Err(ConfigError::NotLive {
                    device: self.device.clone(),
                    key: key.clone(),
                    live: if live.is_empty() {
                        "none of its keys can".into()
                    } else {
                        format!("these can: {}", live.join(", "))
                    },
                });
            }
        }
        // Held while the device changes, so that what is kept is what the device has.
        let mut keys = self.keys();
        let mut changed = keys.clone();
        lay_over(&mut changed.set, changes);
        let mut named = Vec::new();
        paths(changes, "", &mut named);
        let names: Vec<&str> = named.iter().map(String::as_str).collect();
        (self.apply)(changed.current(), &names)?;
        *keys = changed;
        Ok(())
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // It changes in one assignment.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LiveKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveKeys")
            .field("device", &self.device)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
