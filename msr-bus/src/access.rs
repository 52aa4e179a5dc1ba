//! One access, and the vCPU that executes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::CpuLocation;

/// The number of a vCPU, counted from 0 in the order in which KVM created them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

/// Why KVM handed an access to userspace (Documentation/virt/kvm/api.rst, section
/// "`KVM_CAP_X86_USER_SPACE_MSR`").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ExitReason {
    /// The MSR filter denies the access (`KVM_MSR_EXIT_REASON_FILTER`).
    Filter,
    /// KVM has no code for the MSR (`KVM_MSR_EXIT_REASON_UNKNOWN`).
    Unknown,
    /// KVM knows the MSR but rejects the access or the value (`KVM_MSR_EXIT_REASON_INVAL`).
    Invalid,
}

impl ExitReason {
    /// All of them, in the order in which tables show them.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Unknown, Self::Invalid];
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Filter => "filter",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
        })
    }
}

/// The access raises a general-protection fault, #GP(0), and the instruction does not execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general-protection fault (#GP)")]
pub struct GeneralProtection;

/// An RDMSR or WRMSR on its way through the bus.
#[derive(Clone, Copy)]
pub struct MsrAccess<'a> {
    /// The MSR, from the guest's ECX.
    pub index: u32,
    /// Why the access reached userspace.
    pub reason: ExitReason,
    /// The vCPU that executes the instruction.
    pub cpu: &'a dyn VcpuContext,
}

impl fmt::Debug for MsrAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsrAccess")
            .field("index", &format_args!("{:#x}", self.index))
            .field("reason", &self.reason)
            .field("vcpu", &self.cpu.id())
            .finish()
    }
}

/// What a device may ask of the vCPU that executes the access. The vCPU stands still meanwhile.
///
/// The VMM implements it; [`testing::FakeVcpu`](crate::testing::FakeVcpu) does so without KVM.
pub trait VcpuContext {
    /// The vCPU's number.
    fn id(&self) -> VcpuId;

    /// Where the vCPU sits in the guest's topology.
    fn location(&self) -> CpuLocation;

    /// The guest-physical address of the linear address `address`, translated as the vCPU would translate it
    /// now (`KVM_TRANSLATE`), or `None` where it is not mapped. It holds up to the end of the 4 KiB page.
    fn translate(&self, address: u64) -> Option<u64>;

    /// Fills `buf` from guest memory at the guest-physical address `address`. Returns whether all of it is
    /// memory; where it is not, `buf` holds no defined value.
    fn read_physical(&self, address: u64, buf: &mut [u8]) -> bool;

    /// Fills `buf` from guest memory at the linear address `address`, page by page. Each page costs one
    /// [`translate`](Self::translate).
    ///
    /// # Errors
    ///
    /// [`GuestMemoryError`] where some of the bytes are not mapped or not memory; `buf` then holds
    /// no defined value.
    fn read_guest(&self, address: u64, buf: &mut [u8]) -> Result<(), GuestMemoryError> {
        let mut at = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let error = GuestMemoryError { address: at };
            let in_page = (PAGE - at % PAGE).min(rest.len() as u64);
            let (piece, after) = rest.split_at_mut(in_page as usize);
            let physical = self.translate(at).ok_or(error)?;
            if !self.read_physical(physical, piece) {
                return Err(error);
            }
            rest = after;
            // A range that runs past the last linear address does not wrap around to 0.
            if !rest.is_empty() {
                at = at.checked_add(in_page).ok_or(error)?;
            }
        }
        Ok(())
    }

    /// The value KVM itself has for an MSR of this vCPU (`KVM_GET_MSRS`).
    ///
    /// # Errors
    ///
    /// [`KernelMsrError`] where KVM has no such MSR.
    fn kernel_msr(&self, index: u32) -> Result<u64, KernelMsrError>;

    /// Sets the value KVM itself has for an MSR of this vCPU (`KVM_SET_MSRS`).
    ///
    /// # Errors
    ///
    /// [`KernelMsrError`] where KVM has no such MSR or rejects the value.
    fn set_kernel_msr(&self, index: u32, value: u64) -> Result<(), KernelMsrError>;

    /// The guest's time-stamp counter, in its own cycles.
    fn tsc(&self) -> u64;

    /// RIP of the instruction, where the VMM has it at no cost (KVM's synchronized registers). An
    /// observer asks for it; without the VMM's doing there is none.
    fn instruction_pointer(&self) -> Option<u64> {
        None
    }
}

/// The smallest page of any paging mode.
const PAGE: u64 = 4096;

/// Guest memory could not be read at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest linear address {address:#x} is not mapped to memory")]
pub struct GuestMemoryError {
    /// Where the first piece within one page starts that could not be read.
    pub address: u64,
}

/// KVM refused to read or write one of its own MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KVM refuses host access to MSR {index:#x}")]
pub struct KernelMsrError {
    /// The MSR.
    pub index: u32,
}
