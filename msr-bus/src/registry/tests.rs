use super::*;
use crate::Topology;
use crate::testing::context;

fn build(text: &str) -> Result<Arc<dyn MsrDevice>, String> {
    let config: DeviceConfig = toml::from_str(text).unwrap();
    config
        .build(DeviceModel::all(), &context(Topology::flat(1)))
        .map_err(|error| error.to_string())
}

fn refusal(text: &str) -> String {
    build(text).err().unwrap_or_else(|| panic!("built: {text}"))
}

#[test]
fn a_device_is_called_by_its_type_unless_it_has_a_name() {
    let device = build("type = 'scratch'\nmsr = 0x400").unwrap();
    assert_eq!(device.name(), "scratch");
    let device = build("type = 'scratch'\nname = 'mine'\nmsr = 0x400").unwrap();
    assert_eq!(device.name(), "mine");
    assert_eq!(device.claims(), [crate::MsrRange::single(0x400)]);
}

#[test]
fn an_unknown_type_is_refused_with_the_nearest_one() {
    assert_eq!(
        refusal("type = 'scrach'"),
        "there is no device type `scrach`; did you mean `scratch`?"
    );
    assert_eq!(
        refusal("type = 'qqq'"),
        "there is no device type `qqq`; `msr-vmm devices` lists them"
    );
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    assert_eq!(
        refusal("type = 'scratch'\nname = 'mine'\nmsr = 1\nresset = 5"),
        "device `mine`: there is no key `resset` here; did you mean `reset`?"
    );
    let nested = refusal("type = 'table'\nregister = [{ msr = 1 }, { msr = 2, valeu = 5 }]");
    assert_eq!(
        nested,
        "device `table`: there is no key `valeu` here; did you mean `value`?"
    );
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_its_key() {
    let message = refusal("type = 'scratch'\nmsr = 1\nreset = -5");
    assert!(
        message.starts_with("device `scratch`: reset: invalid value: integer `-5`"),
        "{message}"
    );
    let message = refusal("type = 'table'\nregister = [{ msr = 'IA32_PLATFROM_ID' }]");
    assert!(
        message
            .starts_with("device `table`: register[0].msr: no MSR is called \"IA32_PLATFROM_ID\""),
        "{message}"
    );
    let message = refusal("type = 'scratch'");
    assert_eq!(
        message,
        "device `scratch`: the key `msr` is missing; it takes an MSR's index or name, or a range such as \"0x600-0x63f\""
    );
}

#[test]
fn what_the_model_itself_refuses_names_the_device() {
    assert_eq!(
        refusal("type = 'scratch'\nmsr = '0x1-0x2'"),
        "device `scratch`: msr: 0x1-0x2 is a range, and a scratch register is one MSR"
    );
}

#[test]
fn every_model_describes_each_of_its_keys_in_text_and_json() {
    for model in DeviceModel::all() {
        let text = model.to_string();
        let json = serde_json::to_value(model).unwrap();
        assert_eq!(json["type"], model.name());
        assert!(text.starts_with(&format!("{}: {}\n", model.name(), model.summary())));
        for key in model.keys() {
            assert!(text.contains(&format!("    {}: ", key.key)), "{}", key.key);
            assert!(
                !key.kind.is_empty(),
                "{}: {} has no type",
                model.name(),
                key.key
            );
            let described = !key.description.is_empty() || key.key.ends_with("from");
            assert!(
                described,
                "{}: {} has no description",
                model.name(),
                key.key
            );
        }
        assert_eq!(json["keys"].as_array().unwrap().len(), model.keys().len());
    }
}
