//! Every example is run: those of the commands' help (which are also the man pages'), those of the Markdown files, that of
//! `msr-vmm.toml(5)`, and the models and profiles. Nothing is listed here: a new example is found by itself.
//!
//! What boots a guest is asked for its configuration instead; the tests with KVM boot the README's example.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VM: &str =
    "model = \"icelake-server\"\n[vm]\nkernel = \"vmlinuz\"\ninitrd = \"initrd.img\"\ncpus = 2\n";
const OTHER: &str = "[[msr.device]]\ntype = \"scratch\"\nmsr = \"0xc0011f00\"\n";
const TEMPLATE: &str = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
    "modifiers": [{"register": "ecx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}], "msr_modifiers": []}"#;

/// A folder with the files that examples name, which goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("msr-vmm-{test}-{}", std::process::id()));
        fs::create_dir_all(path.join("target")).expect("a folder");
        for (name, text) in [
            ("vm.toml", VM),
            ("other.toml", OTHER),
            ("mine.toml", OTHER),
            ("rapl.toml", OTHER),
            ("hot.toml", OTHER),
            ("heat.toml", OTHER),
            ("faults.toml", OTHER),
            ("stricter.toml", OTHER),
            ("template.json", TEMPLATE),
            ("vmlinuz", ""),
            ("initrd.img", ""),
            ("disk.img", ""),
        ] {
            fs::write(path.join(name), text).expect("a file");
        }
        let profile = repository().join("resources/profiles/linux-guest.toml");
        fs::copy(profile, path.join("profile.toml")).expect("what a boot of Linux needs");
        Self(path)
    }

    fn run(&self, arguments: &[String]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msr-vmm"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .expect("msr-vmm runs")
    }

    /// Runs the command line of an example, `msr-vmm` included.
    fn example(&self, line: &str) {
        let mut words: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
        let command = words.first().cloned().unwrap_or_default();
        if command == "run" && !line.contains("--print-config") {
            words.push("--print-config".into());
        }
        let output = self.run(&words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        match command.as_str() {
            // There is no trace here, and no VM: the command line is right, and the file or the process is not there.
            "trace" | "learn" | "report" | "top" => assert!(
                stderr.contains("cannot be read")
                    || stderr.contains("is no trace")
                    || stderr.contains("process")
                    || stderr.contains("tracefs"),
                "{line}: {stderr}"
            ),
            "ctl" => assert!(stderr.contains("cannot connect to"), "{line}: {stderr}"),
            "restore" => assert!(stderr.contains("snapshot: "), "{line}: {stderr}"),
            // The host may lack KVM.
            "check" => assert_ne!(output.status.code(), Some(2), "{line}: {stderr}"),
            _ => {
                assert!(
                    output.status.success(),
                    "{line}: {}\n{stderr}",
                    output.status
                );
                assert!(stderr.is_empty(), "{line}: {stderr}");
                assert!(
                    !output.stdout.is_empty() || line.contains(" -o ") || command == "man",
                    "{line}"
                );
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The help of a command, and the commands in it.
fn help(command: &[&str]) -> (String, Vec<String>) {
    let mut arguments: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    arguments.push("--help".into());
    let output = Folder::new("help").run(&arguments);
    let text = String::from_utf8(output.stdout).expect("text");
    let commands = text
        .split("\nCommands:\n")
        .nth(1)
        .map_or("", |rest| rest.split("\n\n").next().unwrap_or_default());
    let commands = commands
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .map(str::to_owned)
        .collect();
    (text, commands)
}

#[test]
fn the_examples_of_every_commands_help_work() {
    let folder = Folder::new("examples");
    let (main, commands) = help(&[]);
    assert!(commands.len() >= 9, "{commands:?}");
    let texts = commands.iter().map(|command| help(&[command]).0);
    let mut count = 0;
    for text in std::iter::once(main).chain(texts) {
        let examples = text
            .split("Examples:")
            .nth(1)
            .unwrap_or_else(|| panic!("no examples in\n{text}"));
        for line in examples
            .lines()
            .filter(|line| line.starts_with("  msr-vmm "))
        {
            folder.example(line.trim());
            count += 1;
        }
    }
    assert!(count >= 18, "{count}");
}

/// The Markdown files of the repository, but not of what is built.
fn markdown() -> Vec<(PathBuf, String)> {
    let mut folders = vec![repository()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".md") && name != "CHANGELOG.md" {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    found
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence[..])
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

#[test]
fn the_configurations_in_markdown_files_are_taken_without_a_warning() {
    let folder = Folder::new("markdown");
    let mut count = 0;
    for (path, text) in markdown() {
        for block in blocks(&text, "toml") {
            if block.contains("[dependencies]") || block.contains("[package]") {
                continue;
            }
            fs::write(folder.0.join("example.toml"), block).expect("a file");
            let output = folder.run(&["filter".into(), "example.toml".into()]);
            let stdout = String::from_utf8_lossy(&output.stdout);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "{}:\n{block}\n{stderr}",
                path.display()
            );
            // That a configuration narrows a profile is told, and is what it is for; that a profile narrows the
            // configuration's own rules is a mistake in the example.
            let mistake = stdout.lines().find(|line| {
                let narrows =
                    line.starts_with("warning: profile ") && line.ends_with("stays denied");
                line.starts_with("warning:") && !narrows
            });
            assert_eq!(mistake, None, "{}:\n{block}", path.display());
            count += 1;
        }
    }
    assert!(count >= 2, "{count}");
}

/// The commands of a text: in prose, and as lines of their own, indented or in a fenced block of `sh`. Those of a `console`
/// block are run by the test of `docs/`, which compares what they print.
fn commands(text: &str) -> Vec<&str> {
    let outside = text.split("```").step_by(2);
    let spans = outside
        .clone()
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .filter(|span| !span.contains('\n'));
    let indented = outside
        .flat_map(str::lines)
        .filter_map(|line| line.strip_prefix("    "));
    let fenced = blocks(text, "sh").into_iter().flat_map(str::lines);
    let lines = indented
        .chain(fenced)
        .map(|line| line.split(" # ").next().unwrap_or(line).trim_end());
    spans
        .chain(lines)
        // A drawing may begin with the name as well.
        .filter(|command| command.starts_with("msr-vmm ") && !command.contains('\u{2500}'))
        .collect()
}

#[test]
fn the_commands_in_markdown_files_are_this_programs() {
    let folder = Folder::new("commands");
    let mut count = 0;
    for (path, text) in markdown() {
        for span in commands(&text) {
            // Placeholders become what they stand for, and of alternatives the first is taken.
            let line: Vec<&str> = span
                .split_whitespace()
                .map(|word| word.trim_matches(['[', ']']))
                // What stands for more of the same, and the shell's for running beside what follows.
                .filter(|word| !["...", "&"].contains(word))
                .map(|word| word.split('|').next().unwrap_or(word))
                .map(|word| match word {
                    "FILE" if span.contains("import") => "template.json",
                    "FILE" => "vm.toml",
                    "OTHER" => "other.toml",
                    "MODEL" => "rapl",
                    "MSR" => "0xce",
                    "VALUE" => "1",
                    "PID" => "4242",
                    "COMMAND" => "status",
                    other => other,
                })
                .collect();
            // In prose a command may stand for all its uses.
            if line.len() == 2
                && ["import", "explain", "filter", "decode", "trace", "learn"].contains(&line[1])
            {
                continue;
            }
            println!("{}: {}", path.display(), line.join(" "));
            folder.example(&line.join(" "));
            count += 1;
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn the_example_of_the_configurations_man_page_is_one() {
    let folder = Folder::new("page");
    assert!(folder.run(&["man".into(), "pages".into()]).status.success());
    let page = fs::read_to_string(folder.0.join("pages/msr-vmm.toml.5")).expect("the page");
    let mut examples = page.split("\n.nf\n").skip(1);
    let example = examples
        .next()
        .and_then(|rest| rest.split("\n.RE\n").next())
        .expect("an example");
    let text: String = example
        .lines()
        .filter(|line| !line.starts_with(".RS"))
        .map(|line| line.replace("\\-", "-").replace("\\&", "") + "\n")
        .collect();
    fs::write(folder.0.join("page.toml"), &text).expect("a file");
    let arguments = ["run", "--config", "page.toml", "--print-config"].map(str::to_owned);
    let output = folder.run(&arguments);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{text}\n{output:?}"
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("idle_watts = 1.5") && printed.contains("model = 106"),
        "{printed}"
    );
}

#[test]
fn every_model_and_profile_that_comes_along_is_taken_by_path_and_by_name() {
    let folder = Folder::new("models");
    for (kind, option) in [("models", "--model"), ("profiles", "--profile")] {
        let mut count = 0;
        for entry in fs::read_dir(repository().join("resources").join(kind)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let path = fs::canonicalize(path).expect("a path");
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let by = |value: &str| {
                let output = folder.run(&["filter".into(), option.into(), value.into()]);
                assert!(output.status.success(), "{value}: {output:?}");
                output.stdout
            };
            assert_eq!(by(&name), by(path.to_str().expect("UTF-8")), "{name}");
            count += 1;
        }
        assert!(count >= 3, "{kind}: {count}");
    }
}
