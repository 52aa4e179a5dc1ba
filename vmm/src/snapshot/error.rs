//! What can go wrong with snapshots.

use std::io;
use std::path::PathBuf;

use msr_kvm::state::{PlanStateError, RestoreMsrsError, SaveError, TscError};

use crate::devices::virtio::Stalled;
use crate::running::VcpuGone;

/// Why there is no snapshot. The VM goes on as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is something already.
    #[error("{}: there is something already; name a folder that does not exist yet", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A disk cannot be looked at.
    #[error("disk {}: {source}", path.display())]
    Disk {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A disk does not stand still.
    #[error(transparent)]
    Stalled(#[from] Stalled),
    /// A vCPU has ended.
    #[error("the guest has ended: {0}")]
    Gone(#[from] VcpuGone),
    /// KVM does not give something.
    #[error("{what} failed: {source}")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// It is not known which MSRs to save.
    #[error(transparent)]
    Plan(#[from] PlanStateError),
    /// A vCPU's MSRs cannot be saved.
    #[error(transparent)]
    Msrs(#[from] SaveError),
    /// The TSCs cannot be saved.
    #[error(transparent)]
    Tsc(#[from] TscError),
    /// The filter in force is of no configuration.
    #[error(
        "the MSR filter was replaced by one whose rules are not known, so a snapshot could not restore it; set rules instead"
    )]
    Filter,
    /// The configuration cannot be written.
    #[error("the configuration cannot be saved: {0}")]
    Config(String),
}

/// Why a snapshot is not restored. No instruction of the guest was executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A file cannot be read.
    #[error("snapshot: {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The folder has something else.
    #[error("{}: this is no snapshot of msr-vmm: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The format is another version.
    #[error("{}: the snapshot has version {found} of the format, and this program reads version {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u64,
        /// What this program reads.
        expected: u64,
    },
    /// The file was changed or damaged.
    #[error("{}: its checksum is {found:#010x}, and should be {expected:#010x}: the file is damaged", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// That of the contents.
        found: u32,
        /// That in the file.
        expected: u32,
    },
    /// The memory, or the file of its checksums, has another size.
    #[error("{}: it has {found} bytes, and should have {expected} for the guest's memory: the file is damaged", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The file's size, in bytes.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// The memory is not what was saved.
    #[error(
        "{}: {pages} pages of 4 KiB have other checksums than when they were saved, at the guest's addresses {}: the file is damaged",
        path.display(),
        places.join(", ")
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// How many pages are damaged.
        pages: u64,
        /// Where the first of them are: guest physical addresses.
        places: Vec<String>,
    },
    /// Memory cannot be mapped.
    #[error("cannot map the snapshot's memory: {0}")]
    Map(vm_memory::mmap::MmapRegionError),
    /// A disk is not as it was.
    #[error(
        "disk {}: {what} since the snapshot; the guest's file system would be damaged. \
         Restore a copy of the image from then, or insist with --changed-disks",
        path.display()
    )]
    Disk {
        /// The image.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// There are not as many disks as there were.
    #[error("the snapshot has {expected} disks, and {found} were given in their place")]
    DiskCount {
        /// Given.
        found: usize,
        /// In the snapshot.
        expected: usize,
    },
    /// The guest's CPU would be another.
    #[error("this host cannot show the guest the CPU that it has seen: {}", .0.join("; "))]
    Cpuid(Vec<String>),
    /// The TSC would count at another speed.
    #[error(
        "the guest's TSC counts at {saved} kHz, and this host's at {here} kHz, which KVM cannot scale: {source}"
    )]
    TscFrequency {
        /// In the snapshot.
        saved: u32,
        /// Here.
        here: u32,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The state contradicts the configuration or itself.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// It is not known which MSRs this host has.
    #[error(transparent)]
    Plan(#[from] PlanStateError),
    /// An MSR cannot be restored.
    #[error("vCPU {vcpu}: {source}")]
    Msrs {
        /// The vCPU.
        vcpu: usize,
        /// Which, and why.
        source: RestoreMsrsError,
    },
    /// An MSR device refuses a key that was set while the guest ran.
    #[error("MSR devices: {0}")]
    Live(#[from] msr_bus::ConfigError),
    /// An MSR device refuses its state.
    #[error("MSR devices: {0}")]
    Bus(#[from] msr_bus::RestoreError),
    /// The TSCs cannot be restored.
    #[error(transparent)]
    Tsc(#[from] TscError),
    /// KVM refuses something.
    #[error("{what} of the snapshot's state failed: {source}")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

impl SnapshotError {
    pub(super) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}

impl RestoreError {
    pub(super) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}
