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
            text.contains("no Linux guest boots without: IA32_APIC_BASE"),
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
fn completions_and_man_pages_come_from_the_command_line_itself() {
    assert!(stdout(&["completions", "bash"]).contains("--msr-stats"));
    let folder = std::env::temp_dir().join(format!("msr-vmm-man-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    stdout(&["man", folder.to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.join("msr-vmm-run.1")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(page.contains("msr\\-stats"));
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
