//! The guest's memory: what is where, and what is in it at the start.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::code::AccessLoop;
use super::registers::{CODE_SELECTOR, DATA_SELECTOR, Mode};

pub(super) const IVT: u64 = 0;
pub(super) const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
pub(super) const GDT: u64 = 0x4000;
pub(super) const IDT: u64 = 0x5000;
pub(super) const CODE: u64 = 0x6000;
const STACK_TOP: u64 = 0x9000;
/// The first vCPU's table of accesses.
pub(super) const TABLE: u64 = 0x1_0000;

/// How much memory there is, in bytes; mapped by pages of 2 MiB, the size of all that a vCPU has.
pub(super) const SIZE: u64 = MAX_VCPUS as u64 * PER_VCPU;
pub(super) const MAX_VCPUS: u32 = 4;
const PER_VCPU: u64 = 2 << 20;
/// The size of a table in bytes.
pub(super) const TABLE_SIZE: u64 = PER_VCPU - TABLE;
/// As much of it as 16-bit addresses reach.
pub(super) const REAL_MODE_TABLE_SIZE: u64 = 0xffc0;

/// Where vCPU `id`'s table starts.
pub(super) fn table(id: u32) -> u64 {
    TABLE + PER_VCPU * u64::from(id)
}

/// Where vCPU `id`'s stack starts, downwards.
pub(super) fn stack(id: u32) -> u64 {
    STACK_TOP - 0x100 * u64::from(id)
}

const GENERAL_PROTECTION: u64 = 13;

/// Writes tables and code.
pub(super) fn fill(
    memory: &GuestMemoryMmap,
    mode: Mode,
    code: &AccessLoop,
) -> Result<(), GuestMemoryError> {
    memory.write_slice(&code.code, GuestAddress(CODE))?;
    if mode == Mode::Real {
        // CS 0, and an offset that fits: the code lies below 64 KiB.
        return memory.write_obj(
            code.on_fault as u32,
            GuestAddress(IVT + 4 * GENERAL_PROTECTION),
        );
    }
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    for page in 0..u64::from(MAX_VCPUS) {
        memory.write_obj(
            page << 21 | LARGE | PRESENT_WRITABLE,
            GuestAddress(PAGE_DIRECTORY + 8 * page),
        )?;
    }
    for (selector, descriptor) in [
        (CODE_SELECTOR, 0x00af_9b00_0000_ffff_u64),
        (DATA_SELECTOR, 0x00cf_9300_0000_ffff),
    ] {
        memory.write_obj(descriptor, GuestAddress(GDT + u64::from(selector)))?;
    }
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    // The handler lies below 64 KiB, so the upper parts of its offset are 0.
    let gate = INTERRUPT_GATE | u64::from(CODE_SELECTOR) << 16 | code.on_fault;
    memory.write_obj(gate, GuestAddress(IDT + 16 * GENERAL_PROTECTION))
}
