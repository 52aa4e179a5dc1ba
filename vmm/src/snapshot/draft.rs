//! A snapshot while it is written.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::file::{Body, CHECKSUMS, FORMAT, Header, MEMORY, STATE, VERSION};
use super::memory::{Image, begin_writeback};

/// A folder that becomes a snapshot, or goes.
pub(super) struct Draft {
    at: PathBuf,
    folder: PathBuf,
    committed: bool,
}

impl Draft {
    /// A folder beside `folder`, which must not exist.
    pub(super) fn new(folder: &Path) -> Result<Self, SnapshotError> {
        if fs::symlink_metadata(folder).is_ok() {
            return Err(SnapshotError::Exists(folder.to_owned()));
        }
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let at = folder.with_file_name(name);
        // What the guest keeps in its memory is for nobody else.
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(&at).map_err(write_error(&at))?;
        Ok(Self {
            at,
            folder: folder.to_owned(),
            committed: false,
        })
    }

    /// The file for the guest's memory.
    pub(super) fn memory(&self) -> Result<File, SnapshotError> {
        let path = self.at.join(MEMORY);
        let options = File::options().write(true).create_new(true).open(&path);
        options.map_err(write_error(&path))
    }

    /// Writes the checksums and the state, and makes the draft the snapshot once all of it is on the disk.
    pub(super) fn commit(mut self, mut body: Body, memory: Image) -> Result<(), SnapshotError> {
        let (memory, checksums) = memory.finish();
        body.checksums_crc32 = crc32fast::hash(&checksums);
        let checksums = self.write_sparse(CHECKSUMS, &checksums)?;
        let config = |error: serde_json::Error| SnapshotError::Config(error.to_string());
        let text = serde_json::to_vec(&body).map_err(config)?;
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            crc32: crc32fast::hash(&text),
        };
        let header = serde_json::to_vec(&header).map_err(config)?;
        let state = self.write(STATE, &[&header, b"\n", &text])?;
        // Memory last to be begun and first to be waited for: the file system then commits once for all of them.
        for file in [&checksums, &state, &memory] {
            begin_writeback(file);
        }
        let folder = File::open(&self.at).map_err(write_error(&self.at))?;
        for file in [&memory, &checksums, &state, &folder] {
            file.sync_all().map_err(write_error(&self.at))?;
        }
        // An empty folder that was made meanwhile would be replaced; anything else is an error.
        fs::rename(&self.at, &self.folder).map_err(write_error(&self.folder))?;
        self.committed = true;
        let parent = match self.folder.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(write_error(parent))
    }

    /// Leaves holes where there are zeros, as memory has them.
    fn write_sparse(&self, name: &str, bytes: &[u8]) -> Result<File, SnapshotError> {
        const BLOCK: usize = 4096;
        let path = self.at.join(name);
        let written = File::create_new(&path).and_then(|file| {
            file.set_len(bytes.len() as u64)?;
            for (number, block) in bytes.chunks(BLOCK).enumerate() {
                if *block != [0; BLOCK][..block.len()] {
                    file.write_all_at(block, (number * BLOCK) as u64)?;
                }
            }
            Ok(file)
        });
        written.map_err(write_error(&path))
    }

    fn write(&self, name: &str, pieces: &[&[u8]]) -> Result<File, SnapshotError> {
        let path = self.at.join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            pieces.iter().try_for_each(|piece| file.write_all(piece))?;
            Ok(file)
        });
        written.map_err(write_error(&path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_dir_all(&self.at)
        {
            log::warn!("{}: cannot be removed: {error}", self.at.display());
        }
    }
}

pub(super) fn write_error(path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_that_is_not_committed_leaves_nothing() {
        let at = folder("draft");
        let draft = Draft::new(&at).unwrap();
        drop(draft.memory().unwrap());
        let beside = draft.at.clone();
        assert!(beside.exists() && !at.exists());
        drop(draft);
        assert!(!beside.exists() && !at.exists());
    }

    #[test]
    fn what_is_there_is_not_replaced() {
        let at = folder("there");
        fs::create_dir(&at).unwrap();
        assert!(matches!(Draft::new(&at), Err(SnapshotError::Exists(_))));
        fs::remove_dir(&at).unwrap();
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("snapshot.{name}.{}", std::process::id()))
    }
}
