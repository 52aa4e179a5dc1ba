//! A block's frame: what it holds, how long it is, and its checksum.

use super::MAX_PAYLOAD;
use crate::record::Source;

/// The length of a frame, in bytes.
pub(crate) const FRAME: usize = 44;
/// A frame begins with it.
const SYNC: [u8; 4] = *b"MTRB";
/// Where the checksum is. It covers the frame up to here and the payload.
const CHECKSUM: usize = 40;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Records of one stream.
    Records {
        /// Where they come from.
        source: Source,
        /// The vCPU.
        vcpu: u16,
    },
    /// A note, JSON.
    Note,
}

/// A block's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) content: Content,
    /// The payload's length, in bytes.
    pub(crate) length: u32,
    /// How many records there are.
    pub(crate) count: u32,
    /// How many records of the stream were lost from the start to this block's last record.
    pub(crate) lost: u64,
    /// The time of the first record.
    pub(crate) first: u64,
    /// The time of the last.
    pub(crate) last: u64,
    pub(crate) checksum: u32,
}

impl Frame {
    /// The frame's bytes, with the checksum over it and `payload`.
    pub(crate) fn seal(&self, payload: &[u8]) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[..4].copy_from_slice(&SYNC);
        if let Content::Records { source, vcpu } = self.content {
            bytes[4] = 0;
            bytes[5] = source as u8;
            bytes[6..8].copy_from_slice(&vcpu.to_le_bytes());
        } else {
            bytes[4] = 1;
        }
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.lost.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.last.to_le_bytes());
        let checksum = checksum(&bytes, payload);
        bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The frame in these bytes; `None` where they are none.
    pub(crate) fn parse(bytes: &[u8; FRAME]) -> Option<Self> {
        let four = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        if bytes[..4] != SYNC {
            return None;
        }
        let content = match (bytes[4], bytes[5], u16::from_le_bytes([bytes[6], bytes[7]])) {
            (0, 0, vcpu) => Content::Records {
                source: Source::Userspace,
                vcpu,
            },
            (0, 1, vcpu) => Content::Records {
                source: Source::Kernel,
                vcpu,
            },
            (1, 0, 0) => Content::Note,
            _ => return None,
        };
        let frame = Self {
            content,
            length: four(8),
            count: four(12),
            lost: eight(16),
            first: eight(24),
            last: eight(32),
            checksum: four(CHECKSUM),
        };
        (frame.length as usize <= MAX_PAYLOAD && frame.first <= frame.last).then_some(frame)
    }

    /// Whether `bytes`, this frame's own, and `payload` are as they were written.
    pub(crate) fn holds(&self, bytes: &[u8; FRAME], payload: &[u8]) -> bool {
        checksum(bytes, payload) == self.checksum
    }
}

fn checksum(frame: &[u8; FRAME], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..CHECKSUM]);
    hasher.update(payload);
    hasher.finalize()
}
