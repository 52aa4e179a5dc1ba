//! Linux kernels to boot, and their modules: as `resources/fetch-kernel.sh` lays them out on the
//! host, or as the outer VM's initramfs holds them.

use std::fs;
use std::io;
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
    #[error("no kernel at {}: run resources/fetch-kernel.sh {flavour}", path.display())]
    NoKernel {
        /// Where it was expected.
        path: PathBuf,
        /// What to fetch.
        flavour: &'static str,
    },
    /// The kernel comes without this module.
    #[error("no module {name}.ko under {}{}", modules.display(), if *.compressed { " (a compressed one is there: unpack it)" } else { "" })]
    NoModule {
        /// The module's name.
        name: String,
        /// The directory searched, with its subdirectories.
        modules: PathBuf,
        /// Whether a compressed form of it is there.
        compressed: bool,
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

/// A module and the place of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The name, as in the file's: `kvm-amd`.
    pub name: String,
    /// The uncompressed `.ko` file.
    pub path: PathBuf,
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

    /// The kernel in the directory `root/<flavour>`.
    pub fn in_directory(root: &Path, flavour: Flavour) -> Result<Self, KernelError> {
        let directory = root.join(flavour.name());
        let image = directory.join("vmlinuz");
        if !image.is_file() {
            return Err(KernelError::NoKernel {
                path: image,
                flavour: flavour.name(),
            });
        }
        Ok(Self::new(image, directory.join("modules")))
    }

    /// The kernel's image file, a bzImage unless `KERNEL=` named another kind.
    pub fn image(&self) -> &Path {
        &self.image
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
        let (path, compressed) = find(&self.modules, &name)?;
        let path = path.ok_or_else(|| KernelError::NoModule {
            name: name.clone(),
            modules: self.modules.clone(),
            compressed,
        })?;
        for dependency in dependencies(&read(&path)?) {
            self.visit(&dependency, built_in, ordered)?;
        }
        ordered.push(Module {
            name: stem(&path).to_owned(),
            path,
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

/// The file of a module in a tree, and whether a compressed one was seen.
fn find(directory: &Path, name: &str) -> Result<(Option<PathBuf>, bool), KernelError> {
    let failed = |source| KernelError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut compressed = false;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && !path.is_symlink() {
            let (found, packed) = find(&path, name)?;
            if found.is_some() {
                return Ok((found, false));
            }
            compressed |= packed;
        } else if canonical(stem(&path)) == name {
            match path.extension().and_then(|e| e.to_str()) {
                Some("ko") => return Ok((Some(path), false)),
                Some("xz" | "zst" | "gz") => compressed = true,
                _ => {}
            }
        }
    }
    Ok((None, compressed))
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
        assert_eq!(modules[3].path, tree.0.join("kernel/msr.ko"));
    }

    #[test]
    fn a_missing_module_is_named_and_a_compressed_one_mentioned() {
        let tree = Tree::new("module-missing", &[("kernel/msr.ko.xz", vec![])]);
        let kernel = Kernel::new("vmlinuz", &tree.0);
        let error = kernel.modules(&["rapl"]).unwrap_err().to_string();
        assert!(error.starts_with("no module rapl.ko under"), "{error}");
        let error = kernel.modules(&["msr"]).unwrap_err().to_string();
        assert!(
            error.ends_with("(a compressed one is there: unpack it)"),
            "{error}"
        );
    }
}
