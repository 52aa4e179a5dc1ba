//! The file format, byte by byte; docs/trace-format.md describes it for other programs.
//!
//! A file is a preamble (magic, version, header) and blocks. Each block holds records of one stream, a source of a
//! vCPU, or a note about the recording, and a checksum over all of it. What follows the last whole block is ignored, so that
//! a file whose writer was killed reads up to there.

pub(crate) mod block;
pub(crate) mod encode;
pub(crate) mod preamble;
#[cfg(test)]
mod tests;
pub(crate) mod varint;

/// A file begins with it.
pub const MAGIC: [u8; 8] = *b"MSRTRACE";
/// The version of the format that this crate writes and reads.
pub const VERSION: u32 = 1;
/// The most that a block's payload may take, in bytes. A reader needs no more memory than this for each stream,
/// and about as much again to decode it.
pub const MAX_PAYLOAD: usize = 128 << 10;
/// The most that the header's JSON may take, in bytes.
pub const MAX_HEADER: usize = 16 << 20;
/// The most vCPUs that a trace may have: KVM's own limit (`KVM_MAX_VCPUS`) is at most this.
pub const MAX_VCPUS: u32 = 4096;
