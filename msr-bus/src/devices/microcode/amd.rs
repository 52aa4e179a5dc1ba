//! AMD's patch format, as far as it is public: the header in Linux (`struct microcode_header_amd`), and what
//! Koppe et al., "Reverse Engineering x86 Processor Microcode" (USENIX Security 2017), found of K8 and K10.
//!
//! A header of 64 bytes and the patch data. The loader writes the linear address of the header; it has
//! chosen the patch from a container by the id that the container's equivalence table gives for the
//! processor, and the patch bears that id.
//!
//! The header counts the data in triads of 28 bytes, and the checksum is the sum of their 32-bit words.
//! Patches for Zen leave both 0, because a signature covers them, which only AMD's processors can check.

use super::{Refusal, Update, offset, sum, u32_at};
use crate::VcpuContext;

const HEADER: u32 = 64;
const TRIAD: u32 = 28;

/// Which AMD processor patches are loaded into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Processor {
    /// The id that patches for it bear.
    pub(super) equivalent: u16,
}

/// The id of a processor in patches: extended family, extended model, model and stepping, four bits each.
/// Families up to 10h have ids that the container's table alone knows.
pub(super) fn equivalent_id(signature: u32) -> u16 {
    (signature >> 8 & 0xff00 | signature & 0xff) as u16
}

/// Checks the patch at the linear address `address`.
pub(super) fn check(
    cpu: &dyn VcpuContext,
    address: u64,
    processor: Processor,
) -> Result<Update, Refusal> {
    let mut header = [0; HEADER as usize];
    cpu.read_guest(address, &mut header)?;
    let field = |at| u32_at(&header, at);
    let data = u32::from(header[10]) * TRIAD;
    if sum(cpu, offset(address, HEADER)?, data)? != field(12) {
        return Err(Refusal::Checksum);
    }
    // The vendor and device of a north and a south bridge: such patches were never for processors alone.
    if field(16) != 0 || field(20) != 0 {
        return Err(Refusal::Chipset);
    }
    let id = u16::from_le_bytes([header[24], header[25]]);
    if id != processor.equivalent {
        return Err(Refusal::Processor(id.into()));
    }
    Ok(Update {
        revision: field(4),
        date: field(0),
        size: HEADER + data,
    })
}
