//! The guest's code: a loop over the table of accesses, and its #GP handler.

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::record::Record;

/// The port whose OUT ends a run. HLT would wait in the kernel where the APIC is there.
pub const DONE_PORT: u16 = 0x10;

/// The mode a guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit code, on the first vCPU. Upper halves of registers are out of its sight.
    Real,
    /// 64-bit code with paging.
    Long,
}

/// The assembled guest.
#[derive(Clone, Debug)]
pub struct AccessLoop {
    /// The code, to be placed at the address it was assembled for.
    pub code: Vec<u8>,
    /// The address of the RDMSR.
    pub rdmsr: u64,
    /// The address of the WRMSR.
    pub wrmsr: u64,
    /// The address of the #GP handler.
    pub on_fault: u64,
}

// The fields of `Record`.
const WRITE: usize = 0;
const RCX: usize = 8;
const RAX: usize = 16;
const RDX: usize = 24;
const OUTCOME: usize = 32;
const RIP: usize = 40;
const ERROR_CODE: usize = 48;

impl AccessLoop {
    /// Assembles the guest for `mode`, to run at `address`. It takes the table's start in RSI, its end in
    /// RDI and a stack in RSP, and leaves RSI at the end.
    ///
    /// # Errors
    ///
    /// Those of the assembler, which would be this function's fault.
    pub fn assemble(mode: Mode, address: u64) -> Result<Self, IcedError> {
        match mode {
            Mode::Long => long(address),
            Mode::Real => real(address),
        }
    }
}

struct Labels {
    next: CodeLabel,
    write: CodeLabel,
    done: CodeLabel,
    rdmsr: CodeLabel,
    wrmsr: CodeLabel,
    completed: CodeLabel,
    note: CodeLabel,
    on_fault: CodeLabel,
}

impl Labels {
    fn new(a: &mut CodeAssembler) -> Self {
        Self {
            next: a.create_label(),
            write: a.create_label(),
            done: a.create_label(),
            rdmsr: a.create_label(),
            wrmsr: a.create_label(),
            completed: a.create_label(),
            note: a.create_label(),
            on_fault: a.create_label(),
        }
    }
}

fn long(address: u64) -> Result<AccessLoop, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut l = Labels::new(&mut a);
    a.mov(rbp, rsp)?;
    a.set_label(&mut l.next)?;
    a.cmp(rsi, rdi)?;
    a.je(l.done)?;
    a.mov(rcx, qword_ptr(rsi + RCX))?;
    a.mov(rax, qword_ptr(rsi + RAX))?;
    a.mov(rdx, qword_ptr(rsi + RDX))?;
    a.cmp(qword_ptr(rsi + WRITE), 0)?;
    a.jne(l.write)?;
    a.set_label(&mut l.rdmsr)?;
    a.rdmsr()?;
    a.jmp(l.completed)?;
    a.set_label(&mut l.write)?;
    // Two labels cannot share an instruction.
    a.nop()?;
    a.set_label(&mut l.wrmsr)?;
    a.wrmsr()?;
    a.set_label(&mut l.completed)?;
    a.mov(qword_ptr(rsi + OUTCOME), Record::COMPLETED as i32)?;
    a.set_label(&mut l.note)?;
    a.mov(qword_ptr(rsi + RCX), rcx)?;
    a.mov(qword_ptr(rsi + RAX), rax)?;
    a.mov(qword_ptr(rsi + RDX), rdx)?;
    a.add(rsi, Record::SIZE as i32)?;
    a.jmp(l.next)?;
    a.set_label(&mut l.done)?;
    a.out(i32::from(DONE_PORT), al)?;
    // No IRETQ: a KVM that has to emulate it cannot. The interrupted loop needs nothing but its stack back.
    a.set_label(&mut l.on_fault)?;
    a.pop(qword_ptr(rsi + ERROR_CODE))?;
    a.pop(qword_ptr(rsi + RIP))?;
    a.mov(rsp, rbp)?;
    a.mov(qword_ptr(rsi + OUTCOME), Record::FAULTED as i32)?;
    a.jmp(l.note)?;
    finish(&mut a, &l, address)
}

/// The same in 16-bit code: registers are noted as far as it can see them, and exceptions have no error
/// code. RSI and RDI are offsets in DS.
fn real(address: u64) -> Result<AccessLoop, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let mut l = Labels::new(&mut a);
    a.mov(bp, sp)?;
    a.set_label(&mut l.next)?;
    a.cmp(si, di)?;
    a.je(l.done)?;
    a.mov(ecx, dword_ptr(si + RCX))?;
    a.mov(eax, dword_ptr(si + RAX))?;
    a.mov(edx, dword_ptr(si + RDX))?;
    a.cmp(word_ptr(si + WRITE), 0)?;
    a.jne(l.write)?;
    a.set_label(&mut l.rdmsr)?;
    a.rdmsr()?;
    a.jmp(l.completed)?;
    a.set_label(&mut l.write)?;
    // Two labels cannot share an instruction.
    a.nop()?;
    a.set_label(&mut l.wrmsr)?;
    a.wrmsr()?;
    a.set_label(&mut l.completed)?;
    a.mov(word_ptr(si + OUTCOME), Record::COMPLETED as i32)?;
    a.set_label(&mut l.note)?;
    for (field, register) in [(RCX, ecx), (RAX, eax), (RDX, edx)] {
        a.mov(dword_ptr(si + field), register)?;
        a.mov(dword_ptr(si + (field + 4)), 0)?;
    }
    a.add(si, Record::SIZE as i32)?;
    a.jmp(l.next)?;
    a.set_label(&mut l.done)?;
    a.out(i32::from(DONE_PORT), al)?;
    a.set_label(&mut l.on_fault)?;
    a.pop(word_ptr(si + RIP))?;
    a.mov(sp, bp)?;
    a.mov(word_ptr(si + OUTCOME), Record::FAULTED as i32)?;
    a.jmp(l.note)?;
    finish(&mut a, &l, address)
}

fn finish(a: &mut CodeAssembler, labels: &Labels, address: u64) -> Result<AccessLoop, IcedError> {
    let assembled =
        a.assemble_options(address, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    Ok(AccessLoop {
        rdmsr: assembled.label_ip(&labels.rdmsr)?,
        wrmsr: assembled.label_ip(&labels.wrmsr)?,
        on_fault: assembled.label_ip(&labels.on_fault)?,
        code: assembled.inner.code_buffer,
    })
}
