//! The guest's memory: what is where, and what is in it at the start.

use msr_kvm::check::tiny_guest;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::code::{AccessLoop, Mode};

pub(super) const IVT: u64 = 0;
pub(super) const CODE: u64 = tiny_guest::TABLES_END;
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
    let handlers = [(GENERAL_PROTECTION as u8, code.on_fault)];
    for (address, value) in tiny_guest::long_mode_tables(&handlers) {
        memory.write_obj(value, GuestAddress(address))?;
    }
    Ok(())
}
