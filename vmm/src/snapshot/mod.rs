//! Snapshots: a VM stopped at a moment, in a folder, to be carried on by any process that gets the folder.
//!
//! A snapshot is a folder with three files. `state` has a line of JSON that says what it is, which version of the format and
//! the checksum of the rest, and then JSON: the VM's configuration, its CPUID, vCPUs, interrupt controllers, devices, and
//! the identity of its disks. `memory` is the guest's memory, region after region, with holes where it is zero, and
//! `checksums` has the checksums of its pages. `docs/snapshots.md` describes the format.
//!
//! **Saving** ([`RunningVm::snapshot`](crate::RunningVm::snapshot)) writes memory while the guest runs, and then pauses the VM, so
//! that every vCPU has completed its last exit and every virtio device has put back what it had begun. What was written to
//! memory meanwhile is written again, and each vCPU's thread saves its own vCPU. The files are written to a folder beside the one
//! asked for, reach the disk, and are renamed: a crash leaves no snapshot, and never half of one.
//!
//! **Restoring** ([`VmBuilder::restore`](crate::VmBuilder::restore)) reads the state, checks all of it that can be checked, builds the VM of
//! its configuration without loading a kernel, and gives each part its state. What another host lacks (a CPUID bit, an
//! MSR, the TSC's frequency) is found before the guest runs, and named. Memory is mapped privately from the file: the VM
//! starts without reading it, and VMs from one snapshot share what they do not write.
//!
//! A snapshot is input like any other: nothing in it is believed unchecked but the contents of memory, which are the guest's.
//! Its author decides what the guest does, as the author of a kernel would, and no more than that.
//!
//! VMs from one snapshot begin with the same random state in memory. A restored guest has another generation identifier, and is told so
//! (`devices/generation_id.rs`).
//!
//! What is not here: the state of nested virtualization. Time stands still between saving
//! and restoring: the guest's clocks go on where they were.

mod clock;
mod disks;
mod draft;
mod error;
mod file;
mod host;
mod machine;
mod memory;
mod save;
mod vcpu;

pub use error::{RestoreError, SnapshotError};
pub use file::{Snapshot, VERSION};
pub(crate) use host::leaves;
pub(crate) use machine::{Devices, SaveContext};
pub use save::Saved;
