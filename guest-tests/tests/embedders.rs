//! Other VMMs depend on the crates: from a workspace of their own, whose package may be called `vmm` too, and with another
//! ioctl crate.
//!
//! Each project is written to a folder of its own and compiled there by cargo, with the versions of this workspace's
//! `Cargo.lock` and among its artifacts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A crate that takes all of the library: Firecracker and Cloud Hypervisor have packages of this name and version.
const VMM: &str = r#"
use msr_bus::{MsrBus, Topology};
use msr_kvm::{MsrPlan, PhysicalMemory, VmMsrs};

pub fn install(vm: &kvm_ioctls::VmFd, plan: MsrPlan, memory: impl PhysicalMemory + 'static) -> VmMsrs {
    VmMsrs::install(vm, plan, memory).unwrap()
}

pub fn filter(rules: &msr_filter::FilterSpec, vm: &kvm_ioctls::VmFd) {
    rules.compile().unwrap().install(vm).unwrap();
}

pub fn bus() -> MsrBus {
    let _ = Topology::flat(1);
    MsrBus::builder().build().unwrap()
}

pub fn boot(config: msr_vmm::Config) -> Result<msr_vmm::Vm, msr_vmm::VmError> {
    msr_vmm::Vm::builder(config).build()
}
"#;

/// A VMM on kvm-ioctls 0.24, which has no call for the filter: it makes the ioctl itself, with the filter as KVM's struct.
const OTHER_IOCTLS: &str = "
use std::io;

use kvm_bindings::{KVMIO, kvm_msr_filter};
use kvm_ioctls::VmFd;
use msr_filter::MsrFilter;
use vmm_sys_util::ioctl::ioctl_with_ref;

vmm_sys_util::ioctl_iow_nr!(KVM_X86_SET_MSR_FILTER, KVMIO, 0xc6, kvm_msr_filter);

pub fn set(filter: &MsrFilter, vm: &VmFd) -> io::Result<()> {
    let filter = filter.to_kvm();
    // SAFETY: the struct is the one that this call reads, and its pointers are valid while `filter` lives.
    match unsafe { ioctl_with_ref(vm, KVM_X86_SET_MSR_FILTER(), filter.as_kvm()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// The library as an embedder's manifest names it, and its packages by path for those that the manifest does not name.
fn library() -> String {
    let path = |folder: &str| root().join(folder);
    format!(
        "kvm-ioctls = \"0.25\"
msr-filter = {{ path = {:?} }}
msr-bus = {{ path = {:?} }}
msr-kvm = {{ path = {:?} }}
msr-vmm = {{ path = {:?}, default-features = false }}
",
        path("msr-filter"),
        path("msr-bus"),
        path("msr-kvm"),
        path("vmm")
    )
}

/// Compiles a workspace with a package `vmm` 0.1.0 of this library code and these dependencies, as far as cargo needs to find out
/// whether it builds.
fn check(name: &str, code: &str, dependencies: &str) {
    let folder = std::env::temp_dir().join(format!("embedder-{name}-{}", std::process::id()));
    let package = folder.join("vmm");
    fs::create_dir_all(package.join("src")).unwrap();
    fs::write(
        folder.join("Cargo.toml"),
        "[workspace]\nresolver = \"2\"\nmembers = [\"vmm\"]\n\
         [profile.dev]\nopt-level = 1\ndebug = false\nstrip = \"debuginfo\"\n",
    )
    .unwrap();
    fs::write(
        package.join("Cargo.toml"),
        format!(
            "[package]\nname = \"vmm\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
             [dependencies]\n{dependencies}"
        ),
    )
    .unwrap();
    fs::write(package.join("src/lib.rs"), code).unwrap();
    // The versions that this workspace has been tested with; cargo drops what the project does not use.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    fs::create_dir(folder.join(".cargo")).unwrap();
    let config = ".cargo/config.toml";
    fs::copy(root().join(config), folder.join(config)).unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let output = Command::new(env!("CARGO"))
        .arg("check")
        .env("CARGO_TARGET_DIR", target.join("embedders"))
        .current_dir(&folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {error}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_vmm_whose_own_package_is_called_vmm_takes_all_crates() {
    check("vmm", VMM, &library());
}

#[test]
fn a_vmm_on_another_kvm_ioctls_takes_the_filter() {
    let filter = root().join("msr-filter");
    let dependencies = format!(
        "kvm-bindings = \"0.14\"\nkvm-ioctls = \"=0.24\"\nvmm-sys-util = \"0.15\"\n\
         msr-filter = {{ path = {filter:?}, default-features = false, features = [\"kvm\"] }}\n"
    );
    check("other-ioctls", OTHER_IOCTLS, &dependencies);
}

/// Firecracker and others read command lines and print logs in their own way.
#[test]
fn the_library_brings_neither_a_command_line_nor_a_logger() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-p",
            "msr-vmm",
            "--no-default-features",
        ])
        .args(["-e", "normal", "--prefix", "none", "-f", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(
        tree.lines()
            .any(|line| line.starts_with("kvm-ioctls v0.25")),
        "{tree}"
    );
    for package in [
        "clap",
        "clap_complete",
        "clap_mangen",
        "env_logger",
        "ratatui",
        "parquet",
        "prost",
    ] {
        let found = tree
            .lines()
            .find(|line| line.split(' ').next() == Some(package));
        assert_eq!(found, None, "{tree}");
    }
}
