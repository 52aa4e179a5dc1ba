//! A tracefs instance of our own (Documentation/trace/ftrace.rst, "Instances"): events enabled in it disturb no one else's tracing, and
//! removing it removes everything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where tracefs is mounted, by default and on older systems.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// The size of each CPU's ring buffer, in KiB. An event takes some 60 bytes.
const BUFFER_KIB: u32 = 8192;
/// Exits for RDMSR and WRMSR: SVM's `VMEXIT_MSR` and VMX's reasons 31 and 32.
const MSR_EXITS: &str =
    "(isa == 2 && exit_reason == 0x7c) || (isa == 1 && (exit_reason == 31 || exit_reason == 32))";

/// Why KVM's tracepoints cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracefsError {
    /// There is no tracefs.
    #[error(
        "tracefs is not mounted at {}: `mount -t tracefs tracefs {}` as root",
        MOUNTS.join(" or "), MOUNTS[0]
    )]
    NotMounted,
    /// KVM's tracepoints are not there.
    #[error("{} does not exist: the kernel lacks KVM's tracepoints, or the module kvm is not loaded", .0.display())]
    NoEvents(PathBuf),
    /// A file of tracefs cannot be used.
    #[error("{}: {source}; tracing needs root", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// An instance. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Instance {
    path: PathBuf,
}

impl Instance {
    /// Makes an instance that records the MSR accesses KVM answers for these threads and those they start.
    pub(super) fn new(threads: &[u32]) -> Result<Self, TracefsError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = MOUNTS
            .iter()
            .map(Path::new)
            .find(|path| path.join("instances").is_dir());
        let root = root.ok_or(TracefsError::NotMounted)?;
        let event = root.join("events/kvm/kvm_msr");
        if !event.is_dir() {
            return Err(TracefsError::NoEvents(event));
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("instances/msr-vmm-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|source| TracefsError::File {
            path: path.clone(),
            source,
        })?;
        let instance = Self { path };
        let threads: Vec<String> = threads.iter().map(ToString::to_string).collect();
        for (file, text) in [
            ("trace_clock", "mono"),
            ("buffer_size_kb", &BUFFER_KIB.to_string()),
            ("options/event-fork", "1"),
            ("set_event_pid", &threads.join(" ")),
            ("events/kvm/kvm_exit/filter", MSR_EXITS),
            ("events/kvm/kvm_exit/enable", "1"),
            ("events/kvm/kvm_msr/enable", "1"),
            ("tracing_on", "1"),
        ] {
            instance.write(file, text)?;
        }
        Ok(instance)
    }

    /// Records nothing more. What was recorded can still be read.
    pub(super) fn stop(&self) -> Result<(), TracefsError> {
        self.write("tracing_on", "0")
    }

    /// What is recorded, as text; a read of nothing is `WouldBlock`.
    pub(super) fn pipe(&self) -> Result<File, TracefsError> {
        let path = self.path.join("trace_pipe");
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|source| TracefsError::File { path, source })
    }

    fn write(&self, file: &str, text: &str) -> Result<(), TracefsError> {
        let path = self.path.join(file);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| TracefsError::File { path, source })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
