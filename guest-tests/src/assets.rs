//! Where the files that tests need are, on the host and in the outer VM alike.
//!
//! On the host executables come from the directory that cargo built the running one in, and kernels
//! from `target/kernels`. [`pack`] puts the same things into an outer VM under [`ROOT`], whose
//! init's job names that place in the environment variable [`ROOT_VARIABLE`].

use std::env;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::DISK_MODULES;
use crate::kernel::{BZIMAGE, Flavour, Kernel, KernelError, Release};
use crate::nested::outer::OuterVm;

/// The environment variable that names the directory of packed files; unset on the host.
pub const ROOT_VARIABLE: &str = "MSR_ASSETS";

/// The directory of packed files in the outer VM.
pub const ROOT: &str = "/assets";

/// The examples that tests run.
const EXAMPLES: &[&str] = &["smallest", "msr_device", "embed", "msr_state"];

/// The modules that the Linux guests of the tests load, without their dependencies.
const GUEST_MODULES: &[&str] = &["msr", "cpuid", "button", "virtio-rng"];

/// The tools of e2fsprogs that tests use.
const FILE_SYSTEM_TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

/// The directory of the Debian root file system, under `target`.
const ROOTFS: &str = "rootfs/bookworm";

/// The environment variable that names the root disk's block device in the outer VM.
const ROOTFS_VARIABLE: &str = "MSR_ROOTFS";

/// The directory of the root file system of programs that read MSRs, under `target`.
const CLIENTS: &str = "clients/trixie";

/// The directory of Firecracker CPU templates in the outer VM, under [`ROOT`].
const TEMPLATES: &str = "templates";

/// The environment variable that names its block device in the outer VM.
const CLIENTS_VARIABLE: &str = "MSR_CLIENTS";

/// The same for guests of the full kernel.
const FULL_GUEST_MODULES: &[&str] = &[
    "msr",
    "cpuid",
    "intel_rapl_msr",
    "x86_pkg_temp_thermal",
    "coretemp",
    "virtio_mmio",
    "virtio_blk",
    // ext4 asks for it by what it does, which is no dependency.
    "crc32c_generic",
    "ext4",
];

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
const HOST_TOOL: (&str, &str) = ("iucode-tool", "iucode_tool");

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

/// Puts into an outer VM all that tests ask this module for.
pub fn pack(vm: &mut OuterVm) -> Result<(), AssetError> {
    for path in [guest_init()?, executable("disk-init")?, msr_vmm()?] {
        // Both were found by name.
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        vm.file(format!("{ROOT}/bin/{name}"), path);
    }
    for name in EXAMPLES {
        // Without it, the one test that needs it says so.
        if let Ok(path) = example(name) {
            vm.file(format!("{ROOT}/bin/examples/{name}"), path);
        }
    }
    let modules = [GUEST_MODULES, DISK_MODULES].concat();
    pack_kernel(vm, Release::Bookworm, Flavour::Cloud, &kernel()?, &modules)?;
    for name in FILE_SYSTEM_TOOLS {
        let tool = file_system_tool(name)?;
        for path in libraries(&tool)?.into_iter().chain([tool]) {
            vm.file(path.to_string_lossy(), &path);
        }
    }
    for file in templates()
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
    {
        let name = file.file_name().to_string_lossy().into_owned();
        vm.file(format!("{ROOT}/{TEMPLATES}/{name}"), file.path());
    }
    // Without it, the one test that needs it says so.
    if let Ok(image) = rootfs() {
        vm.disk(image).env(ROOTFS_VARIABLE, "/dev/vda");
    }
    vm.env(ROOT_VARIABLE, ROOT);
    Ok(())
}

/// The same, and the cloud kernels of all releases.
pub fn pack_releases(vm: &mut OuterVm) -> Result<(), AssetError> {
    pack(vm)?;
    for release in Release::ALL {
        if release != Release::Bookworm {
            pack_unpacked(vm, release, Flavour::Cloud, GUEST_MODULES)?;
        }
    }
    Ok(())
}

/// The same, and the full kernels with Debian's tools.
pub fn pack_full(vm: &mut OuterVm) -> Result<(), AssetError> {
    pack_releases(vm)?;
    for release in Release::ALL {
        pack_unpacked(vm, release, Flavour::Full, FULL_GUEST_MODULES)?;
    }
    let guest_tools = GUEST_TOOLS.iter().map(|tool| tool.file);
    for file in guest_tools.chain([HOST_TOOL.1]) {
        vm.file(format!("{ROOT}/tools/{file}"), tool(file)?);
    }
    Ok(())
}

/// The same, and the root file system of programs that read MSRs.
pub fn pack_clients(vm: &mut OuterVm) -> Result<(), AssetError> {
    pack_full(vm)?;
    // Disks have their names by order: [`pack`] packs the first where there is one.
    let name = if rootfs().is_ok() {
        "/dev/vdb"
    } else {
        "/dev/vda"
    };
    vm.disk(clients()?).env(CLIENTS_VARIABLE, name);
    Ok(())
}

/// Packs a kernel whose image is unpacked first: an emulated CPU takes half a minute for the xz of 6.1 and some seconds for
/// the zstd of 6.12, which this one does in one. The bzImage of a cloud kernel comes along, for tests of it.
fn pack_unpacked(
    vm: &mut OuterVm,
    release: Release,
    flavour: Flavour,
    modules: &[&str],
) -> Result<(), AssetError> {
    let kernel = kernel_of(release, flavour)?;
    if flavour == Flavour::Cloud {
        let packed = format!("{ROOT}/kernels/{release}/{}/{BZIMAGE}", flavour.name());
        vm.file(packed, kernel.image());
    }
    let elf = kernel.with_image(unpacked(kernel.image())?);
    pack_kernel(vm, release, flavour, &elf, modules)
}

/// The ELF in a kernel image, kept beside it for the next time.
fn unpacked(image: &Path) -> Result<PathBuf, AssetError> {
    let failed = |reason: &dyn Display| AssetError::Unpack {
        path: image.to_owned(),
        reason: reason.to_string(),
    };
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified());
    let elf = image.with_extension("elf");
    if let (Ok(before), Ok(after)) = (changed(image), changed(&elf))
        && before <= after
    {
        return Ok(elf);
    }
    let bytes = fs::read(image).map_err(|error| failed(&error))?;
    let bytes = msr_vmm::boot::unpack(&bytes).map_err(|error| failed(&error))?;
    // Under its name only when it is whole: another test run may look for it now.
    let partial = image.with_extension(format!("elf.{}", std::process::id()));
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, &elf))
        .map_err(|error| failed(&error))?;
    Ok(elf)
}

fn pack_kernel(
    vm: &mut OuterVm,
    release: Release,
    flavour: Flavour,
    kernel: &Kernel,
    modules: &[&str],
) -> Result<(), AssetError> {
    let directory = format!("{ROOT}/kernels/{release}/{}", flavour.name());
    vm.file(format!("{directory}/vmlinuz"), kernel.image());
    vm.contents(format!("{directory}/version"), kernel.version());
    let built_in = kernel.modules_directory().join("modules.builtin");
    if built_in.exists() {
        vm.file(format!("{directory}/modules/modules.builtin"), built_in);
    }
    for module in kernel.modules(modules)? {
        vm.contents(
            format!("{directory}/modules/{}.ko", module.name),
            module.elf,
        );
    }
    Ok(())
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

/// The shared libraries of an executable, and what loads them, as ldd lists them.
fn libraries(path: &Path) -> Result<Vec<PathBuf>, AssetError> {
    let failed = |reason| AssetError::Linked {
        path: path.to_owned(),
        reason,
    };
    let output = Command::new("ldd").arg(path).output();
    let output = output.map_err(|error| failed(format!("ldd: {error}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
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
