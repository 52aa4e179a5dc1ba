//! A virtual machine that is set up and does not run yet, and why there may be none.

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use msr_bus::BuildError;

use crate::acpi::AcpiError;
use crate::boot::registers::RegistersError;
use crate::boot::{BootError, Images};
use crate::builder::VmBuilder;
use crate::config::{Config, ConfigError};
use crate::control::Control;
use crate::cpu::msrs::BootMsrsError;
use crate::cpu::{CpuModelError, CpuidError, HostCpuError, NoPmu};
use crate::devices::virtio::AttachError;
use crate::devices::virtio::block::DiskError;
use crate::machine::Machine;
use crate::memory::MemoryError;
use crate::running::RunningVm;
use crate::sandbox::ThreadFilters;
use crate::shutdown::{ShutdownReceiver, ShutdownSender};
use crate::snapshot::{RestoreError, SaveContext};
use crate::timing::BootTiming;
use crate::vcpu::Vcpu;
use msr_kvm::{MsrPlan, PlanError, VmMsrs, VmMsrsError};

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The MSR configuration cannot be carried out.
    #[error("{place}{0}", place = place(.0))]
    Msr(#[from] PlanError),
    /// KVM does not carry out the MSR configuration.
    #[error("{0}; `msr-vmm check` says what this KVM can do")]
    MsrInstall(#[from] VmMsrsError),
    /// The guest's memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel, the initrd or the command line cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The CPU that the configuration asks for cannot be.
    #[error("[cpu]: {0}")]
    CpuModel(#[from] CpuModelError),
    /// CPUID cannot be what the configuration asks for.
    #[error("[cpu]: {0}")]
    Cpuid(#[from] CpuidError),
    /// Performance counters are asked for that KVM has not.
    #[error("cpu.pmu = true: {0}")]
    Pmu(#[from] NoPmu),
    /// KVM does not say what CPU it offers.
    #[error(transparent)]
    HostCpu(#[from] HostCpuError),
    /// A vCPU's registers cannot be set.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// A vCPU's MSRs cannot be set.
    #[error(transparent)]
    BootMsrs(#[from] BootMsrsError),
    /// The ACPI tables cannot be written.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A virtio device cannot be made part of the machine.
    #[error(transparent)]
    Virtio(#[from] AttachError),
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// KVM cannot be opened.
    #[error("cannot open /dev/kvm: {}; {}", .0, remedy(.0))]
    Open(kvm_ioctls::Error),
    /// KVM refused part of the set-up.
    #[error("{what} failed: {source}; `msr-vmm check` says what this KVM can do")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The host refused something else.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// The key of the configuration that a plan cannot be made of.
fn plan_key(error: &PlanError) -> Option<String> {
    match error {
        PlanError::Device { number, source } => {
            let (number, key) = (number - 1, source.key());
            let dot = if key.is_empty() { "" } else { "." };
            Some(format!("msr.device[{number}]{dot}{key}"))
        }
        PlanError::Contradiction(error) => Some(format!("msr.filter.rule[{}]", error.rule)),
        PlanError::InitialClaimed { number, .. }
        | PlanError::InitialTwice { second: number, .. } => {
            Some(format!("msr.initial[{}]", number - 1))
        }
        PlanError::NoFilterExit(_) => Some("msr.exits".into()),
        PlanError::Profile(_) => Some("msr.profile".into()),
        PlanError::Bus(BuildError::Fault { number, source }) => {
            let (number, key) = (number - 1, source.key());
            Some(format!("msr.fault[{number}].{key}"))
        }
        PlanError::Scenario(error) => Some(format!("msr.{}", error.key)),
        PlanError::Bus(_) => Some("msr.device".into()),
        PlanError::TooManyRanges { .. } | PlanError::Compile(_) => Some("msr.filter".into()),
        _ => None,
    }
}

/// What to do about a /dev/kvm that cannot be opened.
fn remedy(error: &kvm_ioctls::Error) -> &'static str {
    match error.errno() {
        libc::EACCES | libc::EPERM => {
            "give yourself access with `sudo usermod -aG kvm $USER` and log in again, or run as root"
        }
        libc::ENOENT => {
            "load KVM with `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`, and turn virtualization on in the firmware"
        }
        _ => "`msr-vmm check` says what is missing",
    }
}

impl VmError {
    /// Whether the user can mend it by asking for something else (exit status 2), or the host or its KVM
    /// refuses (1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Msr(_)
            | Self::MsrInstall(VmMsrsError::InitialRefused(_))
            | Self::Boot(_)
            | Self::CpuModel(_)
            | Self::Cpuid(_)
            | Self::Pmu(_)
            | Self::Disk(_)
            | Self::Restore(_) => true,
            Self::Virtio(error) => matches!(error, AttachError::TooMany(_)),
            Self::Memory(error) => !matches!(error, MemoryError::Register(_)),
            _ => false,
        }
    }

    /// The key of the configuration that is wrong, such as `msr.device[0].type` with lists counted from 0, if it is one.
    pub fn key(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.key().map(str::to_owned),
            Self::CpuModel(error) => Some(error.key()),
            Self::Msr(error) => plan_key(error),
            Self::Pmu(_) => Some("cpu.pmu".into()),
            _ => None,
        }
    }

    pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Where a configuration file says what is wrong in the MSR part.
fn place(error: &PlanError) -> &'static str {
    match error {
        PlanError::Bus(BuildError::Fault { .. }) => "[[msr.fault]]: ",
        PlanError::Device { .. } | PlanError::Bus(_) => "[[msr.device]]: ",
        PlanError::Contradiction(_) => "[[msr.filter.rule]]: ",
        PlanError::InitialClaimed { .. } | PlanError::InitialTwice { .. } => "[[msr.initial]]: ",
        PlanError::NoFilterExit(_) => "msr.exits: ",
        PlanError::Profile(_) => "msr.profile: ",
        PlanError::Scenario(_) => "[[msr.scenario]]: ",
        _ => "[msr.filter]: ",
    }
}

/// A VM that is ready to execute its first instruction.
pub struct Vm {
    pub(crate) fd: Arc<VmFd>,
    /// What was loaded, unless the VM comes from a snapshot.
    pub(crate) images: Option<Images>,
    pub(crate) msrs: VmMsrs,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) control: Arc<Control<Vcpu>>,
    pub(crate) machine: Machine,
    pub(crate) shutdown: ShutdownSender,
    pub(crate) shutdown_receiver: ShutdownReceiver,
    pub(crate) timing: Option<Arc<BootTiming>>,
    pub(crate) filters: ThreadFilters,
    pub(crate) save_context: Arc<SaveContext>,
    /// It comes from a snapshot: its virtio devices are paused.
    pub(crate) restored: bool,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("msrs", &self.msrs)
            .field("vcpus", &self.vcpus.len())
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// A builder for a VM of this configuration.
    pub fn builder(config: Config) -> VmBuilder {
        VmBuilder::new(config)
    }

    /// The bus that answers MSR accesses, and the filter that makes KVM ask it.
    pub fn msr_plan(&self) -> &MsrPlan {
        self.msrs.plan()
    }

    /// The GNU build ID of the kernel that was loaded, in hexadecimal digits, where it has one. For a kernel that unpacks
    /// itself ([`VmConfig::kaslr`](crate::config::VmConfig::kaslr)) this takes the time to unpack it, as far as its notes.
    pub fn kernel_build_id(&self) -> Option<String> {
        self.images.as_ref()?.build_id(&self.save_context.memory)
    }

    /// Starts the vCPUs, a thread for each.
    ///
    /// # Errors
    ///
    /// [`VmError::Host`] where the host has no more threads; those already started have ended then.
    pub fn start(self) -> Result<RunningVm, VmError> {
        RunningVm::start(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_cannot_be_opened_is_told_with_its_remedy() {
        let error = |errno| VmError::Open(kvm_ioctls::Error::new(errno)).to_string();
        assert!(error(libc::EACCES).contains("usermod -aG kvm"));
        assert!(error(libc::ENOENT).contains("modprobe kvm_intel"));
        assert!(error(libc::EBUSY).contains("msr-vmm check"));
    }
}
