use msr_bus::{DeviceModel, Topology};
use msr_filter::{Access, FilterSpec, Verdict, Warning};

mod save;

use super::*;
use crate::Config;
use crate::cpu::{Feature, Vendor};

fn table(text: &str) -> toml::Table {
    toml::from_str(text).unwrap()
}

fn layered(config: &str, model: &str) -> Config {
    overlay(table(config), "model m", table(model))
        .try_into()
        .unwrap()
}

#[test]
fn the_configurations_keys_win_over_the_models() {
    let config = layered(
        "[cpu]\nstepping = 7\n[msr]\nunclaimed = \"ignore\"",
        "[cpu]\nstepping = 6\nmodel = 106\n[msr]\nunclaimed = \"fault\"\nexits = [\"filter\"]",
    );
    assert_eq!(
        (config.cpu.stepping, config.cpu.model),
        (Some(7), Some(106))
    );
    assert_eq!(
        config.msr.unclaimed,
        msr_bus::Fallback::uniform(msr_bus::Unclaimed::Ignore)
    );
    assert_eq!(config.msr.exits, [msr_bus::ExitReason::Filter]);
}

#[test]
fn a_configuration_narrows_its_models_filter_and_cannot_widen_it() {
    let rule = |msr: &str, verdict| {
        format!("[[msr.filter.rule]]\nmsrs = [\"{msr}\"]\nverdict = \"{verdict}\"\n")
    };
    let config = layered(
        &(rule("IA32_PAT", "deny") + &rule("0x4b564d00", "allow")),
        &("[msr.filter]\ndefault = \"deny\"\n".to_owned()
            + &rule("IA32_PAT", "allow")
            + &rule("IA32_EFER", "allow")),
    );
    let plan = plan(&config, Topology::flat(1));
    let verdict = |index| plan.spec.verdict(index, Access::READ);
    assert_eq!(verdict(0x277), Verdict::Deny, "narrowed");
    assert_eq!(verdict(0xc000_0080), Verdict::Allow);
    assert_eq!(verdict(0x4b56_4d00), Verdict::Deny, "not widened");
    assert_eq!(verdict(0x10), Verdict::Deny);
    let lost: Vec<String> = plan.lost.iter().map(ToString::to_string).collect();
    assert_eq!(lost.len(), 2, "{lost:#?}");
    assert!(
        lost[0].starts_with("model m, rule 1 allows 0x277"),
        "{lost:#?}"
    );
    assert!(lost[1].starts_with("rule 2 allows 0x4b564d00"), "{lost:#?}");
}

#[test]
fn a_profile_does_not_widen_a_model() {
    for model in BuiltIn::all() {
        let alone = plan(&built_in(model), Topology::flat(1));
        for profile in ["linux-guest", "kvm-pv-only", "deny-writes"] {
            let mut config = built_in(model);
            config.msr.profile = Some(profile.into());
            let both = plan(&config, Topology::flat(1));
            for change in alone.filter.diff(&both.filter) {
                assert_eq!(
                    change.to,
                    Verdict::Deny,
                    "{} with {profile}: {change:?}",
                    model.name
                );
            }
        }
    }
}

#[test]
fn a_device_of_the_same_name_is_the_models_with_keys_changed() {
    let model = "[[msr.device]]\ntype = \"rapl\"\nidle_watts = 1.0\nbusy_watts = 5.0\n";
    let config = layered(
        "[[msr.device]]\ntype = \"rapl\"\nbusy_watts = 9.0\n\
         [[msr.device]]\ntype = \"rapl\"\nname = \"other\"\n\
         [[msr.device]]\ntype = \"scratch\"\nname = \"rapl\"\nmsr = 1\n",
        model,
    );
    let [rapl, other, scratch] = config.msr.devices.try_into().unwrap();
    assert_eq!(rapl.keys, table("idle_watts = 1.0\nbusy_watts = 9.0"));
    assert_eq!(other.keys, toml::Table::new());
    assert_eq!(scratch.model, "scratch");
}

#[test]
fn an_initial_value_takes_the_place_of_the_models_for_the_same_msr() {
    let initial = |msr: &str, value| format!("[[msr.initial]]\nmsr = {msr}\nvalue = {value}\n");
    let config = layered(
        &(initial("0x8b", 7) + &initial("0x174", 2)),
        &(initial("\"IA32_BIOS_SIGN_ID\"", 1) + &initial("0x10a", 3)),
    );
    let values: Vec<_> = config
        .msr
        .initial
        .iter()
        .map(|i| (i.index, i.value))
        .collect();
    assert_eq!(values, [(0x8b, 7), (0x10a, 3), (0x174, 2)]);
}

#[test]
fn an_msr_has_one_initial_value_and_no_device_beside_it() {
    let refused = |config: &str| {
        let config: Config = toml::from_str(config).unwrap();
        let plan = try_plan(&config, Topology::flat(1), std::time::Duration::ZERO);
        plan.err().unwrap().to_string()
    };
    let initial = "[[msr.initial]]\nmsr = 0x8b\nvalue = 1\n";
    let error = refused(&format!("{initial}{initial}"));
    assert!(
        error.contains("initial values 1 and 2 are both for MSR 0x8b"),
        "{error}"
    );
    let error = refused(&format!(
        "{initial}[[msr.device]]\ntype = \"scratch\"\nmsr = 0x8b\n"
    ));
    assert!(error.contains("device `scratch` claims 0x8b"), "{error}");
}

/// What answers a counter of AMD's, with these keys over the Zen 3 model.
fn counter_of_zen_3(keys: &str) -> (bool, Verdict) {
    let model = BuiltIn::all()
        .iter()
        .find(|m| m.name == "zen3-server")
        .unwrap();
    // A summary is a model file's alone.
    let text = model.text.replacen("summary", "#", 1);
    let config = layered(keys, &text);
    let plan = plan(&config, Topology::flat(1));
    let index = 0xc001_0004;
    (
        plan.bus.device(index).is_some(),
        plan.filter.verdict(index, Access::READ),
    )
}

#[test]
fn kvms_counters_take_the_place_of_a_models_on_request_only() {
    for keys in ["", "[cpu]\npmu = false"] {
        assert_eq!(counter_of_zen_3(keys), (true, Verdict::Deny), "{keys}");
    }
    let kvms = counter_of_zen_3("[cpu]\npmu = true");
    assert_eq!(kvms, (false, Verdict::Allow));
}

#[test]
fn features_of_both_are_hidden() {
    let config = layered("[cpu]\nhide = [\"avx2\"]", "[cpu]\nhide = [\"pdcm\"]");
    let names: Vec<_> = config.cpu.hide.iter().map(Feature::name).collect();
    assert_eq!(names, ["pdcm", "avx2"]);
}

#[test]
fn an_unknown_model_is_refused_with_those_there_are() {
    let error = ModelName::new("icelake").load().unwrap_err().to_string();
    assert!(error.contains("`icelake`"), "{error}");
    for model in BuiltIn::all() {
        assert!(error.contains(model.name), "{error}");
    }
}

#[test]
fn a_path_is_told_from_a_name_and_is_relative_to_the_configurations_folder() {
    let in_folder = |name: &str, folder: &str| {
        ModelName::new(name)
            .in_folder(Path::new(folder))
            .to_string()
    };
    assert_eq!(in_folder("zen3-server", "/etc/vm"), "zen3-server");
    assert_eq!(in_folder("mine.toml", "/etc/vm"), "/etc/vm/mine.toml");
    assert_eq!(in_folder("models/mine", "vm"), "vm/models/mine");
    assert_eq!(in_folder("/mine", "vm"), "/mine");
    assert_eq!(in_folder("mine.toml", ""), "./mine.toml");
}

/// A model of the program's, as a configuration without more has it.
fn built_in(model: &BuiltIn) -> Config {
    Config::load(None, Some(&ModelName::new(model.name))).unwrap()
}

#[test]
fn every_built_in_model_says_what_it_is_and_each_rule_why_it_is_there() {
    for model in BuiltIn::all() {
        let file: ModelFile = toml::from_str(model.text).unwrap();
        assert!(!file.summary.is_empty(), "{}", model.name);
        for rule in &file.msr.filter.rules {
            let reason = rule.reason.as_deref().unwrap_or_default();
            assert!(reason.ends_with('.'), "{}: {rule:?}", model.name);
        }
    }
}

#[test]
fn a_built_in_model_has_what_it_lists_and_nothing_else() {
    for model in BuiltIn::all() {
        let config = built_in(model);
        let plan = plan(&config, Topology::flat(2));
        let [layer] = config.msr.layers.as_slice() else {
            panic!("{}: {:?}", model.name, config.msr.layers);
        };
        assert_eq!(layer.name, format!("model {}", model.name));
        assert_eq!(layer.filter.default, Verdict::Deny);
        assert_eq!(
            plan.bus.fallback(),
            msr_bus::Fallback::uniform(msr_bus::Unclaimed::Fault),
            "{}",
            model.name
        );
        // No MSR of KVM's paravirtual interface, and none of Hyper-V's.
        for index in [0x11, 0x12, 0x4b56_4d00, 0x4000_0000] {
            assert_eq!(
                plan.filter.verdict(index, Access::READ),
                Verdict::Deny,
                "{}",
                model.name
            );
            assert!(plan.bus.device(index).is_none(), "{}", model.name);
        }
        for warning in FilterSpec::from(&layer.filter).warnings() {
            // What a device answers needs no rule, and AMD has no IA32_MISC_ENABLE.
            let amd = config.cpu.vendor == Some(Vendor::AMD);
            let missing = match &warning {
                Warning::LinuxNeeds { missing } => missing,
                Warning::LinuxNeedsOnIntel { .. } if amd => continue,
                Warning::LinuxNeedsOnIntel { missing } => missing,
                _ => panic!("{}: {warning}", model.name),
            };
            for (index, _) in missing {
                assert!(
                    plan.bus.device(*index).is_some(),
                    "{}: {warning}",
                    model.name
                );
            }
        }
    }
}

fn plan(config: &Config, topology: Topology) -> msr_kvm::MsrPlan {
    plan_at(config, topology, std::time::Duration::ZERO)
}

fn plan_at(config: &Config, topology: Topology, time: std::time::Duration) -> msr_kvm::MsrPlan {
    try_plan(config, topology, time).unwrap()
}

/// The plan for a machine whose clock stands still at `time`, with vCPUs that got a quarter of it and a TSC of 2 GHz.
fn try_plan(
    config: &Config,
    topology: Topology,
    time: std::time::Duration,
) -> Result<msr_kvm::MsrPlan, msr_kvm::PlanError> {
    struct At(std::time::Duration);
    impl msr_bus::CpuClock for At {
        fn now(&self) -> std::time::Duration {
            self.0
        }
        fn cpu_time(&self, _: msr_bus::VcpuId) -> std::time::Duration {
            self.0 / 4
        }
        fn tsc_khz(&self) -> Option<u32> {
            Some(2_000_000)
        }
    }
    msr_kvm::MsrPlan::builder(topology, config.cpu.cpu_identity().unwrap())
        .device_clock(std::sync::Arc::new(At(time)))
        .config(&config.msr, DeviceModel::all())
        .and_then(msr_kvm::MsrPlanBuilder::build)
}

#[test]
fn every_device_of_a_built_in_model_is_one_there_is() {
    for model in BuiltIn::all() {
        for device in built_in(model).msr.devices {
            assert!(
                DeviceModel::all().iter().any(|m| m.name() == device.model),
                "{}: {}",
                model.name,
                device.model
            );
        }
    }
}
