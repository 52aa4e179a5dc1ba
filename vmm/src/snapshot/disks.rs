//! Which disks a snapshot was made with.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{RestoreError, SnapshotError};
use crate::config::VmConfig;

/// What a disk's image was when the snapshot was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskIdentity {
    path: PathBuf,
    /// In bytes.
    size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
}

impl DiskIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            // The same image by whatever name.
            path: path.canonicalize()?,
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// The disks of a VM whose devices stand still.
pub(super) fn identify(config: &VmConfig) -> Result<Vec<DiskIdentity>, SnapshotError> {
    let identify = |path: &Path| {
        DiskIdentity::of(path).map_err(|source| SnapshotError::Disk {
            path: path.to_owned(),
            source,
        })
    };
    config
        .disks
        .iter()
        .map(|disk| identify(&disk.path))
        .collect()
}

/// Whether the disks of `config` are what they were.
///
/// A disk under another path is another disk, a copy, of which the size alone must be right. With `changed` none is looked
/// at: opening them checks what has to be right.
pub(super) fn check(
    config: &VmConfig,
    saved: &[DiskIdentity],
    changed: bool,
) -> Result<(), RestoreError> {
    if config.disks.len() != saved.len() {
        return Err(RestoreError::DiskCount {
            found: config.disks.len(),
            expected: saved.len(),
        });
    }
    if changed {
        return Ok(());
    }
    for (disk, saved) in config.disks.iter().zip(saved) {
        let now = DiskIdentity::of(&disk.path).map_err(|source| RestoreError::Read {
            path: disk.path.clone(),
            source,
        })?;
        let what = if now.size != saved.size {
            format!("its size has become {} from {} bytes", now.size, saved.size)
        } else if now.path == saved.path && now.modified != saved.modified {
            "it was written to".to_owned()
        } else {
            continue;
        };
        return Err(RestoreError::Disk {
            path: disk.path.clone(),
            what,
        });
    }
    Ok(())
}
