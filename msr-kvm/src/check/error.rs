//! How a guest's run ended, in words.

use std::fmt;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::internal_error::InternalError;

/// How a tiny guest ended other than by HLT with the right result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrialError {
    /// It halted with another result than it should: KVM or the CPU executes it wrongly.
    WrongResult {
        /// What RAX should hold.
        expected: u64,
        /// What it holds.
        found: u64,
    },
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError(InternalError),
    /// `KVM_EXIT_FAIL_ENTRY` with the hardware's reason.
    FailEntry(u64),
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    Shutdown,
    /// An exit that the guest gives no cause for.
    Unexpected(String),
    /// It could not be prepared, for a reason that is not KVM's.
    Setup(String),
    /// KVM_RUN, or a request before it, failed.
    Ioctl {
        /// The request.
        request: &'static str,
        /// Its error.
        error: kvm_ioctls::Error,
    },
    /// The guest did not end in time and was stopped.
    TimedOut,
    /// KVM_RUN does not even return for a signal.
    Stuck,
    /// It was not tried, because KVM was stuck before.
    NotTried,
}

impl fmt::Display for TrialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongResult { expected, found } => {
                write!(f, "wrong result: RAX is {found:#x}, not {expected:#x}")
            }
            Self::InternalError(error) => error.fmt(f),
            Self::FailEntry(reason) => write!(
                f,
                "KVM_EXIT_FAIL_ENTRY: the CPU refuses to enter the guest, hardware reason {reason:#x}"
            ),
            Self::Shutdown => f.write_str("KVM_EXIT_SHUTDOWN: triple fault"),
            Self::Unexpected(exit) => write!(f, "unexpected exit {exit}"),
            Self::Setup(reason) => f.write_str(reason),
            Self::Ioctl { request, error } => write!(f, "{request} failed: {error}"),
            Self::TimedOut => f.write_str("no end in time, the guest was stopped"),
            Self::Stuck => f.write_str("KVM_RUN hangs and does not return for a signal"),
            Self::NotTried => f.write_str("not tried"),
        }
    }
}

/// What was the matter with the exit that `vcpu` has just returned with, given by what of it can be kept.
pub(super) fn of_exit(exit: Exit, vcpu: &mut VcpuFd) -> TrialError {
    match exit {
        Exit::InternalError => {
            TrialError::InternalError(InternalError::from_run(vcpu.get_kvm_run()))
        }
        Exit::FailEntry(reason) => TrialError::FailEntry(reason),
        Exit::Shutdown => TrialError::Shutdown,
        Exit::Other(name) => TrialError::Unexpected(name),
    }
}

/// A [`VcpuExit`] that borrows nothing from the vCPU.
pub(super) enum Exit {
    InternalError,
    FailEntry(u64),
    Shutdown,
    Other(String),
}

impl From<VcpuExit<'_>> for Exit {
    fn from(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::FailEntry(reason, _) => Self::FailEntry(reason),
            VcpuExit::Shutdown => Self::Shutdown,
            other => Self::Other(format!("{other:?}")),
        }
    }
}
