//! The start of a file: magic, version, and the header as JSON with its checksum.

use std::io::{self, Read, Write};

use super::{MAGIC, MAX_HEADER, MAX_VCPUS, VERSION};
use crate::error::ReadError;
use crate::header::Header;

/// Magic, version, the header's length and its checksum.
const FIXED: usize = 8 + 4 + 4 + 4;

/// Writes the preamble and returns its length.
pub(crate) fn write(out: &mut impl Write, header: &Header) -> io::Result<u64> {
    let json = serde_json::to_vec(header)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|length| *length as usize <= MAX_HEADER)
        .ok_or_else(|| io::Error::other("the trace's header is larger than 16 MiB"))?;
    let mut bytes = Vec::with_capacity(FIXED + json.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    out.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// Reads the preamble and returns the header and the preamble's length.
pub(crate) fn read(input: &mut impl Read) -> Result<(Header, u64), ReadError> {
    let mut fixed = [0; FIXED];
    input.read_exact(&mut fixed).map_err(ReadError::no_trace)?;
    let word =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    if fixed[..8] != MAGIC {
        return Err(ReadError::NotATrace);
    }
    let (version, length, checksum) = (word(8), word(12) as usize, word(16));
    if version != VERSION {
        return Err(ReadError::Version(version));
    }
    if length > MAX_HEADER {
        return Err(ReadError::Header(format!(
            "it claims {length} bytes; at most {MAX_HEADER} are taken"
        )));
    }
    let mut json = Vec::new();
    input
        .take(length as u64)
        .read_to_end(&mut json)
        .map_err(ReadError::Io)?;
    if json.len() < length {
        return Err(ReadError::Header(format!(
            "it ends after {} of {length} bytes",
            json.len()
        )));
    }
    if crc32fast::hash(&json) != checksum {
        return Err(ReadError::Header("its checksum is wrong".to_owned()));
    }
    let header: Header =
        serde_json::from_slice(&json).map_err(|error| ReadError::Header(error.to_string()))?;
    if header.vcpus > MAX_VCPUS {
        return Err(ReadError::Header(format!(
            "it claims {} vCPUs; there are at most {MAX_VCPUS}",
            header.vcpus
        )));
    }
    Ok((header, (FIXED + length) as u64))
}
