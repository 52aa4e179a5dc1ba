//! The project of msr-bus's README, made in a folder of its own: a program with one device more than msr-vmm has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::OnceLock;

use guest_tests::assets::AssetError;
use guest_tests::backend::{self, Backend};
use guest_tests::guest::{Folder, TINY_ADDRESS, TinyKernel};
use guest_tests::micro::write_kernel;
use guest_tests::nested::outer::OuterVm;
use iced_x86::code_asm::*;

const README: &str = include_str!("../../msr-bus/README.md");
const CONFIG: &str = "[[msr.device]]\ntype = \"mailbox\"\nmsr = 0x400\n";
/// Where the outer VM has the program.
const PACKED: &str = "/bin/mailbox-vmm";

/// The first block in this language behind `start`.
fn block(start: &str, language: &str) -> &'static str {
    let (_, text) = README.split_once(start).unwrap();
    let (_, text) = text.split_once(&format!("```{language}\n")).unwrap();
    text.split_once("```\n").unwrap().0
}

/// The project's program, built once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if backend::in_outer_vm() {
            return PACKED.into();
        }
        let folder = Folder::new().unwrap();
        build(&folder.path("project"))
    })
}

/// Writes the project and builds it among this workspace's own artifacts, whose dependencies it shares.
fn build(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap();
    let (device, _) = block("## Write your own device", "rust")
        .split_once("// 6.")
        .unwrap();
    let mut manifest = block("`Cargo.toml`", "toml").to_owned();
    manifest += "[workspace]\n[profile.dev]\nopt-level = 1\ndebug = false\nstrip = \"debuginfo\"\n[patch.crates-io]\n";
    for (name, path) in [
        ("msr-filter", "msr-filter"),
        ("msr-bus", "msr-bus"),
        ("msr-kvm", "msr-kvm"),
        ("msr-trace", "msr-trace"),
        ("msr-vmm", "vmm"),
    ] {
        manifest += &format!("{name} = {{ path = {:?} }}\n", root.join(path));
    }
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::create_dir_all(folder.join(".cargo")).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/mailbox.rs"), device).unwrap();
    fs::write(
        folder.join("src/main.rs"),
        block("`src/main.rs`", "rust,ignore"),
    )
    .unwrap();
    // The versions that this workspace has been tested with, and that are on this machine.
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    fs::copy(
        root.join(".cargo/config.toml"),
        folder.join(".cargo/config.toml"),
    )
    .unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    target.join("x86_64-unknown-linux-gnu/debug/mailbox-vmm")
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn text(program: &Path, args: &[&str]) -> String {
    let output = run(program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_readmes_project_is_an_msr_vmm_with_one_device_more() {
    let folder = Folder::new().unwrap();
    let config = folder.file("mailbox.toml", CONFIG.as_bytes()).unwrap();
    let config = config.to_str().unwrap();
    let program = program();

    let devices = text(program, &["devices"]);
    assert!(devices.contains("mailbox: squares numbers"), "{devices}");
    assert!(devices.contains("scratch:"), "{devices}");
    let keys = text(program, &["devices", "mailbox"]);
    assert!(
        keys.contains("limit: a 64-bit value") && keys.contains("larger one is #GP"),
        "{keys}"
    );
    let explained = text(program, &["explain", "0x401", "--config", config]);
    assert!(explained.contains("device `mailbox`"), "{explained}");
    let filter = text(program, &["filter", config]);
    assert!(filter.contains("0x00000400  0x00000401"), "{filter}");
    let schema = text(program, &["config", "--schema"]);
    assert!(schema.contains("\"mailbox\""), "{schema}");
    let reference = text(program, &["config", "--help"]);
    assert!(reference.contains("mailbox"), "{reference}");
    let pages = folder.path("man");
    text(program, &["man", pages.to_str().unwrap()]);
    let page = fs::read_to_string(pages.join("msr-vmm.toml.5")).unwrap();
    assert!(page.contains("mailbox"), "{page}");
}

/// The script that a shell loads asks the program itself, so that it is asked here as bash asks it.
#[test]
fn a_shell_completes_the_device_of_the_readmes_project() {
    let program = program();
    let script = text(program, &["completions", "bash"]);
    let folder = Folder::new().unwrap();
    let script = folder.file("completions.bash", script).unwrap();
    // What bash does when someone types a word of a command line and TAB.
    let typed = "source \"$1\"\nCOMP_WORDS=(mailbox-vmm devices mail)\nCOMP_CWORD=2\nCOMP_TYPE=9\n\
                 \"$(complete -p mailbox-vmm | sed 's/.*-F \\([^ ]*\\).*/\\1/')\" mailbox-vmm mail devices\n\
                 printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", typed, "bash"])
        .arg(&script)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "mailbox",
        "{error}"
    );
}

/// Here if this host's KVM runs tiny guests, and otherwise in the outer VM.
#[test]
fn its_guest_reaches_the_device_and_the_statistics_name_it() {
    let is_free = std::env::var_os("BACKEND").is_none_or(|given| given.is_empty());
    if is_free && msr_kvm::check::probe().can_run_micro_guests() {
        return boot(program());
    }
    match backend::choose().unwrap() {
        Backend::Kvm => boot(program()),
        Backend::Nested => {
            let this = "its_guest_reaches_the_device_and_the_statistics_name_it";
            let arguments = ["--exact", this].map(str::to_owned);
            let status = backend::run_in_outer_vm(&arguments, pack, None);
            assert_eq!(status, ExitCode::SUCCESS);
        }
    }
}

fn pack(vm: &mut OuterVm) -> Result<(), AssetError> {
    vm.file(PACKED, program());
    Ok(())
}

/// A guest writes 12 and reads the square; the statistics name the device.
fn boot(program: &Path) {
    let folder = Folder::new().unwrap();
    let config = folder.file("mailbox.toml", CONFIG.as_bytes()).unwrap();
    let config = config.to_str().unwrap();
    let mut kernel = TinyKernel::new().unwrap();
    kernel.0.mov(ecx, 0x400).unwrap();
    kernel.0.mov(eax, 12).unwrap();
    kernel.0.xor(edx, edx).unwrap();
    kernel.0.wrmsr().unwrap();
    kernel.0.mov(ecx, 0x401).unwrap();
    kernel.0.rdmsr().unwrap();
    // 144 is no letter: the console shows the square less 79.
    kernel.0.sub(eax, 79).unwrap();
    kernel.0.mov(edx, 0x3f8).unwrap();
    kernel.0.out(dx, al).unwrap();
    kernel.power_off().unwrap();
    let code = kernel.0.assemble(TINY_ADDRESS).unwrap();
    let path = folder.path("kernel");
    write_kernel(&path, &code).unwrap();
    let kernel = path.to_str().unwrap();
    let output = run(
        program,
        &["run", "--kernel", kernel, "--config", config, "--msr-stats"],
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(output.stdout.contains(&b'A'), "{:?}", output.stdout);
    for msr in ["0x400 ", "0x401 "] {
        let row = error.lines().find(|line| line.starts_with(msr));
        assert!(row.is_some_and(|row| row.ends_with("mailbox")), "{error}");
    }
}
