use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::devices::virtio::rate_limiter::RateLimiterConfig;

/// A disk as `[[vm.disk]]` or `--disk PATH[,ro][,serial=TEXT]` describes it; a rate limit is for the former alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DiskConfig {
    /// A raw image, or a block device.
    #[schemars(title = "a path")]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest reads as the disk's serial number, of which it gets 20 bytes; the file's name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How fast the guest may use it. As fast as the host can unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

msr_bus::toml_in_binary_formats!(DiskConfig);

/// Why a `--disk` argument cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDiskError {
    /// Nothing before the first comma.
    #[error("'{0}' names no file: expected PATH[,ro][,serial=TEXT]")]
    NoPath(String),
    /// Something else after a comma.
    #[error(
        "'{option}' is no option of a disk: there are ro and serial=TEXT \
         (a path with a comma in it, and a rate limit, can be given in a config file)"
    )]
    UnknownOption {
        /// The text between the commas.
        option: String,
    },
}

impl FromStr for DiskConfig {
    type Err = ParseDiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty());
        let mut disk = Self {
            path: path
                .ok_or_else(|| ParseDiskError::NoPath(text.into()))?
                .into(),
            readonly: false,
            serial: None,
            rate_limiter: None,
        };
        for option in parts {
            match option.split_once('=') {
                None if option == "ro" => disk.readonly = true,
                Some(("serial", serial)) => disk.serial = Some(serial.into()),
                _ => {
                    return Err(ParseDiskError::UnknownOption {
                        option: option.into(),
                    });
                }
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.readonly {
            f.write_str(",ro")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={serial}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_a_path_and_options() {
        let disk = |readonly, serial: Option<&str>| DiskConfig {
            path: "a/b.img".into(),
            readonly,
            serial: serial.map(Into::into),
            rate_limiter: None,
        };
        let cases = [
            ("a/b.img", disk(false, None)),
            ("a/b.img,ro", disk(true, None)),
            ("a/b.img,serial=data", disk(false, Some("data"))),
            ("a/b.img,ro,serial=data", disk(true, Some("data"))),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected.clone()));
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn arguments_that_say_something_else_are_refused() {
        for text in ["", ",ro"] {
            assert_eq!(
                text.parse::<DiskConfig>(),
                Err(ParseDiskError::NoPath(text.into()))
            );
        }
        for option in ["rw", "ro=1", "serial", ""] {
            assert_eq!(
                format!("a,{option}").parse::<DiskConfig>(),
                Err(ParseDiskError::UnknownOption {
                    option: option.into()
                })
            );
        }
    }
}
