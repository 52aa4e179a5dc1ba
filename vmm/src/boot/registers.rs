//! The boot vCPU's registers at the kernel's first instruction.
//!
//! The other vCPUs need none of this: KVM holds them until the guest sends them INIT and SIPI, which sets theirs.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::multiboot;
use super::paging::GDT;
use super::{Entry, Protocol};
use crate::layout;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

// Intel SDM, volume 3, "Control Registers", and "Extended Feature Enable Register".
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always 1; interrupts are disabled.
const RFLAGS_RESERVED: u64 = 1 << 1;

// What FNINIT and a reset of MXCSR leave (Intel SDM, volume 1, "x87 FPU Control Word" and "MXCSR Control and Status
// Register").
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// KVM did not take a vCPU's registers.
#[derive(Debug, thiserror::Error)]
#[error("{request} failed on the boot vCPU: {error}")]
pub struct RegistersError {
    /// The ioctl.
    pub request: &'static str,
    /// What KVM says.
    pub error: kvm_ioctls::Error,
}

/// Makes `vcpu` begin at `entry`, with interrupts off and flat segments: as the 64-bit boot protocol has it, with paging on
/// and RSI the zero page; or as Multiboot has it (section 3.2), in 32-bit mode without paging, EBX the Multiboot information.
///
/// # Errors
///
/// [`RegistersError`], with the ioctl that failed.
pub fn set(vcpu: &VcpuFd, entry: &Entry) -> Result<(), RegistersError> {
    let failed = |request| move |error| RegistersError { request, error };
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    match entry.protocol {
        Protocol::Linux64 { .. } => set_system(&mut sregs),
        Protocol::Multiboot { .. } => set_system_32(&mut sregs),
    }
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&general(entry))
        .map_err(failed("KVM_SET_REGS"))?;
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..kvm_fpu::default()
    };
    vcpu.set_fpu(&fpu).map_err(failed("KVM_SET_FPU"))
}

fn general(entry: &Entry) -> kvm_regs {
    let regs = kvm_regs {
        rip: entry.address.0,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
    match entry.protocol {
        Protocol::Linux64 { zero_page } => kvm_regs {
            rsi: zero_page.0,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..regs
        },
        // The stack is the kernel's own affair.
        Protocol::Multiboot { info } => kvm_regs {
            rax: multiboot::LOADER_MAGIC,
            rbx: info.0,
            ..regs
        },
    }
}

/// Protected mode as at power-up of the rest: there is no descriptor table in memory, which the kernel must not rely on.
fn set_system_32(sregs: &mut kvm_sregs) {
    let data = segment(DATA_SELECTOR);
    sregs.cs = kvm_segment {
        l: 0,
        db: 1,
        ..segment(CODE_SELECTOR)
    };
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = segment(TSS_SELECTOR);
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// Leaves what is KVM's own, such as the APIC base.
fn set_system(sregs: &mut kvm_sregs) {
    let data = segment(DATA_SELECTOR);
    sregs.cs = segment(CODE_SELECTOR);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = segment(TSS_SELECTOR);
    sregs.gdt = kvm_dtable {
        base: layout::BOOT_GDT,
        limit: (size_of_val(&GDT) - 1) as u16,
        padding: [0; 3],
    };
    // No vector: an exception before the kernel's own table is a triple fault, which says what happened.
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// What loading `selector` from [`GDT`] puts into a segment register (Intel SDM, volume 3, "Segment Descriptors").
fn segment(selector: u16) -> kvm_segment {
    let descriptor = GDT[usize::from(selector / 8)];
    let bits = |low: u32, count: u32| (descriptor >> low) & ((1 << count) - 1);
    let bit = |at: u32| bits(at, 1) as u8;
    let limit = (bits(0, 16) | bits(48, 4) << 16) as u32;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if bit(55) == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        selector,
        type_: bits(40, 4) as u8,
        s: bit(44),
        dpl: bits(45, 2) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn segments_are_what_their_descriptors_say() {
        let code = segment(CODE_SELECTOR);
        assert_eq!((code.base, code.limit, code.type_), (0, 0xffff_ffff, 0xb));
        assert_eq!(
            (code.s, code.present, code.l, code.db, code.g),
            (1, 1, 1, 0, 1)
        );
        let data = segment(DATA_SELECTOR);
        assert_eq!((data.base, data.limit, data.type_), (0, 0xffff_ffff, 0x3));
        assert_eq!(
            (data.s, data.present, data.l, data.db, data.g),
            (1, 1, 0, 1, 1)
        );
        let tss = segment(TSS_SELECTOR);
        assert_eq!((tss.base, tss.limit, tss.type_, tss.s), (0, 0x67, 0xb, 0));
    }

    #[test]
    fn long_mode_is_on_and_interrupts_are_off() {
        let mut sregs = kvm_sregs {
            apic_base: 0xfee0_0900,
            ..kvm_sregs::default()
        };
        set_system(&mut sregs);
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        assert_eq!(sregs.cr0, 0x8000_0031);
        assert_eq!(sregs.cr3, 0x9000);
        assert_eq!(sregs.cr4, 0x20);
        assert_eq!(sregs.efer, 0x500);
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (layout::BOOT_GDT, 47));
        let regs = general(&Entry {
            address: GuestAddress(0x100_0000),
            protocol: Protocol::Linux64 {
                zero_page: GuestAddress(0x7000),
            },
        });
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0000, 0x7000, 2));
        assert_eq!(regs.rsp % 16, 0);
    }

    #[test]
    fn a_multiboot_kernel_starts_in_32_bit_mode_without_paging() {
        let mut sregs = kvm_sregs::default();
        set_system_32(&mut sregs);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x31, 0, 0));
        assert_eq!(
            (sregs.cs.l, sregs.cs.db, sregs.cs.limit),
            (0, 1, 0xffff_ffff)
        );
        assert_eq!((sregs.ss.db, sregs.ss.limit), (1, 0xffff_ffff));
        let regs = general(&Entry {
            address: GuestAddress(0x40_0000),
            protocol: Protocol::Multiboot {
                info: GuestAddress(0x9_0000),
            },
        });
        assert_eq!(
            (regs.rip, regs.rax, regs.rbx),
            (0x40_0000, 0x2bad_b002, 0x9_0000)
        );
        assert_eq!(regs.rflags, 2);
    }
}
