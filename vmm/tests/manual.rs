//! The reference, the man pages and the completions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_msr-vmm");

fn msr_vmm(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .output()
        .expect("msr-vmm runs")
}

fn stdout(arguments: &[&str]) -> String {
    let output = msr_vmm(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The man pages in a folder that goes with the value.
struct Pages(PathBuf);

impl Pages {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("msr-vmm-{test}-{}", std::process::id()));
        stdout(&["man", folder.to_str().expect("UTF-8")]);
        Self(folder)
    }

    fn all(&self) -> Vec<(String, String)> {
        let entries = fs::read_dir(&self.0).expect("a folder");
        let files = entries.map(|entry| entry.expect("an entry").path());
        files
            .map(|path| {
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                (name, fs::read_to_string(path).expect("a page"))
            })
            .collect()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_man_page_has_examples_files_and_see_also() {
    let pages = Pages::new("man").all();
    let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "msr-vmm.1",
        "msr-vmm-run.1",
        "msr-vmm-config.1",
        "msr-vmm-restore.1",
        "msr-vmm-ctl-device-set.1",
        "msr-vmm.toml.5",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(pages.len() >= 11, "{names:?}");
    for (name, page) in &pages {
        for section in ["NAME", "DESCRIPTION", "EXAMPLES", "FILES", "\"SEE ALSO\""] {
            assert!(
                page.contains(&format!(".SH {section}\n")),
                "{name} has no {section}\n{page}"
            );
        }
    }
}

#[test]
fn groff_has_nothing_to_say_about_the_man_pages() {
    let pages = Pages::new("groff");
    for (name, _) in pages.all() {
        let output = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(pages.0.join(&name))
            .output()
            .expect("groff, which `make setup` installs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{name}: {output:?}"
        );
    }
}

#[test]
fn the_reference_has_every_key_with_its_type_default_and_unit() {
    let text = stdout(&["config"]);
    for line in [
        "    cpus: a whole number from 1 to 128; default 1",
        "    prefault: true or false; default false",
        "    huge_pages: true or false; default false",
        "    kaslr: true or false; default false",
        "    hide: a list, each a CPU feature's name",
        "    show: a list, each a CPU feature's name",
        "    base_mhz: a whole number from 0 to 65535",
        "    brand: a string",
        "    packages: a whole number of 1 or more; default 1",
        "    unclaimed: \"fault\", \"ignore\" or a table; default \"fault\"",
        "    idle_watts: a number; default 1.0; can be set while the guest runs",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
    }
    let help = stdout(&["config", "--help"]);
    assert!(help.contains("--schema") && help.contains(&text), "{help}");
    let page = Pages::new("reference").all();
    let (_, page) = page
        .iter()
        .find(|(name, _)| name == "msr-vmm.toml.5")
        .expect("the page");
    for word in [
        "topology",
        "prefault",
        "huge_pages",
        "base_mhz",
        "idle_watts",
        "unclaimed",
    ] {
        assert!(page.contains(word), "{word}");
    }
}

#[test]
fn the_schema_names_what_the_reference_names() {
    let schema: Value = serde_json::from_str(&stdout(&["config", "--schema"])).expect("JSON");
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    for key in ["model", "vm", "cpu", "msr"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    let vm = &schema["definitions"]["VmConfig"]["properties"];
    assert_eq!(
        (
            vm["cpus"]["minimum"].as_u64(),
            vm["cpus"]["maximum"].as_u64()
        ),
        (Some(1), Some(128))
    );
    let features = schema["definitions"]["Feature"]["enum"]
        .as_array()
        .expect("names");
    assert!(features.contains(&"avx2".into()));
    let devices = schema["definitions"]["DeviceConfig"]["oneOf"]
        .as_array()
        .expect("models");
    let rapl = devices.iter().find(|d| d["title"] == "rapl").expect("rapl");
    assert_eq!(rapl["properties"]["idle_watts"]["default"], 1.0);
}

/// What a shell offers for the last word of a command line.
fn bash(words: &[&str]) -> Vec<String> {
    let line = words
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>()
        .join(" ");
    let script = format!(
        "source <('{PROGRAM}' completions bash)\n\
         COMP_WORDS=({line})\nCOMP_CWORD={}\nCOMP_TYPE=9\n\
         _clap_complete_msr_vmm msr-vmm \"${{COMP_WORDS[COMP_CWORD]}}\" ''\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.len() - 1
    );
    shell("bash", &["--norc", "--noprofile", "-c", &script])
}

fn zsh(words: &[&str]) -> Vec<String> {
    let line = words
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>()
        .join(" ");
    // Outside of completion there is no `_describe`; it is what the function hands its candidates to.
    let script = format!(
        "compdef() {{ }}\n_describe() {{ print -l -- \"${{(@P)3}}\" }}\n\
         source <('{PROGRAM}' completions zsh)\n\
         words=({line})\nCURRENT={}\n_clap_dynamic_completer_msr_vmm\ntrue",
        words.len()
    );
    shell("zsh", &["-f", "-c", &script])
        .into_iter()
        .map(|line| line.split(':').next().unwrap_or_default().to_owned())
        .collect()
}

fn fish(words: &[&str]) -> Vec<String> {
    let script = format!(
        "'{PROGRAM}' completions fish | source; complete -C '{}'",
        words.join(" ")
    );
    shell("fish", &["--no-config", "-c", &script])
        .into_iter()
        .map(|line| line.split('\t').next().unwrap_or_default().to_owned())
        .collect()
}

fn shell(shell: &str, arguments: &[&str]) -> Vec<String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(shell)
        .args(arguments)
        .current_dir(repository)
        .output()
        .unwrap_or_else(|error| panic!("{shell}, which `make setup` installs: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{shell}: {}\n{stderr}",
        output.status
    );
    let text = String::from_utf8(output.stdout).expect("text");
    text.split(['\n', '\u{b}'])
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_zsh_and_fish_complete_names_options_and_files() {
    for (name, complete) in [
        ("bash", bash as fn(&[&str]) -> Vec<String>),
        ("zsh", zsh),
        ("fish", fish),
    ] {
        for (words, offered) in [
            (&["msr-vmm", "expl"][..], "explain"),
            (&["msr-vmm", "run", "--boot-"], "--boot-timing"),
            (
                &["msr-vmm", "explain", "MSR_PKG_EN"],
                "MSR_PKG_ENERGY_STATUS",
            ),
            (&["msr-vmm", "run", "--model", "ice"], "icelake-server"),
            (
                &["msr-vmm", "explain", "0xce", "--model", "zen"],
                "zen3-server",
            ),
            (&["msr-vmm", "filter", "--profile", "linux"], "linux-guest"),
            (&["msr-vmm", "devices", "aperf"], "aperfmperf"),
            (&["msr-vmm", "--log", "tr"], "trace"),
            (
                &["msr-vmm", "run", "--config", "resources/demo"],
                "resources/demo.toml",
            ),
            (
                &["msr-vmm", "run", "--model", "resources/models/zen"],
                "resources/models/zen3-server.toml",
            ),
        ] {
            let found = complete(words);
            assert!(
                found.iter().any(|f| f.trim_end() == offered),
                "{name} {words:?}: {found:?}"
            );
        }
        let none = complete(&["msr-vmm", "explain", "NO_SUCH_MSR"]);
        assert!(none.is_empty(), "{name}: {none:?}");
    }
}
