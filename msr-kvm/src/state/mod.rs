//! Which MSRs of a vCPU to save, and how to restore them.
//!
//! A vCPU that is to go on in another process, or on another host, needs its MSRs. KVM has no call for all of them:
//! `KVM_GET_MSR_INDEX_LIST` gives the indices that this kernel knows, which differ from kernel to kernel and lack some
//! that have state, and `KVM_SET_MSRS` depends on what was restored before. The rules, each of which some VMM learnt
//! from a guest that hung or lost its clock:
//!
//! - The list is the host's, plus what it omits: all of KVM's own MSRs (0x4b564d00-0x4b564dff), `IA32_XSS`, the MTRRs and
//!   the machine-check banks. Each index is tried on the vCPU, and what cannot be read there is not planned.
//! - CPUID comes first: KVM refuses MSRs that the guest's CPUID does not have. So do the registers that gate others,
//!   and the ones that switch something on come after what they switch on.
//! - The TSC comes before `IA32_TSC_DEADLINE`, and both after the local APIC: KVM drops a deadline without a word where
//!   the APIC's timer is not in TSC-deadline mode.
//! - A TSC near to what the new VM's is already is set in two steps: KVM takes the write for a synchronization of vCPUs and
//!   ignores the value, and a guest that was saved in its first second would see its TSC run backwards.
//! - MSRs are saved *before* the local APIC. A timer that expires in between is then in the APIC's state, and the saved
//!   deadline fires once more, which a guest takes for an early tick. In the other order it would be in neither. For states
//!   where it is in neither all the same, a deadline of 0 is replaced where the timer waits for one
//!   ([`MsrStatePlan::save`]).
//! - The offsets of all vCPUs' TSCs keep their differences ([`TscOffsets`]): else KVM gives up kvmclock's master clock.
//! - `KVM_SET_MSRS` stops at the first MSR that it refuses and returns how many it took. The one that failed is named, and it
//!   is an error, except where the vCPU has that value already, or the MSR is on a short list of MSRs that no guest
//!   misses ([`TOLERATED`]).
//! - A saved state is input like any other: an index that this host's plan does not have is refused, and so is one that
//!   comes twice.
//!
//! What another place keeps, such as a device that answers the MSR in userspace, is left out of the plan by whoever makes
//! it. What is not here: CPUID, the registers of `KVM_GET_SREGS` (with EFER and the APIC base) and the local APIC itself,
//! which are calls of their own, and nested virtualization's state (`KVM_GET_NESTED_STATE`).
//!
//! The order for one vCPU is: `KVM_SET_CPUID2`, sregs, local APIC, [`MsrStatePlan::restore`], the rest; then, once for all
//! vCPUs, [`TscOffsets::restore`]. The first vCPU is saved last: the others go on by its TSC, and find theirs ahead of where
//! they were.

mod deadline;
mod entries;
mod plan;
mod restore;
mod rules;
mod tsc;
mod values;

pub use entries::MsrIoctlError;
pub use plan::{MsrStatePlan, PlanStateError, SaveError};
pub use restore::{RestoreMsrsError, Restored, ToleratedMsr};
pub use rules::{TOLERATED, Tolerated};
pub use tsc::{TscError, TscOffsets};
pub use values::{MsrState, SavedMsr};
