//! The state a guest starts in.

use kvm_bindings::kvm_sregs;
use msr_kvm::check::tiny_guest;

use super::memory;

/// Flat real mode below 64 KiB, but for DS, which starts at the table of accesses.
pub(super) fn real(sregs: &mut kvm_sregs) {
    tiny_guest::enter_real_mode(sregs);
    sregs.ds.base = memory::TABLE;
    sregs.ds.selector = (memory::TABLE >> 4) as u16;
    sregs.idt.base = memory::IVT;
    sregs.idt.limit = 0x3ff;
}

/// 64-bit mode with flat segments and an identity map.
pub(super) fn long(sregs: &mut kvm_sregs) {
    tiny_guest::enter_long_mode(sregs, 0);
}
