//! The crates can be published: each package holds what its sources include, and the workspace's packages resolve in
//! order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: [(&str, &str); 5] = [
    ("msr-filter", "msr-filter"),
    ("msr-bus", "msr-bus"),
    ("msr-trace", "msr-trace"),
    ("msr-kvm", "msr-kvm"),
    ("msr-vmm", "vmm"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_package_holds_what_its_sources_include() {
    for (package, folder) in PACKAGES {
        let list = cargo(&[
            "package",
            "--list",
            "--allow-dirty",
            "--offline",
            "-p",
            package,
        ]);
        let files: Vec<&str> = list.lines().collect();
        for needed in ["README.md", "LICENSE-APACHE", "LICENSE-BSD-3-Clause"] {
            assert!(files.contains(&needed), "{package} lacks {needed}");
        }
        for source in files.iter().filter(|file| file.ends_with(".rs")) {
            let text = fs::read_to_string(root().join(folder).join(source)).unwrap();
            for included in text.split("include_str!(\"").skip(1) {
                let (path, _) = included.split_once('"').unwrap();
                let path = Path::new(source).parent().unwrap().join(path);
                let path = normal(&path);
                assert!(
                    files.contains(&path.as_str()),
                    "{package}: {source} includes {path}"
                );
            }
        }
    }
}

/// The path without `..`; one that leaves the package starts with it.
fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap().split('/') {
        if part == ".." && parts.last().is_some_and(|last| *last != "..") {
            parts.pop();
        } else if part != "." && !part.is_empty() {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[test]
fn the_packages_are_made_in_order() {
    let mut args = vec!["package", "--no-verify", "--allow-dirty", "--offline"];
    for (package, _) in PACKAGES {
        args.extend(["-p", package]);
    }
    cargo(&args);
}
