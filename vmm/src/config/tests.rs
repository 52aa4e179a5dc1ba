use super::*;

fn refusal(text: &str) -> String {
    let file = Document::new("vm.toml", text);
    parse(&file, Path::new("")).unwrap_err().to_string()
}

#[test]
fn a_mistyped_key_is_an_error_that_says_where_and_the_right_key() {
    for (text, place, right) in [
        ("[vm]\ncpus = 1\nmemmory = 3\n", "3:1", "memory"),
        ("[vm]\nhugepages = true\n", "2:1", "huge_pages"),
        ("[vm.topology]\ncore = 1\n", "2:1", "cores"),
        (
            "[[vm.disk]]\npath = \"d\"\nread_only = true\n",
            "3:1",
            "readonly",
        ),
        ("[cpus]\nmodel = 1\n", "1:2", "cpu"),
        ("[msr]\nunclaimd = \"ignore\"\n", "2:1", "unclaimed"),
        ("[msr.filter]\ndefualt = \"deny\"\n", "2:1", "default"),
    ] {
        let error = refusal(text);
        assert!(error.starts_with(&format!("vm.toml:{place}: ")), "{error}");
        assert!(
            error.ends_with(&format!("did you mean `{right}`?")),
            "{error}"
        );
    }
    assert!(!refusal("[vm]\nzzz = 1\n").contains("did you mean"));
}

#[test]
fn values_of_the_wrong_kind_are_refused_in_words() {
    for (text, message) in [
        (
            "[vm]\ncpus = \"many\"",
            "vm.toml:2:8: `cpus` is the string \"many\"; it takes a whole number from 1 to 128",
        ),
        ("vm = 5", "vm.toml:1:6: `vm` is 5; it takes a table"),
        (
            "[vm]\nmemory = true",
            "vm.toml:2:10: `memory` is true; it takes a size: MiB as a number, or a string with K, M, G or T such as \"2G\"",
        ),
        (
            "[msr]\nunclaimed = \"ignor\"",
            "vm.toml:2:13: `unclaimed` is the string \"ignor\"; did you mean \"ignore\"?",
        ),
        (
            "[msr]\nunclaimed = { filter = 1 }",
            "vm.toml:2:24: `filter` is 1; it takes \"fault\" or \"ignore\"",
        ),
        (
            "[[msr.device]]\nname = \"x\"",
            "vm.toml:1:1: the key `type` is missing; it takes a string",
        ),
        (
            "[cpu]\nhide = [\"avx512\"]",
            "vm.toml:2:9: `hide[0]` is the string \"avx512\"; did you mean \"avx512f\"?",
        ),
        (
            "[[msr.filter.rule]]\nmsrs = []\nverdict = \"deny\"",
            "vm.toml:2:8: invalid length 0, expected at least one MSR",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn a_model_and_a_profile_are_told_from_a_configuration() {
    let error = refusal("summary = \"A CPU\"\n[cpu]\nfamily = 6\n");
    assert!(
        error.starts_with("vm.toml is a CPU model") && error.contains("--model"),
        "{error}"
    );
    let error = refusal("default = \"deny\"\n");
    assert!(
        error.starts_with("vm.toml is a profile") && error.contains("--profile"),
        "{error}"
    );
}

#[test]
fn every_key_of_the_reference_has_a_kind_and_a_meaning() {
    let sections = reference::sections(msr_bus::DeviceModel::all());
    let headers: Vec<&str> = sections.iter().map(|s| s.header.as_str()).collect();
    let own = [
        "",
        "[vm]",
        "[[vm.disk]]",
        "[vm.disk.rate_limiter]",
        "[vm.disk.rate_limiter.bandwidth]",
        "[vm.disk.rate_limiter.ops]",
        "[vm.entropy_rate_limiter]",
        "[vm.entropy_rate_limiter.bandwidth]",
        "[vm.entropy_rate_limiter.ops]",
        "[vm.topology]",
        "[cpu]",
        "[[cpu.leaf]]",
        "[[cpu.pci]]",
        "[[cpu.pci.register]]",
        "[msr]",
        "[[msr.device]]",
        "[[msr.fault]]",
        "[msr.filter]",
        "[[msr.filter.rule]]",
        "[[msr.initial]]",
        "[[msr.layer]]",
        "[msr.layer.filter]",
        "[[msr.layer.filter.rule]]",
        "[[msr.scenario]]",
        "[[msr.scenario.step]]",
        "[msr.scenario.step.accesses]",
        "[msr.scenario.step.write]",
    ];
    assert_eq!(headers[..own.len()], own);
    assert_eq!(headers.len(), own.len() + msr_bus::DeviceModel::all().len());
    for section in &sections {
        let within = |other: &&&str| other.starts_with(section.header.trim_end_matches(']'));
        // Or tables alone.
        let has_tables = headers.iter().filter(within).count() > 1;
        assert!(!section.keys.is_empty() || has_tables, "{}", section.header);
        for key in &section.keys {
            let place = format!("{} {}", section.header, key.key);
            assert!(!key.kind.is_empty(), "{place} has no kind");
            assert!(
                !key.description.is_empty() || key.key.ends_with("from"),
                "{place} has no meaning"
            );
        }
    }
    let text = reference::text(msr_bus::DeviceModel::all());
    for key in [
        "topology",
        "prefault",
        "huge_pages",
        "hide",
        "show",
        "brand",
        "base_mhz",
        "unclaimed.filter",
    ] {
        assert!(text.contains(key), "{key}");
    }
    assert!(
        text.contains("    cpus: a whole number from 1 to 128; default 1\n"),
        "{text}"
    );
}

/// Every reference in the schema leads somewhere.
#[test]
fn the_schema_is_whole() {
    let schema = reference::json_schema(msr_bus::DeviceModel::all());
    let text = schema.to_string();
    let targets = text.split("\"$ref\":\"#").skip(1);
    let mut count = 0;
    for target in targets.filter_map(|rest| rest.split('"').next()) {
        assert!(schema.pointer(target).is_some(), "{target}");
        count += 1;
    }
    assert!(count > 10, "{count}");
    let devices = schema["definitions"]["DeviceConfig"]["oneOf"]
        .as_array()
        .unwrap();
    assert_eq!(devices.len(), msr_bus::DeviceModel::all().len());
    for device in devices {
        assert_eq!(device["additionalProperties"], false, "{}", device["title"]);
        assert_eq!(device["required"][0], "type");
    }
}

#[test]
fn bounds_that_the_schema_states_are_kept_by_the_parser() {
    for (text, refused) in [
        ("[vm]\ncpus = 128", false),
        ("[vm]\ncpus = 129", true),
        ("[vm]\ncpus = 0", true),
        ("[vm]\nmemory = 2", false),
        ("[vm]\nmemory = 1", true),
        ("[vm]\nmemory = \"64k\"", true),
    ] {
        let (config, _) = parse(&Document::new("-", text), Path::new("")).unwrap();
        assert_eq!(config.vm.check().is_err(), refused, "{text}");
    }
}

#[test]
fn numbers_of_a_rate_limit_that_cannot_be_are_told_with_their_place() {
    let disk = "[[vm.disk]]\npath = \"a\"\n[[vm.disk]]\npath = \"b\"\n";
    for (text, message) in [
        (
            format!("{disk}rate_limiter.ops = {{ size = 0, refill_time = 1 }}\n"),
            "vm.toml:5:29: vm.disk[1].rate_limiter.ops.size is 0; it takes a whole number from 1 to 1125899906842624",
        ),
        (
            format!("{disk}rate_limiter.bandwidth = {{ size = 1, refill_time = 0 }}\n"),
            "vm.toml:5:52: vm.disk[1].rate_limiter.bandwidth.refill_time is 0; it takes a whole number from 1 to 86400000",
        ),
        (
            "[vm.entropy_rate_limiter]\nops = { size = 9_000_000_000_000_000_000, refill_time = 1 }\n"
                .to_owned(),
            "vm.toml:2:16: vm.entropy_rate_limiter.ops.size is 9000000000000000000; it takes a whole number from 1 to 1125899906842624",
        ),
        (
            "[vm.entropy_rate_limiter.ops]\nsize = 1\nrefill_time = 1\none_time_burst = 1_125_899_906_842_625\n"
                .to_owned(),
            "vm.toml:4:18: vm.entropy_rate_limiter.ops.one_time_burst is 1125899906842625; it takes a whole number from 0 to 1125899906842624",
        ),
    ] {
        let file = Document::new("vm.toml", text);
        let loaded = LoadedConfig::of(file, Path::new(""), None).unwrap();
        let error = loaded.config.vm.check().unwrap_err();
        assert_eq!(loaded.describe(&error.into()), message);
    }
    for (text, message) in [
        (
            "[vm.entropy_rate_limiter]\nops = { size = -1, refill_time = 1 }\n",
            "vm.toml:2:16: `size` is -1; it takes a whole number from 1 to 1125899906842624",
        ),
        (
            "[vm.entropy_rate_limiter]\nops = { size = 1 }\n",
            "vm.toml:2:7: the key `refill_time` is missing; it takes a whole number from 1 to 86400000",
        ),
        (
            "[vm.entropy_rate_limiter]\nop = { size = 1, refill_time = 1 }\n",
            "vm.toml:2:1: there is no key `op` here; did you mean `ops`?",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn a_rate_limit_that_limits_nothing_is_told() {
    let text = "[vm]\nentropy_rate_limiter = {}\n[[vm.disk]]\npath = \"a\"\nrate_limiter = {}\n";
    let (config, _) = parse(&Document::new("-", text), Path::new("")).unwrap();
    let warnings = config.vm.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("vm.entropy is false"), "{warnings:?}");
    assert!(
        warnings[1].starts_with("vm.disk[0].rate_limiter limits nothing"),
        "{warnings:?}"
    );
}

#[test]
fn a_disk_that_is_written_to_can_be_given_once() {
    let disk = |readonly| crate::devices::virtio::block::DiskConfig {
        path: "/nonexistent/disk".into(),
        readonly,
        serial: None,
        rate_limiter: None,
    };
    for (first, second, refused) in [
        (true, true, false),
        (true, false, true),
        (false, false, true),
    ] {
        let vm = VmConfig {
            disks: vec![disk(first), disk(second)],
            ..VmConfig::default()
        };
        let twice = matches!(vm.check(), Err(ConfigError::DiskTwice { .. }));
        assert_eq!(twice, refused, "{first} {second}");
    }
}
