//! The tiny guests' code: each executes one thing that Linux does early, and halts with a known RAX.

use std::arch::global_asm;

use kvm_bindings::{KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_UNKNOWN};
use msr_filter::Access;

/// The mode a program starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Real,
    Long,
}

/// A tiny guest.
#[derive(Debug)]
pub(super) struct Program {
    /// What it shows, as a noun phrase.
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    /// Its entry's place in the code's table of offsets.
    entry: usize,
    /// RAX when it halts.
    pub(super) expected: u64,
    /// Whether Linux is out of the question without it; otherwise even micro guests are.
    pub(super) linux_only: bool,
}

/// What RAX holds where a program has nothing better to say.
const DONE: u64 = 0x600d;
/// The MSR that programs read and write, with no meaning on any CPU: the range is set aside for
/// hypervisors (Intel SDM vol. 4, section 2.1).
pub(super) const MSR: u32 = 0x4000_00f0;
/// The MSR whose accesses the host answers with #GP.
pub(super) const FAULTING_MSR: u32 = 0x4000_00f1;
/// The port that a guest writes to when it is done.
pub(super) const DONE_PORT: u16 = 0xf4;
/// What the MSR reads as, and what is written to it.
pub(super) const MSR_VALUE: u64 = 0x1122_3344_5566_7788;
/// The exit reason that the accesses must have.
pub(super) const MSR_REASON: u32 = KVM_MSR_EXIT_REASON_FILTER;
/// A reason that must not show although it is enabled: the filter is asked first.
pub(super) const OTHER_REASON: u32 = KVM_MSR_EXIT_REASON_UNKNOWN;

/// Where the code's handlers are in its table of offsets, by vector.
const HANDLERS: [(u8, usize); 2] = [(3, 8), (13, 9)];
/// Where the code is that reads or writes the MSR in RCX and says by [`DONE_PORT`] that it did: HLT does not leave a KVM that has
/// the local APIC.
const READ: usize = 10;
const WRITE: usize = 11;

/// The programs, simplest first.
pub(super) const PROGRAMS: [Program; 8] = [
    Program {
        name: "integer code in real mode",
        mode: Mode::Real,
        entry: 0,
        expected: 55,
        linux_only: false,
    },
    Program {
        name: "integer code in long mode",
        mode: Mode::Long,
        entry: 1,
        expected: 3_628_800,
        linux_only: false,
    },
    Program {
        name: "RDMSR answered in userspace",
        mode: Mode::Long,
        entry: 2,
        expected: MSR_VALUE,
        linux_only: false,
    },
    Program {
        name: "WRMSR answered in userspace",
        mode: Mode::Long,
        entry: 3,
        expected: MSR_VALUE & 0xffff_ffff,
        linux_only: false,
    },
    Program {
        name: "#GP for an MSR access",
        mode: Mode::Long,
        entry: 4,
        expected: DONE,
        linux_only: false,
    },
    Program {
        name: "INT3 and IRETQ",
        mode: Mode::Long,
        entry: 5,
        expected: DONE,
        linux_only: true,
    },
    Program {
        name: "XSAVE and XRSTOR, or FXSAVE and FXRSTOR",
        mode: Mode::Long,
        entry: 6,
        expected: DONE,
        linux_only: true,
    },
    Program {
        name: "CMPXCHG16B",
        mode: Mode::Long,
        entry: 7,
        expected: DONE,
        linux_only: true,
    },
];

// Position-independent, so that it runs wherever it is copied to. Long-mode programs find a stack in RSP and
// 4 KiB of zeroed scratch memory, 64-byte aligned, in RDI; real-mode programs a stack in SP.
global_asm!(
    r#"
    .pushsection .rodata.msr_vmm_check, "a", @progbits
    .hidden msr_vmm_check_code
    .hidden msr_vmm_check_code_end
    .global msr_vmm_check_code
    .global msr_vmm_check_code_end
    .balign 8
msr_vmm_check_code:
    .short .Lcheck_real - msr_vmm_check_code
    .short .Lcheck_long - msr_vmm_check_code
    .short .Lcheck_rdmsr - msr_vmm_check_code
    .short .Lcheck_wrmsr - msr_vmm_check_code
    .short .Lcheck_fault - msr_vmm_check_code
    .short .Lcheck_int3 - msr_vmm_check_code
    .short .Lcheck_xrstor - msr_vmm_check_code
    .short .Lcheck_cmpxchg16b - msr_vmm_check_code
    .short .Lcheck_on_breakpoint - msr_vmm_check_code
    .short .Lcheck_on_protection - msr_vmm_check_code
    .short .Lcheck_read - msr_vmm_check_code
    .short .Lcheck_write - msr_vmm_check_code

    .code16
.Lcheck_real:                   # 10 + 9 + ... + 1, by way of the stack
    xor eax, eax
    mov cx, 10
2:  push cx
    pop bx
    add ax, bx
    loop 2b
    hlt

    .code64
.Lcheck_long:                   # 10!, by way of a call
    mov eax, 1
    mov ecx, 10
2:  call 3f
    dec ecx
    jnz 2b
    hlt
3:  imul rax, rcx
    ret

.Lcheck_rdmsr:                  # RAX = EDX:EAX, if RDMSR clears the upper halves
    mov rax, -1
    mov rdx, -1
    mov ecx, {msr}
    rdmsr
    mov rbx, rdx
    shr rbx, 32
    jnz 2f
    shl rdx, 32
    or rax, rdx
2:  hlt

.Lcheck_wrmsr:
    mov eax, {value_low}
    mov edx, {value_high}
    mov ecx, {msr}
    wrmsr
    hlt

.Lcheck_fault:
    mov ecx, {faulting_msr}
    lea rbx, [rip + 2f]
2:  rdmsr
    hlt
.Lcheck_on_protection:          # the saved RIP, above the error code, must be that of the RDMSR
    mov rax, [rsp + 8]
    sub rax, rbx
    or rax, {done}
    hlt

.Lcheck_int3:
    xor eax, eax
    int3
    hlt
.Lcheck_on_breakpoint:
    mov eax, {done}
    iretq

.Lcheck_xrstor:                 # CPUID.1:ECX.OSXSAVE tells which
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 27
    mov eax, 1
    mov edx, 0
    jnc 2f
    xsave [rdi]
    xrstor [rdi]
    jmp 3f
2:  fxsave [rdi]
    fxrstor [rdi]
3:  mov eax, {done}
    hlt

.Lcheck_cmpxchg16b:             # replaces the scratch memory's zeroes
    xor eax, eax
    xor edx, edx
    mov ebx, {done}
    xor ecx, ecx
    lock cmpxchg16b [rdi]
    mov rax, [rdi]
    hlt

.Lcheck_read:
    rdmsr
    out {done_port}, al
    hlt

.Lcheck_write:
    xor eax, eax
    xor edx, edx
    wrmsr
    out {done_port}, al
    hlt
msr_vmm_check_code_end:
    .popsection
    "#,
    msr = const MSR,
    faulting_msr = const FAULTING_MSR,
    value_low = const MSR_VALUE & 0xffff_ffff,
    value_high = const MSR_VALUE >> 32,
    done = const DONE,
    done_port = const DONE_PORT,
);

unsafe extern "C" {
    static msr_vmm_check_code: u8;
    static msr_vmm_check_code_end: u8;
}

/// The code of all programs, to be copied into guest memory.
pub(super) fn code() -> &'static [u8] {
    let start = &raw const msr_vmm_check_code;
    let end = &raw const msr_vmm_check_code_end;
    // SAFETY: both symbols are in one section of the code above, the end after the start, and the bytes
    // between are constant.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// The offset in [`code`] that entry `entry` of the table at its start gives.
fn offset(code: &[u8], entry: usize) -> u64 {
    let (table, _) = code.as_chunks::<2>();
    u64::from(u16::from_le_bytes(table[entry]))
}

impl Program {
    /// Where its code starts in [`code`].
    pub(super) fn offset(&self) -> u64 {
        offset(code(), self.entry)
    }
}

/// Where the code starts in [`code`] that executes RDMSR, or WRMSR of 0, of the MSR in RCX, and says so at
/// [`DONE_PORT`].
pub(super) fn accessing(access: Access) -> u64 {
    let entry = if access == Access::READ { READ } else { WRITE };
    offset(code(), entry)
}

/// The exception handlers: vectors, with where their code starts in [`code`].
pub(super) fn handlers() -> [(u8, u64); 2] {
    HANDLERS.map(|(vector, entry)| (vector, offset(code(), entry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE_LEN: usize = PROGRAMS.len() + HANDLERS.len() + 2;

    #[test]
    fn every_entry_of_the_table_points_behind_it_and_into_the_code() {
        let code = code();
        let offsets: Vec<u64> = (0..TABLE_LEN).map(|entry| offset(code, entry)).collect();
        for offset in &offsets {
            assert!(*offset >= 2 * TABLE_LEN as u64 && *offset < code.len() as u64);
        }
        for (program, entry) in PROGRAMS.iter().zip(0..) {
            assert_eq!(program.entry, entry);
        }
        // int3 and its neighbours, where the table says: CC follows XOR EAX, EAX.
        let int3 = PROGRAMS[5].offset() as usize;
        assert_eq!(code[int3 + 2..][..2], [0xcc, 0xf4]);
    }

    #[test]
    fn the_code_fits_into_its_page() {
        assert!(code().len() < 0x1000);
    }
}
