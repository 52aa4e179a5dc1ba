//! The configuration of a VM's MSRs, as a file has it, and the plan from it.

use std::path::PathBuf;

use msr_bus::devices::table::{MAX_REGISTERS, Table};
use msr_bus::{
    ConfigError, DeviceConfig, DeviceModel, ExitReason, Fallback, FaultConfig, Model, MsrRange,
    Unclaimed,
};
use msr_filter::{FilterConfig, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::scenario::{self, ScenarioConfig};
use crate::{FilterLayer, InitialMsr, Layer, MsrPlanBuilder, PlanError, ProfileError, profile};

/// Who answers which MSR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct MsrConfig {
    /// The reasons for which KVM asks userspace; for the others it injects #GP itself. "filter": the filter denies the
    /// access. "unknown": KVM has no such MSR. "invalid": KVM rejects the value or the kind of access.
    pub exits: Vec<ExitReason>,
    /// The answer to what no device claims: `"fault"`, `"ignore"`, or a table with one for each reason.
    #[serde(deserialize_with = "uniform_or_each")]
    #[schemars(with = "WrittenFallback", extend("default" = "fault"))]
    pub unclaimed: Fallback,
    /// A profile: the name of one that comes with the program (`linux-guest`, `kvm-pv-only`, `deny-writes`), or a file. It
    /// is a layer that narrows what `filter` allows.
    #[schemars(title = "a profile's name or a path")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// What the kernel may answer, apart from what devices claim, and as far as every layer allows it.
    #[serde(skip_serializing_if = "is_default")]
    pub filter: FilterConfig,
    /// Filters that narrow what `filter` allows, `[[msr.layer]]`: a CPU model's becomes one.
    #[serde(rename = "layer", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<FilterLayer>,
    /// What MSRs that KVM keeps hold when a vCPU starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initial: Vec<InitialMsr>,
    /// Accesses that go wrong on purpose, `[[msr.fault]]`.
    #[serde(rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultConfig>,
    /// The MSR devices, which answer in userspace. What they claim is denied in the kernel, so that KVM asks them.
    #[serde(rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceConfig>,
    /// What happens to the guest from outside while it runs, step by step.
    #[serde(rename = "scenario", skip_serializing_if = "Vec::is_empty")]
    pub scenarios: Vec<ScenarioConfig>,
}

msr_bus::toml_in_binary_formats!(MsrConfig);

impl Default for MsrConfig {
    fn default() -> Self {
        Self {
            exits: ExitReason::ALL.to_vec(),
            unclaimed: Fallback::default(),
            profile: None,
            filter: no_rules(),
            layers: Vec::new(),
            initial: Vec::new(),
            faults: Vec::new(),
            devices: Vec::new(),
            scenarios: Vec::new(),
        }
    }
}

/// The kernel may answer whatever no device claims.
fn no_rules() -> FilterConfig {
    FilterConfig {
        default: Verdict::Allow,
        rules: Vec::new(),
    }
}

fn is_default(filter: &FilterConfig) -> bool {
    *filter == no_rules()
}

/// How a configuration writes a [`Fallback`].
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "\"fault\", \"ignore\", or a table that gives one of them for `filter`, `unknown` and `invalid`"
)]
enum WrittenFallback {
    Uniform(Unclaimed),
    Each(Fallback),
}

fn uniform_or_each<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Fallback, D::Error> {
    Ok(match WrittenFallback::deserialize(deserializer)? {
        WrittenFallback::Uniform(answer) => Fallback::uniform(answer),
        WrittenFallback::Each(fallback) => fallback,
    })
}

impl MsrConfig {
    /// The profile as the layer that it is, which narrows those of the configuration.
    ///
    /// # Errors
    ///
    /// [`ProfileError`].
    pub fn profile_layer(&self) -> Result<Option<FilterLayer>, ProfileError> {
        let layer = |path: &PathBuf| {
            Ok(FilterLayer {
                name: format!("profile {}", path.display()),
                filter: profile::load(path)?,
            })
        };
        self.profile.as_ref().map(layer).transpose()
    }
}

impl MsrPlanBuilder {
    /// Takes over a configuration: its devices from among `models`, its rules behind those claims, its
    /// layers and profile, exit reasons and fallback.
    ///
    /// # Errors
    ///
    /// [`PlanError::Device`], [`PlanError::Scenario`] and [`PlanError::Profile`].
    pub fn config(mut self, config: &MsrConfig, models: &[DeviceModel]) -> Result<Self, PlanError> {
        let mut in_tables = 0;
        for (number, device) in (1..).zip(&config.devices) {
            let (built, live) = device
                .build_live(models, self.context())
                .map_err(|source| PlanError::Device { number, source })?;
            if device.model == Table::TYPE {
                in_tables += built.claims().into_iter().map(MsrRange::len).sum::<u64>();
            }
            if in_tables > MAX_REGISTERS {
                let source = ConfigError::Device {
                    device: built.name().to_owned(),
                    message: format!(
                        "register: {in_tables} registers in this table and those before it are too many, all tables \
                         together hold {MAX_REGISTERS}"
                    ),
                };
                return Err(PlanError::Device { number, source });
            }
            self = self.device(built);
            self.live.push(live);
        }
        let vcpus = self.context().topology.vcpus();
        scenario::check(&config.scenarios, vcpus, &self.live)?;
        let own = Layer::from(&FilterLayer {
            name: String::new(),
            filter: config.filter.clone(),
        });
        (self.rules, self.sources) = (own.spec, own.sources);
        self.layers = config.layers.iter().map(Layer::from).collect();
        let profile = config.profile_layer()?;
        self.layers.extend(profile.as_ref().map(Layer::from));
        Ok(self
            .exits(&config.exits)
            .fallback(config.unclaimed)
            .initial(config.initial.clone())
            .faults(config.faults.clone()))
    }
}

#[cfg(test)]
mod tests {
    use msr_bus::{CpuIdentity, CpuVendor, Topology};

    use super::*;
    use crate::MsrPlan;

    fn plan(config: &str) -> Result<MsrPlan, PlanError> {
        let config: MsrConfig = toml::from_str(config).unwrap();
        let cpu = CpuIdentity {
            vendor: CpuVendor::Intel,
            signature: 0x606a6,
        };
        MsrPlan::builder(Topology::flat(1), cpu)
            .config(&config, DeviceModel::all())?
            .build()
    }

    #[test]
    fn the_registers_of_all_tables_together_are_bounded() {
        let table = |name: &str, msrs: &str| {
            format!(
                "[[device]]\ntype = \"table\"\nname = \"{name}\"\nregister = [{{ msr = \"{msrs}\" }}]\n"
            )
        };
        let full = table("a", "0x10000-0x17fff") + &table("b", "0x18000-0x1ffff");
        plan(&full).unwrap();
        let error = plan(&(full + &table("c", "0x20000"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device number 3: device `c`: register: 65537 registers in this table and those before it are too many, all \
             tables together hold 65536"
        );
    }
}
