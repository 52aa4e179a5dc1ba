//! What can go wrong around a guest.

use msr_filter::InstallError;

/// What went wrong around a guest, rather than in it.
#[derive(Debug, thiserror::Error)]
pub enum MicroError {
    /// KVM refused something.
    #[error("{request} failed: {error}")]
    Kvm {
        /// The request.
        request: &'static str,
        /// Its error.
        error: kvm_ioctls::Error,
    },
    /// KVM refused the filter.
    #[error(transparent)]
    Filter(#[from] InstallError),
    /// The bus cannot be built.
    #[error(transparent)]
    Bus(#[from] msr_bus::BuildError),
    /// Guest memory is not as it should be.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// There is no memory for the guest.
    #[error("guest memory: {0}")]
    NoMemory(#[from] vm_memory::mmap::FromRangesError),
    /// The guest cannot be assembled.
    #[error("assembling the guest: {0}")]
    Assemble(#[from] iced_x86::IcedError),
    /// The table is too small.
    #[error("{given} accesses are too many, the table holds {most}")]
    TooManyOps {
        /// How many were given.
        given: usize,
        /// How many fit.
        most: usize,
    },
    /// The guest ended in a way it should not.
    #[error("the guest ended in {exit} at RIP {rip:#x}")]
    UnexpectedExit {
        /// The exit.
        exit: String,
        /// Where the guest was.
        rip: u64,
    },
    /// The guest ended without having executed everything.
    #[error("access {0} has no result")]
    NoResult(usize),
}

pub(super) fn kvm(request: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MicroError {
    move |error| MicroError::Kvm { request, error }
}
