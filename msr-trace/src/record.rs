//! One MSR access.

use std::fmt;

use msr_filter::Access;
use serde::{Deserialize, Serialize};

/// Why KVM handed an access to userspace (Documentation/virt/kvm/api.rst, section
/// "`KVM_CAP_X86_USER_SPACE_MSR`").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The MSR filter denies the access.
    Filter,
    /// KVM has no code for the MSR.
    Unknown,
    /// KVM knows the MSR but rejects the access or the value.
    Invalid,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Filter => "filter",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
        })
    }
}

/// Who answered an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answerer {
    /// KVM itself; seen through its tracepoints.
    Kernel,
    /// A device in userspace, after an exit for this reason.
    Device(Reason),
    /// The fallback for MSRs that no device claims, after an exit for this reason.
    Fallback(Reason),
}

impl Answerer {
    /// Why the access left the kernel; `None` where it did not.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Kernel => None,
            Self::Device(reason) | Self::Fallback(reason) => Some(reason),
        }
    }

    /// The stream of a vCPU that its records go to.
    pub(crate) fn source(self) -> Source {
        match self {
            Self::Kernel => Source::Kernel,
            Self::Device(_) | Self::Fallback(_) => Source::Userspace,
        }
    }
}

/// Where records of a vCPU come from. Each source of each vCPU is a stream in the order of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Exits to userspace: every access that KVM does not answer itself.
    Userspace,
    /// KVM's tracepoints: accesses that KVM answers after it intercepted them.
    Kernel,
}

/// An RDMSR or WRMSR, after it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, in nanoseconds of the host's `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The vCPU, counted from 0.
    pub vcpu: u16,
    /// The MSR.
    pub index: u32,
    /// READ for RDMSR, WRITE for WRMSR.
    pub kind: Kind,
    /// The value read or written; 0 for a read that faulted.
    pub value: u64,
    /// The address of the instruction in the guest, where it is known.
    pub rip: Option<u64>,
    /// Whether the guest got #GP.
    pub fault: bool,
    /// Whether the access went wrong on purpose: the VMM injected a fault.
    pub injected: bool,
    /// Who answered.
    pub answerer: Answerer,
}

/// RDMSR or WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

impl Kind {
    /// The same as the filter has it.
    pub fn access(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::WRITE,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}
