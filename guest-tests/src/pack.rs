//! Puts what [`assets`] finds on the host into an outer VM, where it finds it again. Each step has all of the one before.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::assets::{
    self, AssetError, CLIENTS_VARIABLE, GUEST_TOOLS, HOST_TOOL, ROOT, ROOT_VARIABLE,
    ROOTFS_VARIABLE, TEMPLATES,
};
use crate::guest::DISK_MODULES;
use crate::kernel::{BZIMAGE, Flavour, Kernel, Release};
use crate::nested::outer::OuterVm;

/// The examples that tests run.
const EXAMPLES: &[&str] = &["smallest", "msr_device", "embed", "msr_state"];

/// The modules that the Linux guests of the tests load, without their dependencies.
const GUEST_MODULES: &[&str] = &["msr", "cpuid", "button", "virtio-rng"];

/// The tools of e2fsprogs that tests use.
const FILE_SYSTEM_TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

/// The same for guests of the full kernel.
const FULL_GUEST_MODULES: &[&str] = &[
    "msr",
    "cpuid",
    "button",
    "intel_rapl_msr",
    "x86_pkg_temp_thermal",
    "coretemp",
    "virtio_mmio",
    "virtio_blk",
    // ext4 asks for it by what it does, which is no dependency.
    "crc32c_generic",
    "ext4",
];

/// Puts into an outer VM what most tests ask [`assets`] for.
pub fn basics(vm: &mut OuterVm) -> Result<(), AssetError> {
    for path in [
        assets::guest_init()?,
        assets::executable("disk-init")?,
        assets::msr_vmm()?,
    ] {
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
        if let Ok(path) = assets::example(name) {
            vm.file(format!("{ROOT}/bin/examples/{name}"), path);
        }
    }
    let modules = [GUEST_MODULES, DISK_MODULES].concat();
    kernel_files(
        vm,
        Release::Bookworm,
        Flavour::Cloud,
        &assets::kernel()?,
        &modules,
    )?;
    for name in FILE_SYSTEM_TOOLS {
        let tool = assets::file_system_tool(name)?;
        for path in libraries(&tool)?.into_iter().chain([tool]) {
            vm.file(path.to_string_lossy(), &path);
        }
    }
    for file in assets::templates()
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
    {
        let name = file.file_name().to_string_lossy().into_owned();
        vm.file(format!("{ROOT}/{TEMPLATES}/{name}"), file.path());
    }
    // Without it, the one test that needs it says so.
    if let Ok(image) = assets::rootfs() {
        vm.disk(image).env(ROOTFS_VARIABLE, "/dev/vda");
    }
    vm.env(ROOT_VARIABLE, ROOT);
    Ok(())
}

/// The same, and the cloud kernels of all releases.
pub fn releases(vm: &mut OuterVm) -> Result<(), AssetError> {
    basics(vm)?;
    for release in Release::ALL {
        if release != Release::Bookworm {
            unpacked_kernel(vm, release, Flavour::Cloud, GUEST_MODULES)?;
        }
    }
    Ok(())
}

/// The same, and the full kernels with Debian's tools.
pub fn full(vm: &mut OuterVm) -> Result<(), AssetError> {
    releases(vm)?;
    for release in Release::ALL {
        unpacked_kernel(vm, release, Flavour::Full, FULL_GUEST_MODULES)?;
    }
    let guest_tools = GUEST_TOOLS.iter().map(|tool| tool.file);
    for file in guest_tools.chain([HOST_TOOL.1]) {
        vm.file(format!("{ROOT}/tools/{file}"), assets::tool(file)?);
    }
    Ok(())
}

/// The same, and the root file system of programs that read MSRs.
pub fn clients(vm: &mut OuterVm) -> Result<(), AssetError> {
    full(vm)?;
    // Disks have their names by order: [`basics`] packs the first where there is one.
    let name = if assets::rootfs().is_ok() {
        "/dev/vdb"
    } else {
        "/dev/vda"
    };
    vm.disk(assets::clients()?).env(CLIENTS_VARIABLE, name);
    Ok(())
}

/// Packs a kernel whose image is unpacked first: an emulated CPU takes half a minute for the xz of 6.1 and some seconds for
/// the zstd of 6.12, which this one does in one. The bzImage comes along, for tests of it.
fn unpacked_kernel(
    vm: &mut OuterVm,
    release: Release,
    flavour: Flavour,
    modules: &[&str],
) -> Result<(), AssetError> {
    let kernel = assets::kernel_of(release, flavour)?;
    let packed = format!("{ROOT}/kernels/{release}/{}/{BZIMAGE}", flavour.name());
    vm.file(packed, kernel.image());
    let elf = kernel.with_image(unpacked(kernel.image())?);
    kernel_files(vm, release, flavour, &elf, modules)
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

fn kernel_files(
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
