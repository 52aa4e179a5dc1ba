//! The state a guest starts in.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

use super::memory;

/// The mode a guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit code, on the first vCPU. Upper halves of registers are out of its sight.
    Real,
    /// 64-bit code with paging.
    Long,
}

/// Selectors in [`memory::GDT`].
pub(super) const CODE_SELECTOR: u16 = 0x08;
pub(super) const DATA_SELECTOR: u16 = 0x10;
const TASK_SELECTOR: u16 = 0x18;

/// Flat real mode below 64 KiB, but for DS, which starts at the table of accesses.
pub(super) fn real(sregs: &mut kvm_sregs) {
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.base = memory::TABLE;
    sregs.ds.selector = (memory::TABLE >> 4) as u16;
    sregs.idt.base = memory::IVT;
    sregs.idt.limit = 0x3ff;
}

/// 64-bit mode with flat segments and an identity map.
pub(super) fn long(sregs: &mut kvm_sregs) {
    // CR0: PE, MP, ET, NE, WP, PG. CR4: PAE. EFER: LME, LMA.
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = memory::PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    sregs.gdt = kvm_dtable {
        base: memory::GDT,
        limit: TASK_SELECTOR + 15,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: memory::IDT,
        limit: 0xfff,
        ..Default::default()
    };
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
}
