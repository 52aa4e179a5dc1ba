//! The keys of a `[[msr.device]]` with `type = "thermal"`, and the source of temperatures that they describe.

use std::fs::File;
use std::path::PathBuf;

use serde::Deserialize;

use super::source::{Heat, HeatConfig, Host, Temperature};
use crate::DeviceContext;
use crate::devices::host;

/// The keys of a `[[msr.device]]` with `type = "thermal"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// TjMax, the temperature at which a processor throttles itself, in degrees Celsius, 1 to 150.
    pub tjmax: u32,
    /// Where temperatures come from: "constant" (`celsius`), "model" (between `idle_celsius` and `busy_celsius`, by the
    /// CPU time that each core's vCPUs really get) or "hwmon" (a sensor of the host).
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub source: Source,
    /// With "constant": the temperature, in degrees Celsius, -100 to 200.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub celsius: f64,
    /// With "model": where a core without work ends up, in degrees Celsius, -100 to 200.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub idle_celsius: f64,
    /// With "model": where a core at work ends up, in degrees Celsius; at least `idle_celsius`.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub busy_celsius: f64,
    /// With "model": how slowly a core warms up and cools down, in seconds up to 3600: after this time it has come
    /// 63 % of the way.
    #[cfg_attr(feature = "config", schemars(extend("x-live" = true)))]
    pub seconds: f64,
    /// With "hwmon": the host's sensor, such as "/sys/class/hwmon/hwmon2/temp1_input".
    pub hwmon: Option<PathBuf>,
    /// With "hwmon": how often the sensor is read, in seconds from 0.001 to 3600. Reading one can take long, and the
    /// temperature tells of the host's other work too.
    pub hwmon_seconds: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tjmax: 100,
            source: Source::Model,
            celsius: 40.0,
            idle_celsius: 35.0,
            busy_celsius: 70.0,
            seconds: 10.0,
            hwmon: None,
            hwmon_seconds: 1.0,
        }
    }
}

/// Where temperatures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// One temperature for ever.
    Constant,
    /// CPU time.
    Model,
    /// A sensor of the host.
    Hwmon,
}

impl Config {
    /// Whether a running guest's device can take over the keys called `changed`: they must count with the source that is
    /// now configured, and that source must need nothing of the host.
    pub(super) fn check_change(&self, changed: &[&str]) -> Result<(), String> {
        if self.source == Source::Hwmon {
            // Its file is opened before the VMM gives up the right to open files.
            return Err(
                "source: the host's sensor is opened when the VM starts; \"constant\" and \"model\" can be set \
                 while the guest runs"
                    .into(),
            );
        }
        for (key, source, name) in [
            ("celsius", Source::Constant, "constant"),
            ("idle_celsius", Source::Model, "model"),
            ("busy_celsius", Source::Model, "model"),
            ("seconds", Source::Model, "model"),
        ] {
            if changed.contains(&key) && self.source != source {
                return Err(format!(
                    "{key}: it counts with source = \"{name}\"; set that too"
                ));
            }
        }
        Ok(())
    }

    /// The temperature that these keys describe, or what is wrong with them.
    pub(super) fn temperature(&self, context: &DeviceContext) -> Result<Temperature, String> {
        match self.source {
            Source::Constant => {
                let millidegrees = microdegrees("celsius", self.celsius)? / 1000;
                Ok(Temperature::Constant(millidegrees))
            }
            Source::Model => {
                let idle = microdegrees("idle_celsius", self.idle_celsius)?;
                let busy = microdegrees("busy_celsius", self.busy_celsius)?;
                if busy < idle {
                    return Err(format!(
                        "busy_celsius: {} is less than the {} of `idle_celsius`",
                        self.busy_celsius, self.idle_celsius
                    ));
                }
                let seconds = self.seconds;
                if !(0.001..=3600.0).contains(&seconds) {
                    return Err(format!("seconds: {seconds} is not between 0.001 and 3600"));
                }
                let config = HeatConfig {
                    idle,
                    busy,
                    time_constant: seconds * 1e9,
                };
                Ok(Temperature::Model(Heat::new(config, context)))
            }
            Source::Hwmon => {
                let path = self.hwmon.as_ref().ok_or(
                    "hwmon: name the host's sensor, such as \"/sys/class/hwmon/hwmon2/temp1_input\"",
                )?;
                let period = host::period("hwmon_seconds", self.hwmon_seconds)?;
                log::warn!(
                    "thermal: the guest is shown the host's temperature, read every {} s, which tells it of the host's \
                     other work",
                    self.hwmon_seconds
                );
                let host = File::open(path)
                    .and_then(|file| Host::new(Box::new(file), period, context.clock.clone()));
                host.map(Temperature::Host)
                    .map_err(|e| format!("hwmon: cannot read {}: {e}", path.display()))
            }
        }
    }
}

fn microdegrees(key: &str, celsius: f64) -> Result<i64, String> {
    if (-100.0..=200.0).contains(&celsius) {
        Ok((celsius * 1e6).round() as i64)
    } else {
        Err(format!(
            "{key}: {celsius} is not between -100 and 200 degrees Celsius"
        ))
    }
}
