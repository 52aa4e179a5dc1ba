//! Intel's update format (SDM vol. 3A, section "Microcode Update Facilities", tables "Microcode Update Field
//! Definitions" and "Extended Processor Signature Table Header Structure").
//!
//! A header of 48 bytes, the encrypted data, and an optional table of further processors the update is for.
//! The loader writes the linear address of the *data*.

use super::{Refusal, Update, offset, sum, sum_words, u32_at};
use crate::{GuestMemoryError, VcpuContext};

const HEADER: u32 = 48;
/// What a data size of 0 stands for.
const DEFAULT_DATA: u32 = 2000;
const DEFAULT_TOTAL: u32 = 2048;
/// The total size is a multiple of this.
const GRANULE: u32 = 1024;
/// The largest update that is looked at, several times the size of the largest published, so that a guest
/// cannot keep the VMM reading for long.
const MAX_TOTAL: u32 = 4 << 20;
const TABLE_HEADER: u32 = 20;
const TABLE_ENTRY: u32 = 12;
/// The most entries of an extended signature table: as many as fit into a page with its header. The format
/// names no limit; an entry is a stepping and platform of processors that share one update.
const MAX_ENTRIES: u32 = 339;
const MAX_TABLE: usize = (TABLE_HEADER + MAX_ENTRIES * TABLE_ENTRY) as usize;

/// Which Intel processor updates are loaded into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Processor {
    /// CPUID.1:EAX.
    pub(super) signature: u32,
    /// Bits 52:50 of `IA32_PLATFORM_ID`, 0 to 7.
    pub(super) platform: u8,
}

/// What an update says it is for: in its header, and again in each entry of the extended table.
#[derive(Clone, Copy)]
struct Target {
    signature: u32,
    flags: u32,
    checksum: u32,
}

impl Target {
    fn fits(self, processor: Processor) -> bool {
        self.signature == processor.signature && self.flags >> processor.platform & 1 == 1
    }

    fn sum(self) -> u32 {
        let Self {
            signature,
            flags,
            checksum,
        } = self;
        signature.wrapping_add(flags).wrapping_add(checksum)
    }
}

/// Checks the update whose data is at the linear address `data`.
pub(super) fn check(
    cpu: &dyn VcpuContext,
    data: u64,
    processor: Processor,
) -> Result<Update, Refusal> {
    let start = data
        .checked_sub(HEADER.into())
        .ok_or(GuestMemoryError { address: data })?;
    let mut header = [0; HEADER as usize];
    cpu.read_guest(start, &mut header)?;
    let field = |at| u32_at(&header, at);
    if field(0) != 1 {
        return Err(Refusal::HeaderVersion(field(0)));
    }
    if field(20) != 1 {
        return Err(Refusal::LoaderRevision(field(20)));
    }
    let (data_size, total) = sizes(field(28), field(32))?;
    // The memory stays the guest's, which may change it meanwhile. All it gains is what it could have had
    // with a good update in the first place; no size is read twice.
    let body = sum(cpu, data, total - HEADER)?;
    if sum_words(&header).wrapping_add(body) != 0 {
        return Err(Refusal::Checksum);
    }
    let main = Target {
        signature: field(12),
        flags: field(24),
        checksum: field(16),
    };
    let table = total - HEADER - data_size;
    // A damaged table spoils the update even where the header fits already.
    let listed = table > 0 && table_fits(cpu, offset(data, data_size)?, table, main, processor)?;
    if !main.fits(processor) && !listed {
        return Err(Refusal::Processor(main.signature));
    }
    Ok(Update {
        revision: field(4),
        date: field(8),
        size: total,
    })
}

/// The sizes of the data and of the whole, from the header's fields.
fn sizes(data: u32, total: u32) -> Result<(u32, u32), Refusal> {
    if data == 0 {
        return Ok((DEFAULT_DATA, DEFAULT_TOTAL));
    }
    let fits = data
        .checked_add(HEADER)
        .is_some_and(|needed| needed <= total);
    let whole = data.is_multiple_of(4) && total.is_multiple_of(GRANULE);
    if !fits || !whole || total > MAX_TOTAL {
        return Err(Refusal::Size { data, total });
    }
    Ok((data, total))
}

/// Whether the extended signature table of `len` bytes at `table` lists the processor.
fn table_fits(
    cpu: &dyn VcpuContext,
    table: u64,
    len: u32,
    main: Target,
    processor: Processor,
) -> Result<bool, Refusal> {
    let entries = len
        .checked_sub(TABLE_HEADER)
        .ok_or(Refusal::SignatureTable)?;
    if entries > MAX_ENTRIES * TABLE_ENTRY {
        return Err(Refusal::TooManySignatures(entries / TABLE_ENTRY));
    }
    // One copy, so that the entries looked at are those that were summed up.
    let mut copy = [0; MAX_TABLE];
    let copy = &mut copy[..len as usize];
    cpu.read_guest(table, copy)?;
    let count = u32_at(copy, 0);
    if count.checked_mul(TABLE_ENTRY) != Some(entries) || sum_words(copy) != 0 {
        return Err(Refusal::SignatureTable);
    }
    let mut fits = false;
    for entry in copy[TABLE_HEADER as usize..].chunks_exact(TABLE_ENTRY as usize) {
        let target = Target {
            signature: u32_at(entry, 0),
            flags: u32_at(entry, 4),
            checksum: u32_at(entry, 8),
        };
        // Put in the header's place it must leave the update's sum as it is.
        if target.sum() != main.sum() {
            return Err(Refusal::SignatureTable);
        }
        fits |= target.fits(processor);
    }
    Ok(fits)
}
