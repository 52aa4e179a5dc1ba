//! The initrd of a Linux guest: the init, its plan, and the modules.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Plan, Step};
use crate::assets::{self, AssetError};
use crate::kernel::Kernel;
use crate::nested::cpio::Archive;

/// Where the init finds its plan, as JSON.
pub const PLAN_PATH: &str = "/plan.json";

/// Where the init finds the modules, each as `NAME.ko`.
pub const MODULES_PATH: &str = "/lib/modules";

/// Where the init of a root disk finds which modules to load, a path a line.
pub const ORDER_PATH: &str = "/lib/modules/order";

/// The modules that a root disk needs, without their dependencies and what is built in.
pub(crate) const DISK_MODULES: &[&str] = &["virtio_mmio", "virtio_blk", "ext4"];

/// An initrd under construction.
#[derive(Debug)]
pub struct Initrd {
    /// What Linux looks for before it has a file system, ahead of everything else.
    early: Archive,
    archive: Archive,
}

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The init, the kernel or a module is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Initrd {
    /// An initrd whose init follows `plan`. It holds each module that the plan loads, and gives the
    /// init the dependencies to load before it.
    pub fn new(plan: &Plan, kernel: &Kernel) -> Result<Self, InitrdError> {
        let mut archive = Archive::new();
        for directory in ["/proc", "/sys", "/tmp"] {
            archive.directory(directory);
        }
        archive
            .character_device("/dev/console", 0o600, 5, 1)
            .character_device("/dev/port", 0o600, 1, 4);
        let json = serde_json::to_vec(plan).expect("strings and integers always serialize");
        archive.file(PLAN_PATH, 0o644, &json);
        let mut initrd = Self {
            early: Archive::new(),
            archive,
        };
        initrd.host_file("/init", 0o755, &assets::guest_init()?)?;
        for step in &plan.steps {
            if let Step::LoadModule { name } = step {
                initrd.module(name, kernel)?;
            }
        }
        Ok(initrd)
    }

    /// An initrd that starts the system on the first virtio disk (`src/bin/disk-init.rs`).
    pub fn for_root_disk(kernel: &Kernel) -> Result<Self, InitrdError> {
        let mut archive = Archive::new();
        for directory in ["/proc", "/sys"] {
            archive.directory(directory);
        }
        archive.character_device("/dev/console", 0o600, 5, 1);
        let mut initrd = Self {
            early: Archive::new(),
            archive,
        };
        initrd.host_file("/init", 0o755, &assets::executable("disk-init")?)?;
        let order = initrd.modules(DISK_MODULES, kernel)?;
        initrd.archive.file(ORDER_PATH, 0o644, order.as_bytes());
        Ok(initrd)
    }

    /// Adds a file of the machine that this runs on; `mode` holds the permission bits.
    pub fn host_file(
        &mut self,
        path: &str,
        mode: u32,
        host: &Path,
    ) -> Result<&mut Self, InitrdError> {
        let contents = fs::read(host).map_err(|source| InitrdError::Read {
            path: host.to_owned(),
            source,
        })?;
        self.archive.file(path, mode, &contents);
        Ok(self)
    }

    /// Adds a file of the archive that comes first, such as early microcode
    /// (Documentation/x86/microcode.rst: "Early load microcode").
    pub fn early_file(&mut self, path: &str, contents: &[u8]) -> &mut Self {
        self.early.file(path, 0o644, contents);
        self
    }

    /// Adds Debian's programs, in `/bin`, and the libraries they are linked with.
    pub fn tools(&mut self) -> Result<&mut Self, InitrdError> {
        for tool in assets::GUEST_TOOLS {
            self.host_file(tool.path, 0o755, &assets::tool(tool.file)?)?;
        }
        Ok(self)
    }

    /// The archive, for what the other methods do not cover.
    pub fn archive(&mut self) -> &mut Archive {
        &mut self.archive
    }

    /// The bytes of the initrd: uncompressed cpio archives.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = if self.early.is_empty() {
            Vec::new()
        } else {
            self.early.finish()
        };
        bytes.append(&mut self.archive.finish());
        bytes
    }

    /// Adds a module and, beside it, the order in which it and its dependencies are loaded.
    fn module(&mut self, name: &str, kernel: &Kernel) -> Result<(), InitrdError> {
        let order = self.modules(&[name], kernel)?;
        let path = format!("{MODULES_PATH}/{name}.order");
        self.archive.file(&path, 0o644, order.as_bytes());
        Ok(())
    }

    /// Adds modules with their dependencies, and returns their paths in the order to load them.
    fn modules(&mut self, names: &[&str], kernel: &Kernel) -> Result<String, InitrdError> {
        let mut order = String::new();
        for module in kernel.modules(names).map_err(AssetError::from)? {
            let path = format!("{MODULES_PATH}/{}.ko", module.name);
            self.archive.file(&path, 0o644, &module.elf);
            order += &format!("{path}\n");
        }
        Ok(order)
    }
}
