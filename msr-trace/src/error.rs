//! Why a trace cannot be read.

use std::io;

use crate::format::VERSION;

/// Why a file cannot be read as a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The host cannot read it.
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    /// It does not begin as a trace does.
    #[error(
        "is no trace: it does not begin with \"MSRTRACE\"; `msr-vmm run --trace FILE` makes one"
    )]
    NotATrace,
    /// It was written by another version of this program.
    #[error("is a trace of format version {0}; this program reads version {VERSION}")]
    Version(u32),
    /// Its header cannot be read.
    #[error("has a header that cannot be read: {0}")]
    Header(String),
    /// A block's checksum is right and its contents are not.
    #[error("has a block at byte {0} whose records make no sense")]
    Malformed(u64),
}

impl ReadError {
    /// The error for a file that is too short for a trace.
    pub(crate) fn no_trace(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::NotATrace
        } else {
            Self::Io(error)
        }
    }
}
