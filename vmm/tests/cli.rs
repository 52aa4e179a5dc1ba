//! The commands of `msr-vmm` that need no KVM.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn msr_vmm(arguments: &[&str]) -> Output {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_msr-vmm"));
    command
        .args(arguments)
        .current_dir(repository)
        .output()
        .expect("msr-vmm runs")
}

/// The standard output of a command that succeeds.
fn stdout(arguments: &[&str]) -> String {
    let output = msr_vmm(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{stderr}",
        output.status
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The standard error of a command that is refused for what it was given.
fn refusal(arguments: &[&str]) -> String {
    let output = msr_vmm(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// A configuration in a file that goes with the value.
struct ConfigFile(std::path::PathBuf);

impl ConfigFile {
    fn new(test: &str, text: &str) -> Self {
        let name = format!("msr-vmm-cli-{test}-{}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const CONFIG: &str = r#"
    msr.exits = ["filter"]

    [[msr.filter.rule]]
    msrs = ["0xfe", "0x200-0x20f"]
    access = "w"
    verdict = "deny"
    reason = "the memory types stay"

    [[msr.device]]
    type = "scratch"
    name = "notes"
    msr = "0x400000f8"
"#;

#[test]
fn the_filter_as_json_denies_the_claims_and_what_the_rules_deny() {
    let config = ConfigFile::new("json", CONFIG);
    let json: Value = serde_json::from_str(&stdout(&["filter", config.path(), "--json"])).unwrap();
    assert_eq!(json["default"], "allow");
    assert_eq!(json["warnings"], serde_json::json!([]));
    let ranges = json["ranges"].as_array().unwrap();
    let spans: Vec<_> = ranges
        .iter()
        .map(|r| {
            (
                r["access"].as_str().unwrap(),
                r["base"].as_u64().unwrap(),
                r["nmsrs"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(spans.len(), 2);
    assert!(
        spans.contains(&("w", 0xfe, 0x200 + 16 - 0xfe)),
        "{spans:x?}"
    );
    assert!(spans.contains(&("rw", 0x4000_00f8, 1)), "{spans:x?}");
    for range in ranges {
        let hex = range["bitmap"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let (base, nmsrs) = (
            range["base"].as_u64().unwrap(),
            range["nmsrs"].as_u64().unwrap(),
        );
        assert_eq!(bytes.len() as u64, nmsrs.div_ceil(64) * 8);
        for i in 0..nmsrs {
            let allowed = bytes[i as usize / 8] >> (i % 8) & 1 == 1;
            let index = base + i;
            let denied = [0xfe, 0x4000_00f8].contains(&index) || (0x200..=0x20f).contains(&index);
            assert_eq!(allowed, !denied, "{index:#x}");
        }
    }
}

#[test]
fn a_difference_lists_what_changes_its_verdict_and_nothing_else() {
    let config = ConfigFile::new("diff", CONFIG);
    let other = ConfigFile::new("diff-other", &CONFIG.replace("\"0xfe\", ", ""));
    let text = stdout(&["filter", config.path(), "--diff", other.path()]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows, [["0xfe", "w", "deny", "allow", "IA32_MTRRCAP"]]);
    let same = stdout(&["filter", config.path(), "--diff", config.path()]);
    assert_eq!(same, "no access changes its verdict\n");
}

#[test]
fn rules_without_effect_are_told_by_their_place() {
    let config = ConfigFile::new(
        "warn",
        "[[msr.filter.rule]]\nmsrs = [\"0x10-0x20\"]\nverdict = \"deny\"\n\
         [[msr.filter.rule]]\nmsrs = [\"0x11\"]\nverdict = \"allow\"\n\
         [[msr.filter.rule]]\nmsrs = [\"0x802\"]\nverdict = \"deny\"\n",
    );
    let text = stdout(&["filter", config.path()]);
    let warnings: Vec<&str> = text.lines().filter(|l| l.starts_with("warning:")).collect();
    assert_eq!(warnings.len(), 2, "{text}");
    assert!(warnings[0].contains("rule 2 on 0x11") && warnings[0].contains("rule 1 on 0x10-0x20"));
    assert!(warnings[1].contains("rule 3 on 0x802") && warnings[1].contains("x2APIC"));
}

#[test]
fn a_denied_write_of_the_deadline_timer_is_told_to_reach_some_kernels_all_the_same() {
    let config = ConfigFile::new(
        "deadline",
        "[[msr.filter.rule]]\nmsrs = [\"IA32_TSC_DEADLINE\"]\naccess = \"w\"\nverdict = \"deny\"\n",
    );
    let warned = "writes of IA32_TSC_DEADLINE (0x6e0) are denied, and KVM on Intel may take them all the same";
    let text = stdout(&["filter", config.path()]);
    assert!(text.contains(warned), "{text}");
    let text = stdout(&["explain", "0x6e0", "--config", config.path()]);
    assert!(text.contains("KVM on Intel may take"), "{text}");
}

#[test]
fn explain_says_who_answers_a_read_and_a_write_and_which_rule_made_it_so() {
    let config = ConfigFile::new("explain", CONFIG);
    let explain = |msr: &str| {
        let text = stdout(&["explain", msr, "--config", config.path()]);
        let (read, write) = text.split_once("\n  write ").expect("a read and a write");
        (read.to_owned(), write.trim_start().to_owned())
    };
    let (read, write) = explain("0x400000f8");
    for text in [read, write] {
        assert!(
            text.contains("device `notes`") && text.contains("the claim of device `notes`"),
            "{text}"
        );
    }
    let (read, write) = explain("IA32_MTRRCAP");
    assert!(
        read.contains("MSR 0xfe IA32_MTRRCAP") && read.contains("the kernel (KVM)"),
        "{read}"
    );
    // Unknown MSRs do not reach userspace here, and it says so.
    assert!(read.contains("msr.exits lacks \"unknown\""), "{read}");
    assert!(
        write.starts_with("#GP") && write.contains("rule 1 says"),
        "{write}"
    );
    assert!(
        write.contains("the memory types stay") && write.contains("msr.unclaimed says fault"),
        "{write}"
    );
    let (read, _) = explain("0x830");
    assert!(
        read.contains("the kernel (KVM)") && read.contains("never filters"),
        "{read}"
    );
}

#[test]
fn a_model_and_a_profile_narrow_each_other_and_each_rule_is_told_with_its_layer() {
    let config = ConfigFile::new(
        "layers",
        "model = \"icelake-server\"\n[msr]\nprofile = \"kvm-pv-only\"\n\
         [[msr.filter.rule]]\nmsrs = [\"0x4b564d00\"]\nverdict = \"allow\"\n",
    );
    let explain = |msr: &str| stdout(&["explain", msr, "--config", config.path()]);
    // The profile allows kvmclock's MSR, the configuration too, and an Ice Lake server does not have it.
    let text = explain("0x4b564d01");
    for part in [
        "#GP",
        "the default of model icelake-server is deny",
        "profile kvm-pv-only, rule",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = explain("IA32_PAT");
    assert!(
        text.contains("model icelake-server, rule 3 says allow"),
        "{text}"
    );
    let text = stdout(&["filter", config.path()]);
    assert!(
        text.contains(
            "warning: rule 1 allows 0x4b564d00 (rw), which the default of model icelake-server denies"
        ),
        "{text}"
    );
}

#[test]
fn what_linux_needs_is_told_by_the_vendor_that_the_guest_is_shown() {
    let needs = |vendor: &str| {
        let config = ConfigFile::new(
            &format!("needs-{vendor}"),
            &format!(
                "[cpu]\nvendor = \"{vendor}\"\nfamily = 25\nmodel = 1\n[msr.filter]\ndefault = \"deny\"\n"
            ),
        );
        let text = stdout(&["filter", config.path()]);
        assert!(
            text.contains("no Linux guest boots without: IA32_MCG_STATUS"),
            "{text}"
        );
        text.contains("IA32_MISC_ENABLE")
    };
    assert!(!needs("AuthenticAMD"));
    assert!(needs("GenuineIntel"));
    let zen3 = ConfigFile::new("needs-zen3", "model = \"zen3-server\"\n");
    let text = stdout(&["filter", zen3.path()]);
    assert!(!text.contains("no Linux guest"), "{text}");
}

#[test]
fn a_wrong_msr_name_is_refused_with_the_nearest_right_one() {
    let config = ConfigFile::new("name", CONFIG);
    let error = refusal(&["explain", "MSR_PLATFROM_INFO", "--config", config.path()]);
    assert!(
        error.contains("MSR_PLATFROM_INFO") && error.contains("MSR_PLATFORM_INFO"),
        "{error}"
    );
    assert!(refusal(&["explain", "0x10-0x20", "--config", config.path()]).contains("range"));
    assert!(refusal(&["filter", "/nonexistent"]).contains("/nonexistent"));
}

/// Whoever is shown the host's sensors learns of the host's other work, and whoever reaches a fixed CPU interrupts it.
#[test]
fn a_device_that_shows_a_guest_its_host_is_warned_of_with_how_often_it_reads() {
    let sensor = ConfigFile::new("sensor", "42000\n");
    let thermal = format!(
        "[[msr.device]]\ntype = \"thermal\"\nsource = \"hwmon\"\nhwmon = {:?}\nhwmon_seconds = 2.5\n",
        sensor.path()
    );
    let rapl =
        "[[msr.device]]\ntype = \"rapl\"\nsource = \"powercap\"\npowercap = \"/nonexistent\"\n";
    for (test, config, words) in [
        (
            "hwmon",
            thermal.as_str(),
            ["the host's temperature", "every 2.5 s"],
        ),
        // There may be no such directory here, which is told after it.
        (
            "powercap",
            rapl,
            ["share of the host's energy", "every 1 s"],
        ),
    ] {
        let config = ConfigFile::new(test, config);
        let output = msr_vmm(&["filter", config.path()]);
        let error = String::from_utf8_lossy(&output.stderr);
        let warned =
            |line: &str| line.contains("WARN") && words.iter().all(|word| line.contains(word));
        assert!(error.lines().any(warned), "{error}");
    }
}

#[test]
fn rules_that_do_not_fit_are_refused_with_what_to_do_without() {
    let rules: Vec<String> = (1..=17)
        .map(|i| {
            format!(
                "[[msr.filter.rule]]\nmsrs = [\"{:#x}\"]\nverdict = \"deny\"\n",
                i << 20
            )
        })
        .collect();
    let config = ConfigFile::new("many", &rules.concat());
    let error = refusal(&["filter", config.path()]);
    assert!(
        error.contains("17 filter ranges") && error.contains("rule 1 on 0x100000 (leaves 16)"),
        "{error}"
    );
    // Of 16 ways to make it fit, some are enough.
    assert!(error.ends_with("; or in 12 more ways\n"), "{error}");
}

#[test]
fn what_is_to_be_said_of_many_ranges_of_a_rule_is_said_once() {
    let ranges: Vec<String> = (0..400)
        .map(|i| format!("\"{:#x}\"", 0x400 + 2 * i))
        .collect();
    let ranges = ranges.join(", ");
    let shadowed = ConfigFile::new(
        "shadowed-many",
        &format!(
            "[[msr.filter.rule]]\nmsrs = [{ranges}]\nverdict = \"allow\"\n\
             [[msr.filter.rule]]\nmsrs = [{ranges}]\nverdict = \"deny\"\n"
        ),
    );
    let text = stdout(&["filter", shadowed.path()]);
    let warnings: Vec<&str> = text.lines().filter(|l| l.starts_with("warning:")).collect();
    let expected = "warning: rule 2 on 400 ranges in 0x400-0x71e has no effect: what comes before decides all it speaks of, \
                    first rule 1 on 0x400";
    assert_eq!(warnings, [expected]);

    let above = ConfigFile::new(
        "above",
        &format!("[[msr.filter.rule]]\nmsrs = [{ranges}]\nverdict = \"allow\"\n"),
    );
    let text = stdout(&["filter", above.path(), "--model", "zen3-server"]);
    let lost: Vec<&str> = text
        .lines()
        .filter(|l| l.contains("stays denied"))
        .collect();
    assert_eq!(lost.len(), 1, "{text}");
    // As `run` says it, which is told once too.
    let output = msr_vmm(&[
        "run",
        "--config",
        above.path(),
        "--model",
        "zen3-server",
        "--print-config",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.matches("stays denied").count(), 1, "{error}");
    // What a model and a profile deny of each other, `run` tells as `filter` does.
    let both = ["--model", "zen3-server", "--profile", "linux-guest"];
    let text = stdout(&[&["filter"][..], &both].concat());
    let output = msr_vmm(&[&["run", "--print-config"][..], &both].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    let told = |text: &str| text.matches("stays denied").count();
    assert!(told(&text) > 20, "{text}");
    assert_eq!(told(&error), told(&text), "{error}");
    assert!(
        lost[0].contains("rule 1 allows ") && lost[0].contains(" ranges in 0x"),
        "{text}"
    );

    // Each range of the rule is in a bitmap of its own.
    let spread: Vec<String> = (1..=400).map(|i| format!("\"{:#x}\"", i << 16)).collect();
    let spread = spread.join(", ");
    let rule = format!("[[msr.filter.rule]]\nmsrs = [{spread}]\nverdict = \"deny\"\n");
    let many = ConfigFile::new("many-in-one", &rule);
    let error = refusal(&["filter", many.path()]);
    assert!(
        error.contains("400 filter ranges") && error.len() < 500,
        "{error}"
    );
}

#[test]
fn every_device_model_is_listed_with_its_keys() {
    let text = stdout(&["devices"]);
    let json: Value = serde_json::from_str(&stdout(&["devices", "--json"])).unwrap();
    for model in json.as_array().unwrap() {
        let name = model["type"].as_str().unwrap();
        assert!(
            text.contains(&format!("{name}: {}", model["summary"].as_str().unwrap())),
            "{name}"
        );
        let only = stdout(&["devices", name]);
        assert!(
            only.starts_with(&format!("{name}: ")) && text.contains(&only),
            "{name}"
        );
    }
    assert!(refusal(&["devices", "scrach"]).contains("scratch"));
}

#[test]
fn the_printed_configuration_is_itself_one_and_prints_the_same() {
    let config = ConfigFile::new(
        "print",
        &format!(
            "{CONFIG}\n[cpu]\nhide = [\"avx2\"]\n\
             [vm]\ninitrd = \"i\"\nhuge_pages = true\nprefault = true\n\
             topology = {{ packages = 2, cores = 2, threads = 1 }}\n\
             [[vm.disk]]\npath = \"one.img\"\nreadonly = true\nserial = \"first\"\n"
        ),
    );
    let options = [
        ("--cpus", "4"),
        ("--memory", "3G"),
        ("--kernel", "k"),
        ("--cmdline", "console=ttyS0 \"quoted\""),
        ("--profile", "deny-writes"),
        ("--grace", "7"),
    ];
    let mut arguments = vec![
        "run",
        "--config",
        config.path(),
        "--print-config",
        "--entropy",
        "--kaslr",
    ];
    arguments.extend(options.iter().flat_map(|(name, value)| [name, value]));
    let printed = stdout(&arguments);
    // What is relative in the file is relative to it, and on the command line to the working directory.
    let beside = std::env::temp_dir();
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    for line in [
        "cpus = 4".to_owned(),
        "memory = \"3G\"".to_owned(),
        "grace = 7".to_owned(),
        "entropy = true".to_owned(),
        "kaslr = true".to_owned(),
        "huge_pages = true".to_owned(),
        "prefault = true".to_owned(),
        "readonly = true".to_owned(),
        "serial = \"first\"".to_owned(),
        "packages = 2".to_owned(),
        "profile = \"deny-writes\"".to_owned(),
        "hide = [\"avx2\"]".to_owned(),
        format!("kernel = \"{}\"", here.join("k").display()),
        format!("initrd = \"{}\"", beside.join("i").display()),
        format!("path = \"{}\"", beside.join("one.img").display()),
    ] {
        assert!(
            printed.lines().any(|l| l == line),
            "no {line} in\n{printed}"
        );
    }
    assert!(printed.contains("notes"), "{printed}");
    let again = ConfigFile::new("print-again", &printed);
    assert_eq!(
        stdout(&["run", "--config", again.path(), "--print-config"]),
        printed
    );
}

#[test]
fn explain_shows_the_faults_that_apply_and_errors_in_them_have_their_place() {
    // An Intel CPU whatever the host has: AMD's have no such MSRs.
    let cpu = r#"cpu = { vendor = "GenuineIntel", family = 6, model = 106, stepping = 6 }"#;
    let device = format!("{cpu}\n[[msr.device]]\ntype = \"thermal\"\n");
    let fault = "[[msr.fault]]\nmsrs = [\"IA32_THERM_STATUS\"]\n";
    let text =
        format!("{device}{fault}kind = \"flip\"\nbits = 0x7f0000\nprobability = 0.25\nseed = 7\n");
    let config = ConfigFile::new("faults", &text);
    let shown = stdout(&["explain", "--config", config.path(), "IA32_THERM_STATUS"]);
    assert!(
        shown.contains(
            "  fault  flip of bits 0x7f0000 in rw of 0x19c, probability 0.25, seed 0x7: [[msr.fault]]\n"
        ),
        "{shown}"
    );
    let json = stdout(&["explain", "--json", "--config", config.path(), "0x19c"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["faults"].as_array().unwrap().len(), 1);
    let other = stdout(&["explain", "--config", config.path(), "IA32_THERM_INTERRUPT"]);
    assert!(!other.contains("fault  "), "{other}");
    for (rest, place, words) in [
        ("kind = \"gp\"\n", ":6:", "and this has neither"),
        (
            "kind = \"gp\"\nprobability = 2.0\n",
            ":7:",
            "2 is not from 0 to 1",
        ),
        ("kind = \"gp\"\ninterval = 0\n", ":7:", "0 is no interval"),
        (
            "kind = \"gp\"\ninterval = 1\nvcpus = [1]\n",
            ":8:",
            "there is no vCPU 1: the guest has 1",
        ),
        (
            "kind = \"pg\"\ninterval = 1\n",
            ":6:",
            "it takes \"gp\", \"flip\"",
        ),
        (
            "kind = \"gp\"\nintervall = 1\n",
            ":7:",
            "did you mean `interval`?",
        ),
        (
            "kind = \"delay\"\ninterval = 1\n",
            ":6:",
            "takes from 1 to 100000 microseconds",
        ),
    ] {
        let config = ConfigFile::new("faults-error", &format!("{device}{fault}{rest}"));
        let said = refusal(&["explain", "--config", config.path(), "0x19c"]);
        assert!(said.contains(words), "{rest}: {said}");
        assert!(
            said.contains(&format!("{}{place}", config.path())),
            "{rest}: {said}"
        );
    }
    let unclaimed =
        format!("{device}[[msr.fault]]\nmsrs = [\"IA32_EFER\"]\nkind = \"gp\"\ninterval = 1\n");
    let config = ConfigFile::new("faults-unclaimed", &unclaimed);
    let said = refusal(&["explain", "--config", config.path(), "0x19c"]);
    assert!(
        said.contains(":5:")
            && said.contains("no device claims 0xc0000080")
            && said.contains("\"forward\""),
        "{said}"
    );
}

#[test]
fn errors_are_one_line_with_the_place_and_what_would_be_right() {
    for (name, text, message) in [
        (
            "key",
            "[vm]\nmemroy = 5\n",
            ":2:1: there is no key `memroy` here; did you mean `memory`?\n",
        ),
        ("table", "vm = 5\n", ":1:6: `vm` is 5; it takes a table\n"),
        (
            "device-type",
            "[[msr.device]]\ntype = \"tabel\"\n",
            ":2:8: there is no device type `tabel`; did you mean `table`?\n",
        ),
        (
            "device-key",
            "[[msr.device]]\ntype = \"scratch\"\nmsr = 1\nresset = 5\n",
            ":4:10: device `scratch`: there is no key `resset` here; did you mean `reset`?\n",
        ),
        (
            "missing",
            "[[msr.device]]\ntype = \"forward\"\n",
            ":1:1: device `forward`: the key `msrs` is missing; it takes a list, each an MSR's index or name, or a range such as \"0x600-0x63f\"\n",
        ),
        (
            "cpus",
            "[vm]\ncpus = 129\n",
            ":2:8: vm.cpus is 129; it takes a whole number from 1 to 128\n",
        ),
        (
            "memory",
            "[vm]\nmemory = \"64k\"\n",
            ":2:10: vm.memory is 64K; a guest needs at least 2M\n",
        ),
        (
            "family",
            "[cpu]\nfamily = 5000\n",
            ":2:10: [cpu]: cpu.family = 5000 is too large: at most 270 can be shown\n",
        ),
    ] {
        let config = ConfigFile::new(&format!("error-{name}"), text);
        for command in [&["run", "--print-config"][..], &["explain", "0x10"]] {
            let mut arguments = command.to_vec();
            arguments.extend(["--config", config.path()]);
            let error = refusal(&arguments);
            assert_eq!(error, format!("msr-vmm: {}{message}", config.path()));
        }
    }
}

#[test]
fn names_that_are_nearly_right_are_answered_with_the_right_one() {
    for (arguments, right) in [
        (
            &["filter", "--model", "icelake-sever"][..],
            "did you mean `icelake-server`?",
        ),
        (
            &["filter", "--profile", "linux-gest"],
            "did you mean `linux-guest`?",
        ),
        (&["devices", "scrach"], "did you mean `scratch`?"),
        (&["--log", "inf", "devices"], "'info'"),
        (
            &["explain", "MSR_PLATFROM_INFO", "--model", "zen3-server"],
            "did you mean MSR_PLATFORM_INFO?",
        ),
    ] {
        let error = refusal(arguments);
        assert!(error.contains(right), "{error}");
    }
}

#[test]
fn what_cannot_be_is_named_with_the_way_out() {
    let twice = ConfigFile::new(
        "twice",
        "[[vm.disk]]\npath = \"d\"\n[[vm.disk]]\npath = \"d\"\n",
    );
    let misspelt = ConfigFile::new("misspelt", r#"{"msr_modifers": []}"#);
    let empty_list = ConfigFile::new("empty-list", "[]");
    let says_nothing = ConfigFile::new(
        "says-nothing",
        r#"{"cpuid_modifiers": [], "msr_modifiers": []}"#,
    );
    let register = r#"{"addr": "0x8b", "bitmap": "0b1"}"#;
    let two = ConfigFile::new(
        "two",
        &format!(r#"{{"msr_modifiers": [{register}, {register}]}}"#),
    );
    let empty = ConfigFile::new("empty", "");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (arguments, words) in [
        (&["run", "--memory", "64k"][..], &["64k", "at least 2M"][..]),
        (
            &["run", "--config", "resources/models/zen3-server.toml"],
            &["is a CPU model", "--model"],
        ),
        (
            &["run", "--config", "resources/profiles/linux-guest.toml"],
            &["is a profile", "--profile"],
        ),
        (
            &["run", "--config", twice.path(), "--print-config"],
            &[":1:", "same file", "once"],
        ),
        (
            &["run", "--disk", "a", "--disk", "a", "--print-config"],
            &["same file"],
        ),
        (
            &["run", "--profile", "-"],
            &["--profile -", "standard input is the guest's console"],
        ),
        (&["man", manifest], &["cannot write", manifest]),
        (
            &["import", "bochs", "/nonexistent"],
            &["cannot read /nonexistent"],
        ),
        (&["filter", "/"], &["cannot read /: "]),
        (
            &["import", "firecracker", misspelt.path()],
            &["msr_modifers", "msr_modifiers"],
        ),
        (
            &["import", "firecracker", empty_list.path()],
            &[empty_list.path()],
        ),
        (
            &["import", "firecracker", says_nothing.path()],
            &[says_nothing.path()],
        ),
        (&["import", "firecracker", two.path()], &["0x8b"]),
        (&["import", "bochs", empty.path()], &[empty.path()]),
    ] {
        let error = refusal(arguments);
        assert_eq!(
            error.lines().filter(|l| l.starts_with("msr-vmm: ")).count(),
            usize::from(!error.starts_with("error:")),
            "{error}"
        );
        for word in words {
            assert!(error.contains(word), "no {word:?} in {error}");
        }
    }
}

#[test]
fn explain_filter_and_check_take_a_model_and_a_profile() {
    let text = stdout(&["explain", "MSR_PLATFORM_INFO", "--model", "icelake-server"]);
    assert!(text.contains("device `platform`"), "{text}");
    let json: Value = serde_json::from_str(&stdout(&[
        "explain",
        "IA32_EFER",
        "--profile",
        "linux-guest",
        "--json",
    ]))
    .unwrap();
    assert_eq!(json["msr"], 0xc000_0080_u32);
    assert_eq!(json["name"], "IA32_EFER");
    assert_eq!(json["read"]["answered_by"], "the kernel (KVM)");
    assert!(!json["write"]["why"].as_array().unwrap().is_empty());
    let text = stdout(&["filter", "--model", "zen3-server"]);
    assert!(text.starts_with("default: deny\n"), "{text}");
    let text = stdout(&["filter", "--profile", "kvm-pv-only"]);
    assert!(text.starts_with("default: deny\n"), "{text}");
    assert!(refusal(&["check", "--model", "zen3-sever"]).contains("zen3-server"));
    assert!(refusal(&["filter"]).contains("FILE"));
}

#[test]
fn a_dash_is_standard_input_and_import_writes_to_a_file() {
    use std::io::Write;
    use std::process::Stdio;
    let piped = |arguments: &[&str], text: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_msr-vmm"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("msr-vmm runs");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(text.as_bytes())
            .expect("input");
        child.wait_with_output().expect("an end")
    };
    let output = piped(&["explain", "0x400000f8", "--config", "-"], CONFIG);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("device `notes`"),
        "{output:?}"
    );
    let output = piped(&["filter", "-"], "[vm]\nmemroy = 1\n");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("msr-vmm: standard input:2:1: "), "{text}");
    let model = std::env::temp_dir().join(format!("msr-vmm-import-{}.toml", std::process::id()));
    let template = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
        "modifiers": [{"register": "ecx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}"#;
    let path = model.to_str().unwrap();
    let output = piped(&["import", "firecracker", "-", "-o", path], template);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    let text = std::fs::read_to_string(&model).unwrap();
    std::fs::remove_file(&model).unwrap();
    assert!(text.contains("summary"), "{text}");
    let output = piped(
        &["import", "firecracker", "-", "-o", "/nonexistent/model"],
        template,
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write /nonexistent/model"));
}

#[test]
fn the_printed_configuration_is_validated_and_warned_about() {
    let wrong = ConfigFile::new("validated", "[[msr.device]]\ntype = \"scratch\"\n");
    assert!(
        refusal(&["run", "--config", wrong.path(), "--print-config"]).contains("`msr` is missing")
    );
    let shadowed = ConfigFile::new(
        "shadowed",
        "[[vm.disk]]\npath = \"d\"\nserial = \"a serial number of more than twenty bytes\"\n\
         [[msr.filter.rule]]\nmsrs = [\"0x10-0x20\"]\nverdict = \"deny\"\n\
         [[msr.filter.rule]]\nmsrs = [\"0x11\"]\nverdict = \"allow\"\n",
    );
    let output = msr_vmm(&["run", "--config", shadowed.path(), "--print-config"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("WARN") && stderr.contains("has no effect"),
        "{stderr}"
    );
    assert!(stderr.contains("20 bytes"), "{stderr}");
}

#[test]
fn what_a_control_socket_needs_is_part_of_the_sandbox_only_with_one() {
    let show = ["sandbox", "show"];
    let without = stdout(&show);
    assert!(
        !without.contains("accept4") && !without.contains("KVM_SET_MSRS"),
        "{without}"
    );
    let with = stdout(&[&show[..], &["--control", "vm.sock"]].concat());
    assert!(
        with.contains("  accept4") && with.contains("KVM_SET_MSRS"),
        "{with}"
    );
}

#[test]
fn snapshots_are_part_of_the_sandbox_where_they_are_asked_for() {
    let show = ["sandbox", "show", "--control", "vm.sock"];
    let without = stdout(&show);
    assert!(!without.contains("openat"), "{without}");
    let with = stdout(&[&show[..], &["--snapshots", "/srv/saved"]].concat());
    assert!(
        with.contains("  /srv/saved: read, write, create, remove")
            && with.contains("  openat")
            && with.contains("KVM_GET_DEVICE_ATTR"),
        "{with}"
    );
    let off = [
        "run",
        "--kernel",
        "k",
        "--sandbox=off",
        "--snapshots",
        "/tmp",
    ];
    let outside = refusal(&off);
    assert!(outside.contains("leave out --sandbox=off"), "{outside}");
    let nowhere = ["run", "--kernel", "k", "--snapshots", "/nowhere"];
    assert!(refusal(&nowhere).contains("name a folder that exists"));
}

#[test]
fn the_reference_says_which_keys_can_be_set_while_the_guest_runs() {
    let text = stdout(&["devices", "thermal"]);
    let live = |key: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with(key));
        line.is_some_and(|line| line.ends_with("; can be set while the guest runs"))
    };
    assert!(live("celsius:") && live("source:"), "{text}");
    assert!(!live("tjmax:") && !live("hwmon:"), "{text}");
}

#[test]
fn the_log_can_be_json() {
    let shadowed = ConfigFile::new(
        "json-log",
        "[[msr.filter.rule]]\nmsrs = [\"0x802\"]\nverdict = \"deny\"\n",
    );
    let output = msr_vmm(&[
        "--log-format",
        "json",
        "run",
        "--config",
        shadowed.path(),
        "--print-config",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line: Value = serde_json::from_str(stderr.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["level"], "warn");
    assert!(line["time"].as_f64().unwrap() > 1.7e9);
    assert!(
        line["message"].as_str().unwrap().contains("x2APIC"),
        "{stderr}"
    );
    let output = msr_vmm(&["--log-format", "json", "filter", "/nonexistent"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line: Value = serde_json::from_str(&stderr).expect("one line of JSON");
    assert_eq!(line["level"], "error");
    assert!(line["message"].as_str().unwrap().contains("/nonexistent"));
}
