//! Linux kernels to boot, and their modules: as `resources/fetch-kernel.sh` lays them out on the
//! host, or as the outer VM's initramfs holds them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: few drivers, boots fast.
    Cloud,
    /// `linux-image-amd64`: every driver, microcode loading.
    Full,
}

impl Flavour {
    /// The flavour's name for `fetch-kernel.sh`, and its directory's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
        }
    }
}

/// The Debian release that a kernel is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian 12, Linux 6.1.
    Bookworm,
    /// Debian 13, Linux 6.12.
    Trixie,
}

impl Release {
    /// All of them, the oldest first.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The suite's name for `fetch-kernel.sh`, and its directory's.
    pub const fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The Linux version that it stays with.
    pub const fn linux(self) -> &'static str {
        match self {
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.suite())
    }
}

/// The name of the file beside an unpacked image that holds the bzImage.
pub(crate) const BZIMAGE: &str = "bzImage";

/// A kernel image with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// Why a kernel or a module cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel is not there.
    #[error("no kernel at {}: run resources/fetch-kernel.sh {release} {flavour}", path.display())]
    NoKernel {
        /// Where it was expected.
        path: PathBuf,
        /// What to fetch.
        release: Release,
        /// Which of the release's kernels.
        flavour: &'static str,
    },
    /// The kernel comes without this module.
    #[error("no module {name}.ko under {}, compressed (xz, zst, gz) or not", modules.display())]
    NoModule {
        /// The module's name.
        name: String,
        /// The directory searched, with its subdirectories.
        modules: PathBuf,
    },
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A module.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// The name, as in the file's: `kvm-amd`.
    pub name: String,
    /// The ELF file, uncompressed whatever its file is.
    pub elf: Vec<u8>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, elf } = self;
        write!(f, "Module({name}, {} bytes)", elf.len())
    }
}

impl Kernel {
    /// The same kernel in another image file.
    #[must_use]
    pub fn with_image(&self, image: impl Into<PathBuf>) -> Self {
        Self::new(image, &self.modules)
    }

    /// The kernel of an image file and the directory that holds its modules, at any depth.
    pub fn new(image: impl Into<PathBuf>, modules: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            modules: modules.into(),
        }
    }

    /// The kernel in the directory `root/<suite>/<flavour>`.
    pub fn in_directory(
        root: &Path,
        release: Release,
        flavour: Flavour,
    ) -> Result<Self, KernelError> {
        let directory = root.join(release.suite()).join(flavour.name());
        let image = directory.join("vmlinuz");
        if !image.is_file() {
            return Err(KernelError::NoKernel {
                path: image,
                release,
                flavour: flavour.name(),
            });
        }
        Ok(Self::new(image, directory.join("modules")))
    }

    /// The kernel's image file, a bzImage unless `KERNEL=` named another kind.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The bzImage that the image was unpacked from, where it was.
    pub fn bzimage(&self) -> PathBuf {
        let packed = self.image.with_file_name(BZIMAGE);
        if packed.is_file() {
            packed
        } else {
            self.image.clone()
        }
    }

    /// What it is: the release and the package's version as `fetch-kernel.sh` recorded them beside the image, or the
    /// image's path.
    pub fn version(&self) -> String {
        let recorded = fs::read_to_string(self.image.with_file_name("version"));
        recorded.map_or_else(
            |_| self.image.display().to_string(),
            |text| text.trim().to_owned(),
        )
    }

    /// The directory of its modules.
    pub fn modules_directory(&self) -> &Path {
        &self.modules
    }

    /// The named modules and all they depend on, in the order to load them. What is built into the
    /// kernel is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>, KernelError> {
        let built_in = built_in(&self.modules)?;
        let mut ordered = Vec::new();
        for name in names {
            self.visit(name, &built_in, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(
        &self,
        name: &str,
        built_in: &[String],
        ordered: &mut Vec<Module>,
    ) -> Result<(), KernelError> {
        let name = canonical(name);
        if built_in.contains(&name) || ordered.iter().any(|m| canonical(&m.name) == name) {
            return Ok(());
        }
        let path = find(&self.modules, &name)?.ok_or_else(|| KernelError::NoModule {
            name: name.clone(),
            modules: self.modules.clone(),
        })?;
        let elf = read_module(&path)?;
        for dependency in dependencies(&elf) {
            self.visit(&dependency, built_in, ordered)?;
        }
        ordered.push(Module {
            name: stem(&path).to_owned(),
            elf,
        });
        Ok(())
    }
}

/// Module names treat `-` and `_` as one.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// A module file's name without `.ko` and any compression's suffix.
fn stem(path: &Path) -> &str {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    name.split_once(".ko").map_or(name, |(stem, _)| stem)
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    fs::read(path).map_err(|source| KernelError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Canonical names of what `modules.builtin` lists; none where there is no such file.
fn built_in(modules: &Path) -> Result<Vec<String>, KernelError> {
    let path = modules.join("modules.builtin");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&read(&path)?).into_owned();
    Ok(text
        .lines()
        .map(|line| canonical(stem(Path::new(line))))
        .collect())
}

/// The file of a module in a tree: the uncompressed one where both are there.
fn find(directory: &Path, name: &str) -> Result<Option<PathBuf>, KernelError> {
    let failed = |source| KernelError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut compressed = None;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if canonical(stem(&path)) == name {
            match path.extension().and_then(|e| e.to_str()) {
                Some("ko") => return Ok(Some(path)),
                Some("xz" | "zst" | "gz") => compressed = Some(path),
                _ => {}
            }
        }
    }
    Ok(compressed)
}

/// A module's ELF file. The suffixes are those of the kernel's `make modules_install`
/// (scripts/Makefile.modinst).
fn read_module(path: &Path) -> Result<Vec<u8>, KernelError> {
    let bytes = read(path)?;
    let mut elf = Vec::new();
    let unpacked = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(&bytes[..], true).read_to_end(&mut elf),
        Some("gz") => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut elf),
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(&bytes[..])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
            .and_then(|mut stream| stream.read_to_end(&mut elf)),
        _ => return Ok(bytes),
    };
    match unpacked {
        Ok(_) => Ok(elf),
        Err(source) => Err(KernelError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The `depends=` entry of a module's `.modinfo` section. The section is NUL-separated text, found
/// here by that entry's form: every module has exactly one, written by modpost.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|&b| b == 0)
        .next()
        .unwrap_or(&[]);
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    /// A tree of modules in a directory that is removed with the value.
    struct Tree(PathBuf);

    impl Tree {
        fn new(test: &str, files: &[(&str, Vec<u8>)]) -> Self {
            let root = std::env::temp_dir().join(format!("{test}.{}", std::process::id()));
            for (path, contents) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, contents).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn dependencies_come_before_dependents_and_once() {
        let tree = Tree::new(
            "module-order",
            &[
                ("kernel/kvm-amd.ko", module("kvm,ccp")),
                ("kernel/virt/kvm.ko", module("irqbypass")),
                ("kernel/virt/irqbypass.ko", module("")),
                ("kernel/msr.ko", module("")),
                ("modules.builtin", b"kernel/drivers/ccp.ko\n".to_vec()),
            ],
        );
        let modules = Kernel::new("vmlinuz", &tree.0)
            .modules(&["kvm_amd", "msr", "kvm"])
            .unwrap();
        let names: Vec<_> = modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm-amd", "msr"]);
        assert_eq!(modules[3].elf, module(""));
    }

    /// `module("irqbypass")` by `xz --check=crc32 --lzma2=dict=1MiB`, `zstd -19` and `gzip -9`, each of which the kernel's
    /// build can be configured to use.
    const COMPRESSED: [(&str, &[u8]); 3] = [
        ("kernel/a.ko.xz", &XZ),
        ("kernel/b.ko.zst", &ZST),
        ("kernel/c.ko.gz", &GZ),
    ];

    #[test]
    fn compressed_modules_are_unpacked_and_their_dependencies_found() {
        let mut files = vec![("kernel/irqbypass.ko", module(""))];
        files.extend(COMPRESSED.map(|(path, bytes)| (path, bytes.to_vec())));
        let tree = Tree::new("module-compressed", &files);
        for name in ["a", "b", "c"] {
            let modules = Kernel::new("vmlinuz", &tree.0).modules(&[name]).unwrap();
            let names: Vec<_> = modules.iter().map(|m| m.name.as_str()).collect();
            assert_eq!(names, ["irqbypass", name]);
            assert_eq!(modules[1].elf, module("irqbypass"));
        }
    }

    #[test]
    fn a_module_that_is_missing_or_damaged_is_named() {
        let tree = Tree::new("module-missing", &[("kernel/msr.ko.xz", XZ[..20].to_vec())]);
        let kernel = Kernel::new("vmlinuz", &tree.0);
        let error = kernel.modules(&["rapl"]).unwrap_err().to_string();
        assert!(error.starts_with("no module rapl.ko under"), "{error}");
        let error = kernel.modules(&["msr"]).unwrap_err().to_string();
        assert!(error.contains("kernel/msr.ko.xz: "), "{error}");
    }

    const XZ: [u8; 100] = *b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x10\x00\x00\x00\xa8\x70\x8e\x86\x01\x00\x2e\x7f\x45\x4c\x46\x00\x6c\x69\x63\x65\x6e\x73\x65\x3d\x47\x50\x4c\x00\x64\x65\x70\x65\x6e\x64\x73\x3d\x69\x72\x71\x62\x79\x70\x61\x73\x73\x00\x72\x65\x74\x70\x6f\x6c\x69\x6e\x65\x3d\x59\x00\x00\x00\x2b\xc2\x4e\x8e\x00\x01\x43\x2f\xb4\x94\x03\x50\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
    const ZST: [u8; 60] = *b"\x28\xb5\x2f\xfd\x04\x68\x79\x01\x00\x7f\x45\x4c\x46\x00\x6c\x69\x63\x65\x6e\x73\x65\x3d\x47\x50\x4c\x00\x64\x65\x70\x65\x6e\x64\x73\x3d\x69\x72\x71\x62\x79\x70\x61\x73\x73\x00\x72\x65\x74\x70\x6f\x6c\x69\x6e\x65\x3d\x59\x00\x52\xfa\xb0\x55";
    const GZ: [u8; 67] = *b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x77\xf5\x71\x63\xc8\xc9\x4c\x4e\xcd\x2b\x4e\xb5\x75\x0f\xf0\x61\x48\x49\x2d\x48\xcd\x4b\x29\xb6\xcd\x2c\x2a\x4c\xaa\x2c\x48\x2c\x2e\x66\x28\x4a\x2d\x29\xc8\xcf\xc9\xcc\x4b\xb5\x8d\x64\x00\x00\x2b\xc2\x4e\x8e\x2f\x00\x00\x00";
}
