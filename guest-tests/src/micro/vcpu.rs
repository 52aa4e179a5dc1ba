//! A vCPU and the guest on it.

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use msr_kvm::{Answered, VcpuMsrs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::code::DONE_PORT;
use super::code::Mode;
use super::error::{MicroError, kvm};
use super::memory;
use super::record::{Op, Record, Seen};

/// A guest's run, seen from both sides.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What the guest saw, one for each access, in their order.
    pub seen: Vec<Seen>,
    /// The exits that userspace saw, in their order.
    pub exits: Vec<Answered>,
}

/// A vCPU with a table of accesses of its own.
pub struct MicroVcpu {
    /// The vCPU, for what the kit does not do itself.
    pub fd: VcpuFd,
    pub(super) id: u32,
    pub(super) mode: Mode,
    pub(super) memory: GuestMemoryMmap,
    pub(super) msrs: VcpuMsrs,
}

impl MicroVcpu {
    /// The guest's memory, shared by all its vCPUs.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Writes the table, and sets the registers to start with it.
    ///
    /// # Errors
    ///
    /// [`MicroError::TooManyOps`], or what KVM refuses.
    pub fn load(&mut self, ops: &[Op]) -> Result<(), MicroError> {
        let size = match self.mode {
            Mode::Real => memory::REAL_MODE_TABLE_SIZE,
            Mode::Long => memory::TABLE_SIZE,
        };
        let most = (size / Record::SIZE) as usize;
        if ops.len() > most {
            return Err(MicroError::TooManyOps {
                given: ops.len(),
                most,
            });
        }
        for (at, op) in self.table().zip(ops) {
            self.memory.write_obj(Record::new(*op), at)?;
        }
        // Real mode addresses the table from its own start.
        let start = match self.mode {
            Mode::Real => 0,
            Mode::Long => memory::table(self.id),
        };
        let regs = kvm_regs {
            rip: memory::CODE,
            rsp: memory::stack(self.id),
            rsi: start,
            rdi: start + Record::SIZE * ops.len() as u64,
            rflags: 2,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
    }

    /// Has the guest execute `ops` one after the other.
    ///
    /// # Errors
    ///
    /// [`MicroError`] where it cannot, or ends in another way than having done so.
    pub fn run(&mut self, ops: &[Op]) -> Result<Run, MicroError> {
        self.load(ops)?;
        let mut run = Run::default();
        while let Some(answered) = self.answer_next()? {
            run.exits.push(answered);
        }
        run.seen = self.seen(ops.len())?;
        Ok(run)
    }

    /// Runs the guest up to its next MSR exit and answers that; `None` where the guest has ended.
    /// The instruction completes with the next call.
    ///
    /// # Errors
    ///
    /// [`MicroError::UnexpectedExit`] for any other exit.
    pub fn answer_next(&mut self) -> Result<Option<Answered>, MicroError> {
        match self.fd.run().map_err(kvm("KVM_RUN"))? {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => Ok(self.msrs.answer(&mut self.fd)),
            VcpuExit::IoOut(DONE_PORT, _) => Ok(None),
            exit => Err(MicroError::UnexpectedExit {
                exit: format!("{exit:?}"),
                rip: self.fd.get_regs().map_err(kvm("KVM_GET_REGS"))?.rip,
            }),
        }
    }

    /// What the guest has noted of its first `count` accesses.
    ///
    /// # Errors
    ///
    /// [`MicroError::NoResult`] where it did not get that far.
    pub fn seen(&self, count: usize) -> Result<Vec<Seen>, MicroError> {
        self.table()
            .take(count)
            .enumerate()
            .map(|(number, at)| {
                let record: Record = self.memory.read_obj(at)?;
                record.seen().ok_or(MicroError::NoResult(number))
            })
            .collect()
    }

    fn table(&self) -> impl Iterator<Item = GuestAddress> + use<> {
        let start = memory::table(self.id);
        (0..).map(move |number| GuestAddress(start + Record::SIZE * number))
    }
}
