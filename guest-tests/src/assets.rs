//! Where the files that tests need are, on the host and in the outer VM alike.
//!
//! On the host executables come from the directory that cargo built the running one in, and kernels
//! from `target/kernels`. [`pack`](crate::pack) puts the same things into an outer VM under [`ROOT`], whose
//! init's job names that place in the environment variable [`ROOT_VARIABLE`].

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernel::{Flavour, Kernel, KernelError, Release};

/// The environment variable that names the directory of packed files; unset on the host.
pub const ROOT_VARIABLE: &str = "MSR_ASSETS";

/// The directory of packed files in the outer VM.
pub const ROOT: &str = "/assets";

/// The directory of the Debian root file system, under `target`.
const ROOTFS: &str = "rootfs/bookworm";

/// The environment variable that names the root disk's block device in the outer VM.
pub(crate) const ROOTFS_VARIABLE: &str = "MSR_ROOTFS";

/// The directory of the root file system of programs that read MSRs, under `target`.
const CLIENTS: &str = "clients/trixie";

/// The directory of Firecracker CPU templates in the outer VM, under [`ROOT`].
pub(crate) const TEMPLATES: &str = "templates";

/// The environment variable that names its block device in the outer VM.
pub(crate) const CLIENTS_VARIABLE: &str = "MSR_CLIENTS";

/// A file of a Debian package that guests have.
#[derive(Clone, Copy, Debug)]
pub struct GuestTool {
    /// The package.
    pub package: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// Where guests have it.
    pub path: &'static str,
}

const fn guest_tool(package: &'static str, file: &'static str, path: &'static str) -> GuestTool {
    GuestTool {
        package,
        file,
        path,
    }
}

/// Debian's programs that guests run, and all that these are linked with.
pub const GUEST_TOOLS: &[GuestTool] = &[
    guest_tool("msr-tools", "rdmsr", "/bin/rdmsr"),
    guest_tool("msr-tools", "wrmsr", "/bin/wrmsr"),
    guest_tool("linux-cpupower", "turbostat", "/bin/turbostat"),
    guest_tool(LIBC, LOADER, "/lib64/ld-linux-x86-64.so.2"),
    guest_tool(LIBC, "libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
    guest_tool(
        "libcap2",
        "libcap.so.2",
        "/lib/x86_64-linux-gnu/libcap.so.2",
    ),
];

const LIBC: &str = "libc6";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// A program that tests run themselves.
pub(crate) const HOST_TOOL: (&str, &str) = ("iucode-tool", "iucode_tool");

/// Why a file that tests need cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// An executable was not built.
    #[error("no executable at {}: build it with `cargo build --workspace --bins --examples{}`", path.display(), release_flag(path))]
    NotBuilt {
        /// Where it was expected.
        path: PathBuf,
    },
    /// An executable is older than a source it is built from.
    #[error("{} is older than {}: build it with `cargo build --workspace --bins --examples{}`",
        path.display(), source_file.display(), release_flag(path))]
    Stale {
        /// The executable.
        path: PathBuf,
        /// The newer source file.
        source_file: PathBuf,
    },
    /// The Debian root file system was not made.
    #[error("no Debian root file system in target/{ROOTFS}: make it with `make rootfs`")]
    NoRootfs,
    /// The root file system of programs that read MSRs was not made.
    #[error("no root file system in target/{CLIENTS}: make it with `make clients`")]
    NoClients,
    /// A tool of e2fsprogs is missing.
    #[error("no {0} here: install e2fsprogs, as resources/setup.sh does")]
    NoFileSystemTool(String),
    /// What a tool is linked with cannot be told.
    #[error("cannot tell what {} is linked with: {reason}", path.display())]
    Linked {
        /// The tool.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A kernel or module is missing.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// `OUTER_KERNEL` names no release.
    #[error("OUTER_KERNEL={0}: bookworm or trixie")]
    OuterKernel(String),
    /// A file of a Debian package is missing.
    #[error("no {file} under {}: run resources/fetch-tools.sh {package}", folder.display())]
    NoTool {
        /// The file's name.
        file: String,
        /// The package it belongs to.
        package: &'static str,
        /// Where it was expected, at any depth.
        folder: PathBuf,
    },
    /// The ELF in a kernel image cannot be had.
    #[error("cannot unpack {}: {reason}", path.display())]
    Unpack {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn release_flag(path: &Path) -> &'static str {
    if path.components().any(|c| c.as_os_str() == "release") {
        " --release"
    } else {
        ""
    }
}

/// The static init of Linux guests, `src/bin/guest-init.rs`.
pub fn guest_init() -> Result<PathBuf, AssetError> {
    executable("guest-init")
}

/// The VMM's own binary.
pub fn msr_vmm() -> Result<PathBuf, AssetError> {
    executable("msr-vmm")
}

/// An example of the `msr-vmm` package, which `cargo build --workspace --examples` builds.
pub fn example(name: &str) -> Result<PathBuf, AssetError> {
    executable(&format!("examples/{name}"))
}

/// The guests' kernel: Debian 12's cloud kernel, or what `KERNEL` and `MODULES` name in its place.
pub fn kernel() -> Result<Kernel, AssetError> {
    cloud_kernel(Release::Bookworm)
}

/// A release's cloud kernel for guests. `KERNEL` and `MODULES` replace Debian 12's.
pub fn cloud_kernel(release: Release) -> Result<Kernel, AssetError> {
    match given_kernel() {
        Some(kernel) if release == Release::Bookworm && packed().is_none() => Ok(kernel),
        _ => kernel_of(release, Flavour::Cloud),
    }
}

/// A Debian kernel.
pub fn kernel_of(release: Release, flavour: Flavour) -> Result<Kernel, AssetError> {
    let root = packed().unwrap_or_else(target_directory);
    Ok(Kernel::in_directory(
        &root.join("kernels"),
        release,
        flavour,
    )?)
}

/// What `KERNEL` and `MODULES` name.
fn given_kernel() -> Option<Kernel> {
    let (image, modules) = (env::var_os("KERNEL")?, env::var_os("MODULES")?);
    Some(Kernel::new(image, modules))
}

/// The outer VM's kernel, whatever the guests boot: Debian 12's cloud kernel, which holds under every QEMU that was
/// tried, or with `OUTER_KERNEL` that of another release. Where it was not fetched, the guests' must do.
pub fn outer_kernel() -> Result<Kernel, AssetError> {
    let release = match env::var("OUTER_KERNEL")
        .ok()
        .filter(|name| !name.is_empty())
    {
        None => Release::Bookworm,
        Some(name) => *Release::ALL
            .iter()
            .find(|release| release.suite() == name)
            .ok_or(AssetError::OuterKernel(name))?,
    };
    let debian = kernel_of(release, Flavour::Cloud);
    match given_kernel() {
        Some(kernel) if debian.is_err() => Ok(kernel),
        _ => debian,
    }
}

/// A file of [`GUEST_TOOLS`], or `iucode_tool`.
pub fn tool(file: &str) -> Result<PathBuf, AssetError> {
    let of_guests = GUEST_TOOLS.iter().find(|tool| tool.file == file);
    let package = of_guests.map_or(HOST_TOOL.0, |tool| tool.package);
    let folder = match packed() {
        Some(root) => root.join("tools"),
        None => target_directory().join("tools").join(package),
    };
    find_file(&folder, file).ok_or_else(|| AssetError::NoTool {
        file: file.to_owned(),
        package,
        folder,
    })
}

/// A command that runs a program among the tools with the tools' own libraries, not the system's.
pub fn tool_command(file: &str) -> Result<Command, AssetError> {
    let mut command = Command::new(tool(LOADER)?);
    let libc = tool("libc.so.6")?;
    command.arg("--library-path");
    command.arg(libc.parent().unwrap_or(Path::new("/")));
    command.arg(tool(file)?);
    Ok(command)
}

/// A file at any depth. Absolute links are not followed: in an unpacked package they lead out of it.
fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            let leads_out = fs::read_link(&path).is_ok_and(|to| to.is_absolute());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if entry.file_name() == name && path.is_file() && !leads_out {
                return Some(path);
            }
        }
    }
    None
}

/// An executable of this workspace, by name.
pub fn executable(name: &str) -> Result<PathBuf, AssetError> {
    let directory = packed().map_or_else(build_directory, |root| root.join("bin"));
    let path = directory.join(name);
    if !path.is_file() {
        return Err(AssetError::NotBuilt { path });
    }
    match newer_source(&path) {
        Some(source_file) => Err(AssetError::Stale { path, source_file }),
        None => Ok(path),
    }
}

/// The Debian root file system that `resources/make-rootfs.sh` makes: the image on the host, and a
/// disk that may be written to in the outer VM.
pub fn rootfs() -> Result<PathBuf, AssetError> {
    if packed().is_some() {
        let disk = env::var_os(ROOTFS_VARIABLE).ok_or(AssetError::NoRootfs)?;
        return Ok(PathBuf::from(disk));
    }
    let image = target_directory().join(ROOTFS).join("image");
    if image.is_file() {
        Ok(image)
    } else {
        Err(AssetError::NoRootfs)
    }
}

/// The directory of Firecracker CPU templates that `FIRECRACKER_TEMPLATES` names, if it does: JSON files and nothing else.
pub fn templates() -> Option<PathBuf> {
    match packed() {
        Some(root) => Some(root.join(TEMPLATES)).filter(|folder| folder.is_dir()),
        None => env::var_os("FIRECRACKER_TEMPLATES").map(PathBuf::from),
    }
}

/// The root file system of programs that read MSRs, which `resources/make-clients.sh` makes: the image on the host, a disk in
/// the outer VM. Guests get it read-only.
pub fn clients() -> Result<PathBuf, AssetError> {
    if packed().is_some() {
        let disk = env::var_os(CLIENTS_VARIABLE).ok_or(AssetError::NoClients)?;
        return Ok(PathBuf::from(disk));
    }
    let image = target_directory().join(CLIENTS).join("image");
    image
        .is_file()
        .then_some(image)
        .ok_or(AssetError::NoClients)
}

/// A tool of e2fsprogs that tests use: in the outer VM they are where they are on the host.
pub fn file_system_tool(name: &str) -> Result<PathBuf, AssetError> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where they are, and where many users' PATH does not lead.
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administrators)
        .map(|directory| directory.join(name))
        .find(|tool| tool.is_file())
        .ok_or_else(|| AssetError::NoFileSystemTool(name.to_owned()))
}

/// The directory that cargo and the scripts of `resources` build into: `CARGO_TARGET_DIR`, or `target`.
pub fn target_directory() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // A relative one is the repository's, as for the scripts.
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn packed() -> Option<PathBuf> {
    env::var_os(ROOT_VARIABLE).map(PathBuf::from)
}

/// The directory that cargo put this profile's executables in. Test executables are one level down.
fn build_directory() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    let directory = own.parent().unwrap_or(Path::new("."));
    match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().unwrap_or(directory).to_owned(),
        _ => directory.to_owned(),
    }
}

/// A source file newer than the executable, by the dependency file that cargo writes beside it.
/// `cargo test -p guest-tests` does not rebuild `msr-vmm`; a test of yesterday's binary would lie.
fn newer_source(executable: &Path) -> Option<PathBuf> {
    let built = fs::metadata(executable).and_then(|m| m.modified()).ok()?;
    let dependencies = fs::read_to_string(executable.with_extension("d")).ok()?;
    let (_, sources) = dependencies.split_once(": ")?;
    sources
        .split_whitespace()
        .map(PathBuf::from)
        .find(|source| {
            fs::metadata(source)
                .and_then(|m| m.modified())
                .is_ok_and(|changed| changed > built)
        })
}
