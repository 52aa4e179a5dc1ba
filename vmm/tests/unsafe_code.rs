//! docs/unsafe.md has each file with `unsafe` code, and how often.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How often the keyword is in a line's code.
fn count(line: &str) -> usize {
    let line = line.trim_start();
    if line.starts_with("//") {
        return 0;
    }
    let code = line.split_once(" // ").map_or(line, |(code, _)| code);
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|&word| word == "unsafe")
        .count()
}

fn look(root: &Path, folder: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                look(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let here = fs::read_to_string(&path).unwrap().lines().map(count).sum();
            if here > 0 && !name.ends_with("unsafe_code.rs") {
                found.insert(name.to_owned(), here);
            }
        }
    }
}

#[test]
fn each_file_with_unsafe_code_is_in_the_list_with_its_count() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeMap::new();
    for folder in [
        "msr-filter",
        "msr-bus",
        "msr-kvm",
        "msr-trace",
        "vmm",
        "fuzz",
    ] {
        look(&root, &root.join(folder), &mut found);
    }
    let page = fs::read_to_string(root.join("docs/unsafe.md")).unwrap();
    let listed: BTreeMap<String, usize> = page
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((name.to_owned(), rest.split_once(" | ")?.0.parse().ok()?))
        })
        .collect();
    assert!(found.len() > 20, "{found:?}");
    assert_eq!(listed, found, "left: docs/unsafe.md, right: the source");
}
