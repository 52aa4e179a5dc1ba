//! The offsets of the vCPUs' TSCs against each other.
//!
//! KVM adds an offset to the host's TSC for each vCPU. As long as all vCPUs have the same, kvmclock works with one
//! *master clock* and the guest's CPUs agree about the time. `KVM_SET_MSRS` with `IA32_TSC` computes the offset from the
//! moment of the call, which differs from vCPU to vCPU; KVM guesses whether two writes were meant to be the same and
//! usually guesses right. `KVM_VCPU_TSC_OFFSET` (Documentation/virt/kvm/devices/vcpu.rst, Linux 5.16 and later) leaves
//! nothing to guess.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

// kvm-ioctls has these calls for vCPUs of other architectures only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// How far each vCPU's TSC is ahead of the first's, in its own cycles; negative as two's complement. Empty where KVM does not
/// tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TscOffsets(Vec<u64>);

/// Why TSC offsets are not saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TscError {
    /// KVM refuses.
    #[error("{ioctl}(KVM_VCPU_TSC_OFFSET) failed: {source}")]
    Ioctl {
        /// Which call.
        ioctl: &'static str,
        /// What KVM said.
        source: std::io::Error,
    },
    /// The state is of a machine with another number of vCPUs.
    #[error("there are TSC offsets for {found} vCPUs, and there are {expected}")]
    Count {
        /// In the state.
        found: usize,
        /// In this VM.
        expected: usize,
    },
}

impl TscOffsets {
    /// The offsets of all vCPUs of a VM.
    ///
    /// # Errors
    ///
    /// [`TscError::Ioctl`].
    pub fn save<'a>(vcpus: impl IntoIterator<Item = &'a VcpuFd>) -> Result<Self, TscError> {
        let offsets = vcpus.into_iter().map(Self::offset);
        Ok(Self::of(offsets.collect::<Result<_, _>>()?))
    }

    /// The offset of one vCPU's TSC against the host's, for where each vCPU is asked by itself; `None` where KVM does
    /// not tell.
    ///
    /// # Errors
    ///
    /// [`TscError::Ioctl`].
    pub fn offset(vcpu: &VcpuFd) -> Result<Option<u64>, TscError> {
        if is_supported(vcpu) {
            get(vcpu).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The differences between the offsets of all vCPUs, in the order of the vCPUs.
    pub fn of(offsets: Vec<Option<u64>>) -> Self {
        let Some(offsets) = offsets.into_iter().collect::<Option<Vec<u64>>>() else {
            return Self::default();
        };
        let first = offsets.first().copied().unwrap_or(0);
        let ahead = offsets.iter().map(|offset| offset.wrapping_sub(first));
        Self(ahead.collect())
    }

    /// Gives the vCPUs the same differences, leaving the first as it is. Belongs after all of them have their MSRs.
    ///
    /// # Errors
    ///
    /// [`TscError`].
    pub fn restore<'a>(&self, vcpus: impl IntoIterator<Item = &'a VcpuFd>) -> Result<(), TscError> {
        let vcpus: Vec<&VcpuFd> = vcpus.into_iter().collect();
        if self.0.is_empty() {
            return Ok(());
        }
        if self.0.len() != vcpus.len() {
            return Err(TscError::Count {
                found: self.0.len(),
                expected: vcpus.len(),
            });
        }
        // What `IA32_TSC` of each vCPU said is the best there is then.
        if !vcpus.iter().all(|vcpu| is_supported(vcpu)) {
            return Ok(());
        }
        let first = get(vcpus[0])?;
        for (vcpu, ahead) in vcpus.iter().zip(&self.0) {
            set(vcpu, first.wrapping_add(*ahead))?;
        }
        Ok(())
    }
}

/// The attribute, whose value is at `address`.
fn attribute(address: u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: address,
        flags: 0,
    }
}

fn is_supported(vcpu: &VcpuFd) -> bool {
    // SAFETY: the call reads the attribute's numbers, and not what `addr` points to.
    unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &attribute(0)) == 0 }
}

fn get(vcpu: &VcpuFd) -> Result<u64, TscError> {
    let mut offset = 0u64;
    let attribute = attribute(&raw mut offset as u64);
    // SAFETY: KVM writes 8 bytes to `addr`, which is a live `u64`.
    let status = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    check(status, "KVM_GET_DEVICE_ATTR").map(|()| offset)
}

fn set(vcpu: &VcpuFd, offset: u64) -> Result<(), TscError> {
    let attribute = attribute(&raw const offset as u64);
    // SAFETY: KVM reads 8 bytes from `addr`, which is a live `u64`.
    let status = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    check(status, "KVM_SET_DEVICE_ATTR")
}

fn check(status: i32, ioctl: &'static str) -> Result<(), TscError> {
    if status == 0 {
        return Ok(());
    }
    Err(TscError::Ioctl {
        ioctl,
        source: std::io::Error::last_os_error(),
    })
}
