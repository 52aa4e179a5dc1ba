//! One access: what the guest is to do, and what it saw.

use vm_memory::ByteValued;

/// An access for the guest to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// RDMSR of an index, with all bits of RAX and RDX set before.
    Read(u32),
    /// WRMSR of a value to an index, with all bits of the upper halves of RAX and RDX set before.
    Write(u32, u64),
}

impl Op {
    /// The MSR.
    pub fn index(self) -> u32 {
        match self {
            Self::Read(index) | Self::Write(index, _) => index,
        }
    }

    /// The kind of access.
    pub fn access(self) -> msr_bus::Access {
        match self {
            Self::Read(_) => msr_bus::Access::READ,
            Self::Write(..) => msr_bus::Access::WRITE,
        }
    }
}

/// What the guest saw of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How the instruction ended.
    pub outcome: Outcome,
    /// RAX after it.
    pub rax: u64,
    /// RDX after it.
    pub rdx: u64,
    /// RCX after it.
    pub rcx: u64,
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest went on with the next instruction.
    Completed,
    /// #GP was delivered.
    Fault(Fault),
}

/// What the #GP handler found on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The saved RIP.
    pub rip: u64,
    /// The error code; always 0 in real mode, where there is none.
    pub error_code: u64,
}

impl Seen {
    /// EDX:EAX where the instruction completed.
    pub fn value(&self) -> Option<u64> {
        (self.outcome == Outcome::Completed)
            .then_some(self.rdx << 32 | self.rax & u64::from(u32::MAX))
    }

    /// Whether the instruction ended in #GP.
    pub fn faulted(&self) -> bool {
        matches!(self.outcome, Outcome::Fault(_))
    }
}

/// The table's entries as the guest reads and writes them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Record {
    pub(super) write: u64,
    pub(super) rcx: u64,
    pub(super) rax: u64,
    pub(super) rdx: u64,
    pub(super) outcome: u64,
    pub(super) rip: u64,
    pub(super) error_code: u64,
    pub(super) padding: u64,
}

// SAFETY: eight integers of the same size in a row, so no padding and every bit pattern is valid.
unsafe impl ByteValued for Record {}

impl Record {
    pub(super) const SIZE: u64 = size_of::<Self>() as u64;
    pub(super) const COMPLETED: u64 = 1;
    pub(super) const FAULTED: u64 = 2;
    const UPPER: u64 = !(u32::MAX as u64);

    /// What the guest reads. The upper half of RCX is clear, although the instructions use ECX alone: where
    /// it is set, QEMU 7.2's emulation of SVM looks up the permissions of 0-0x1fff in the wrong place.
    pub(super) fn new(op: Op) -> Self {
        let (write, value) = match op {
            Op::Read(_) => (0, u64::MAX),
            Op::Write(_, value) => (1, value),
        };
        Self {
            write,
            rcx: op.index().into(),
            rax: Self::UPPER | value,
            rdx: Self::UPPER | value >> 32,
            ..Default::default()
        }
    }

    /// What the guest wrote, or `None` where it did not get that far.
    pub(super) fn seen(&self) -> Option<Seen> {
        let outcome = match self.outcome {
            Self::COMPLETED => Outcome::Completed,
            Self::FAULTED => Outcome::Fault(Fault {
                rip: self.rip,
                error_code: self.error_code,
            }),
            _ => return None,
        };
        Some(Seen {
            outcome,
            rax: self.rax,
            rdx: self.rdx,
            rcx: self.rcx,
        })
    }
}
