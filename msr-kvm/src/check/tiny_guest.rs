//! The state in which guests of a few instructions start, without a boot protocol.
//!
//! Long mode wants page tables, a GDT, an IDT for the exceptions that are met, and registers that refer to them. Here is a
//! minimal set, for the probe of [`check`](super) and for tests. A guest needs no other device than
//! its vCPU.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;

/// The first address behind what [`long_mode_tables`] fills.
pub const TABLES_END: u64 = 0x6000;

/// The selectors of 64-bit code and of flat writable data.
pub const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TASK_SELECTOR: u16 = 0x18;

/// Where KVM on Intel gets a page for an identity map and three pages for a TSS: any address without memory does.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: usize = 0xfffb_d000;

/// The quadwords of guest memory, by guest-physical address, that [`enter_long_mode`] refers to: page tables that
/// map the first GiB one to one, a GDT, and an IDT with the handlers (vector and address below 64 KiB). All lie from
/// 0x1000 up to [`TABLES_END`].
pub fn long_mode_tables(handlers: &[(u8, u64)]) -> Vec<(u64, u64)> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    // A present 64-bit interrupt gate of ring 0 (Intel SDM vol. 3, section 7.14.1).
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    let mut quadwords = vec![
        (PML4, PDPT | PRESENT_WRITABLE),
        (PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE),
        // A handler's IRETQ loads both again: 64-bit code, and flat writable data.
        (GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff),
        (GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff),
    ];
    quadwords.extend((0..512).map(|page| {
        let entry = page << 21 | LARGE | PRESENT_WRITABLE;
        (PAGE_DIRECTORY + 8 * page, entry)
    }));
    quadwords.extend(handlers.iter().map(|(vector, address)| {
        let gate = INTERRUPT_GATE | u64::from(CODE_SELECTOR) << 16 | address & 0xffff;
        (IDT + 16 * u64::from(*vector), gate)
    }));
    quadwords
}

/// 64-bit mode with flat segments, on the tables of [`long_mode_tables`]. `cr4` are the flags of CR4 besides PAE.
pub fn enter_long_mode(sregs: &mut kvm_sregs, cr4: u64) {
    const PAE: u64 = 1 << 5;
    // CR0: PE, MP, ET, NE, WP, PG. EFER: LME, LMA.
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = PML4;
    sregs.cr4 = PAE | cr4;
    sregs.efer = 0x500;
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: TASK_SELECTOR + 15,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 0xfff,
        ..Default::default()
    };
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb, // code, readable, accessed
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3, // data, writable, accessed
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    // The hardware refuses to enter long mode without a busy 64-bit TSS.
    sregs.tr = kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
}

/// Flat real mode below 64 KiB.
pub fn enter_real_mode(sregs: &mut kvm_sregs) {
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_lie_in_their_pages_and_map_one_to_one() {
        let tables = long_mode_tables(&[(13, 0x6123)]);
        assert!(tables.iter().all(|(at, _)| (PML4..TABLES_END).contains(at)));
        let entry = |at| tables.iter().find(|(address, _)| *address == at).unwrap().1;
        assert_eq!(entry(PAGE_DIRECTORY + 8 * 3), 0x60_0083);
        assert_eq!(entry(IDT + 16 * 13), 0x0000_8e00_0008_6123);
    }
}
