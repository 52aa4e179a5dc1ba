//! Opening `/dev/kvm`, and telling apart the ways in which that fails.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::Kvm;

/// Why a path gives no usable KVM, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// There is no such file, on a CPU that could have it.
    #[error(
        "{path} does not exist, although the CPU has {extension}: load the module (`modprobe {module}`), \
         and enable virtualization in the firmware if that fails",
        path = path.display()
    )]
    NotLoaded {
        /// The path.
        path: PathBuf,
        /// The CPU's virtualization extension, by its name in `/proc/cpuinfo`.
        extension: &'static str,
        /// The kernel module for it.
        module: &'static str,
    },
    /// There is no such file, and the CPU shows no virtualization extension.
    #[error(
        "{path} does not exist, and the CPU shows neither vmx nor svm: enable virtualization in the \
         firmware, or nested virtualization where this host is itself a guest",
        path = path.display()
    )]
    NoVirtualization {
        /// The path.
        path: PathBuf,
    },
    /// The file belongs to others.
    #[error(
        "no permission to open {path}: add the user to the group that owns it \
         (`usermod -aG kvm USER`, then log in again)",
        path = path.display()
    )]
    Permission {
        /// The path.
        path: PathBuf,
    },
    /// The device node has no driver behind it.
    #[error(
        "{path} exists, but no driver answers: load kvm_intel or kvm_amd",
        path = path.display()
    )]
    NoDriver {
        /// The path.
        path: PathBuf,
    },
    /// The file is something else.
    #[error(
        "{path} is not a KVM: it does not answer KVM_GET_API_VERSION",
        path = path.display()
    )]
    NotKvm {
        /// The path.
        path: PathBuf,
    },
    /// The KVM speaks another API.
    #[error(
        "{path} has API version {found}, and every KVM since Linux 2.6.22 has 12",
        path = path.display()
    )]
    Version {
        /// The path.
        path: PathBuf,
        /// What `KVM_GET_API_VERSION` gave.
        found: i32,
    },
    /// Anything else that `open` says.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The error.
        source: kvm_ioctls::Error,
    },
}

/// Opens the KVM at `path` and checks that it is one.
pub(super) fn open(path: &Path) -> Result<Kvm, AccessError> {
    let path = path.to_owned();
    let kvm = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))
        .and_then(Kvm::new_with_path)
        .map_err(|error| open_error(path.clone(), error, cpu_extension()))?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version if version < 0 => Err(AccessError::NotKvm { path }),
        found => Err(AccessError::Version { path, found }),
    }
}

fn open_error(
    path: PathBuf,
    error: kvm_ioctls::Error,
    extension: Option<(&'static str, &'static str)>,
) -> AccessError {
    match (error.errno(), extension) {
        (libc::ENOENT, Some((extension, module))) => AccessError::NotLoaded {
            path,
            extension,
            module,
        },
        (libc::ENOENT, None) => AccessError::NoVirtualization { path },
        (libc::EACCES | libc::EPERM, _) => AccessError::Permission { path },
        (libc::ENXIO | libc::ENODEV, _) => AccessError::NoDriver { path },
        _ => AccessError::Open {
            path,
            source: error,
        },
    }
}

/// The CPU's virtualization extension and the kernel module that serves it.
fn cpu_extension() -> Option<(&'static str, &'static str)> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    [("vmx", "kvm_intel"), ("svm", "kvm_amd")]
        .into_iter()
        .find(|(extension, _)| cpuinfo.split_whitespace().any(|flag| flag == *extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_kvm_is_told_from_a_missing_one() {
        let path = PathBuf::from("/dev/null");
        assert_eq!(open(&path).unwrap_err(), AccessError::NotKvm { path });
        let path = PathBuf::from("/dev/no-such-kvm");
        assert!(matches!(
            open(&path).unwrap_err(),
            AccessError::NotLoaded { .. } | AccessError::NoVirtualization { .. }
        ));
    }

    #[test]
    fn each_errno_of_open_has_its_advice() {
        let error = |errno, extension| {
            let error = kvm_ioctls::Error::new(errno);
            open_error("/dev/kvm".into(), error, extension).to_string()
        };
        let intel = Some(("vmx", "kvm_intel"));
        for (errno, extension, advice) in [
            (libc::ENOENT, intel, "modprobe kvm_intel"),
            (libc::ENOENT, None, "neither vmx nor svm"),
            (libc::EACCES, intel, "usermod"),
            (libc::EPERM, None, "usermod"),
            (libc::ENODEV, intel, "no driver"),
            (libc::EMFILE, intel, "cannot open /dev/kvm"),
        ] {
            let text = error(errno, extension);
            assert!(text.contains(advice), "errno {errno}: {text}");
        }
    }
}
