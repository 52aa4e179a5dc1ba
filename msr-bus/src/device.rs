//! What an MSR device is.

use crate::{DeviceState, GeneralProtection, MsrAccess, MsrRange, RestoreError};

/// A model of some MSRs: it claims their indices and answers reads and writes of them.
///
/// A device is shared by all vCPU threads and is called by several at once; it chooses its own interior
/// mutability, atomics where they do. The bus holds no lock while a device runs. The scope of a
/// register (thread, core or package) is the device's to keep, with [`PerScope`](crate::PerScope).
///
/// [`devices::scratch`](crate::devices::scratch) is the example to copy.
pub trait MsrDevice: Send + Sync {
    /// What messages and tables call this device. Unique on its bus where its state is to be saved.
    fn name(&self) -> &str;

    /// The indices the device answers for, reads and writes alike. The kernel is told to hand them over,
    /// and the bus calls the device with these indices only. The answer never changes.
    fn claims(&self) -> Vec<MsrRange>;

    /// Answers an RDMSR.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] where the real register would fault.
    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection>;

    /// Answers a WRMSR of `value`.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`] where the real register would fault; nothing has changed then.
    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection>;

    /// The state that a restored device needs to answer as this one would, or `None` for a device that
    /// its configuration describes wholly.
    fn save(&self) -> Option<DeviceState> {
        None
    }

    /// Whether the value of `index`, which the device claims, is KVM's to keep: the device reads and writes KVM's own MSR
    /// ([`VcpuContext::kernel_msr`](crate::VcpuContext::kernel_msr)). It is then saved with the vCPU, and not by
    /// [`save`](Self::save).
    fn leaves_to_kvm(&self, _index: u32) -> bool {
        false
    }

    /// Takes over a state that a device of the same configuration saved.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] where the state is of another version or does not fit; nothing has changed then.
    fn restore(&self, _state: &DeviceState) -> Result<(), RestoreError> {
        Err(RestoreError::Stateless)
    }
}
