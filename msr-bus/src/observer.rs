//! The one place that sees every access.

use std::fmt;

use crate::{Access, FaultKind, GeneralProtection, MsrAccess, MsrDevice};

/// Who answered an access.
#[derive(Clone, Copy)]
pub enum AnsweredBy<'a> {
    /// The device that claims the index.
    Device(&'a dyn MsrDevice),
    /// The bus's fallback for the exit reason: no device claims the index.
    Fallback,
}

impl fmt::Debug for AnsweredBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => f.debug_tuple("Device").field(&device.name()).finish(),
            Self::Fallback => f.write_str("Fallback"),
        }
    }
}

/// An access after it was answered.
#[derive(Clone, Copy, Debug)]
pub struct MsrEvent<'a> {
    /// The access.
    pub access: &'a MsrAccess<'a>,
    /// Its kind: READ or WRITE, never both.
    pub kind: Access,
    /// The value of a WRMSR, also of one that faulted; 0 for an RDMSR.
    pub written: u64,
    /// The value read or written, or the fault.
    pub outcome: Result<u64, GeneralProtection>,
    /// Who answered.
    pub answered_by: AnsweredBy<'a>,
    /// What went wrong with it on purpose ([`Faults`](crate::Faults)).
    pub injected: Option<FaultKind>,
}

/// Sees every access on a bus, once, after it was answered and before the guest goes on.
///
/// It is called on the vCPU's thread, by all of them at once: counting and recording, nothing slow.
pub trait MsrObserver: Send + Sync {
    /// Takes note of an access.
    fn observe(&self, event: &MsrEvent<'_>);
}
