//! The pages under docs/: each file that a page has its reader write is written, and each command in a `console` block is run
//! beside it. Commands that boot a guest are indented, and the guest tests run what they stand for.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The fenced blocks of a page, with their languages.
fn blocks(page: &str) -> Vec<(&str, String)> {
    let mut blocks: Vec<(&str, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(language) if !inside => {
                blocks.push((language, String::new()));
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => {
                let (_, text) = blocks.last_mut().expect("a block was begun");
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// Runs what the page has, and returns how many commands that were.
fn try_page(name: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs").join(name)).unwrap();
    let folder = std::env::temp_dir().join(format!("msr-vmm-docs-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut commands = 0;
    for (language, text) in blocks(&page) {
        match language {
            "toml" => {
                let file = page
                    .split('`')
                    .find(|word| word.ends_with(".toml") && !word.contains('/'))
                    .expect("the page names its file");
                fs::write(folder.join(file), text).unwrap();
            }
            "console" => {
                for line in text.lines() {
                    let mut words = line.split_whitespace();
                    assert_eq!(words.next(), Some("msr-vmm"), "{name}: {line}");
                    let output = Command::new(env!("CARGO_BIN_EXE_msr-vmm"))
                        .args(words.clone())
                        .current_dir(&folder)
                        .output()
                        .unwrap();
                    // What `check` finds depends on the host.
                    let may_fail = words.next() == Some("check");
                    assert!(
                        output.status.success() || may_fail && output.status.code() == Some(1),
                        "{name}: {line}: {}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                    assert!(!output.stdout.is_empty(), "{name}: {line}");
                    commands += 1;
                }
            }
            _ => {}
        }
    }
    fs::remove_dir_all(&folder).unwrap();
    commands
}

#[test]
fn every_command_of_the_task_pages_works() {
    for (page, commands) in [
        ("rapl.md", 3),
        ("deny-by-default.md", 4),
        ("device.md", 1),
        ("embed.md", 1),
        ("scenarios.md", 2),
        ("fault-injection.md", 2),
        ("rate-limits.md", 1),
    ] {
        assert_eq!(try_page(page), commands, "{page}");
    }
}
