//! A VM whose MSR accesses are answered in userspace.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{KVM_SYNC_X86_REGS, kvm_enable_cap};
use kvm_ioctls::{Cap, MsrExitReason, VcpuFd, VmFd};
use msr_bus::{ExitReason, MsrBus, VcpuId};
use msr_filter::{FilterSpec, InstallError};

use crate::ignore_msrs;
use crate::{
    HostClock, MsrPlan, MsrStats, PhysicalMemory, PlanError, RefusedMsr, RefusedMsrs, VcpuMsrs,
};

/// What a VMM keeps of its VM's MSRs: the plan that KVM carries out, and what vCPUs are made from.
pub struct VmMsrs {
    plan: MsrPlan,
    memory: Arc<dyn PhysicalMemory>,
    synchronized: bool,
}

/// Why KVM does not carry out a plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmMsrsError {
    /// This KVM lacks what the plan needs.
    #[error("this host's KVM lacks {name} (Linux 5.10 and later have it)")]
    MissingCapability {
        /// The capability's name.
        name: &'static str,
    },
    /// KVM refused to exit for MSR accesses.
    #[error("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR) failed: {0}")]
    Enable(kvm_ioctls::Error),
    /// KVM refused the filter.
    #[error(transparent)]
    Filter(#[from] InstallError),
    /// KVM refused initial values.
    #[error(
        "this host's KVM does not take the initial values {}; with refused = \"warn\" the VM is built without",
        RefusedMsrs(.0)
    )]
    InitialRefused(Vec<RefusedMsr>),
    /// KVM refused an ioctl on a vCPU's MSRs.
    #[error("KVM_SET_MSRS failed: {0}")]
    SetMsrs(kvm_ioctls::Error),
    /// The rules cannot be carried out; the filter is as before.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The vCPU is not in the topology that the devices were built for.
    #[error(
        "{id} is outside the topology that the MSR devices were built for, which has {vcpus} vCPUs"
    )]
    OutsideTopology {
        /// The vCPU.
        id: VcpuId,
        /// How many there can be.
        vcpus: u32,
    },
}

impl VmMsrs {
    /// Tells KVM to ask userspace, and what about. Belongs before the first vCPU runs, and before the interrupt
    /// controllers are created: KVM waits out an RCU grace period when a filter is set, which takes 10 ms and more while
    /// their callbacks are pending.
    ///
    /// # Errors
    ///
    /// [`VmMsrsError`], for what KVM lacks or refuses.
    pub fn install(
        vm: &VmFd,
        plan: MsrPlan,
        memory: impl PhysicalMemory + 'static,
    ) -> Result<Self, VmMsrsError> {
        let ignore_msrs = ignore_msrs::ignore_msrs();
        if let Some(warning) = ignore_msrs::warning(ignore_msrs, &plan.exits, plan.bus.fallback()) {
            log::warn!("{warning}");
        }
        if !plan.exits.is_empty() {
            require(vm, Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR")?;
            let reasons: MsrExitReason = plan.exits.iter().copied().map(mask).collect();
            let mut cap = kvm_enable_cap {
                cap: Cap::X86UserSpaceMsr as u32,
                ..Default::default()
            };
            cap.args[0] = u64::from(reasons.bits());
            vm.enable_cap(&cap).map_err(VmMsrsError::Enable)?;
        }
        require(vm, Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER")?;
        plan.filter.install(vm)?;
        let registers = vm.check_extension_int(Cap::SyncRegs) as u32 & KVM_SYNC_X86_REGS != 0;
        Ok(Self {
            synchronized: plan.instruction_pointers && registers,
            plan,
            memory: Arc::new(memory),
        })
    }

    /// What answers the MSR exits of the vCPU `fd`, whose number in the topology is `id`.
    ///
    /// Where a device models energy, temperature or frequency, the thread that executes the vCPU calls
    /// [`HostClock::register`] first, and so does each further thread that the vCPU moves to.
    ///
    /// # Errors
    ///
    /// [`VmMsrsError::OutsideTopology`].
    pub fn vcpu(&self, id: VcpuId, fd: &mut VcpuFd) -> Result<VcpuMsrs, VmMsrsError> {
        let topology = self.plan.topology;
        if id.0 >= topology.vcpus() {
            return Err(VmMsrsError::OutsideTopology {
                id,
                vcpus: topology.vcpus(),
            });
        }
        // Some KVMs do not tell; devices that need the frequency say so then.
        self.clock().set_tsc_khz(fd.get_tsc_khz().unwrap_or(0));
        let bus = self.plan.bus.clone();
        let mut vcpu = VcpuMsrs::new(bus, topology.locate(id), self.memory.clone());
        if self.synchronized {
            vcpu.synchronize_registers(fd);
        }
        Ok(vcpu)
    }

    /// Replaces the rules behind the devices' claims, vCPUs running or not: each access is answered by the old filter
    /// or the new.
    ///
    /// # Errors
    ///
    /// [`VmMsrsError::Plan`] for rules that contradict a claim or cannot be compiled, and [`VmMsrsError::Filter`] for
    /// what KVM refuses; the old filter then stays.
    pub fn set_rules(&self, vm: &VmFd, rules: &FilterSpec) -> Result<(), VmMsrsError> {
        Ok(self.plan.filter_for(rules)?.install(vm)?)
    }

    /// The plan that was installed.
    pub fn plan(&self) -> &MsrPlan {
        &self.plan
    }

    /// The bus that answers.
    pub fn bus(&self) -> &Arc<MsrBus> {
        &self.plan.bus
    }

    /// The clock that devices see.
    pub fn clock(&self) -> &Arc<HostClock> {
        &self.plan.clock
    }

    /// What was counted, where the plan [counts](crate::MsrPlanBuilder::statistics).
    pub fn statistics(&self) -> Option<&Arc<MsrStats>> {
        self.plan.statistics.as_ref()
    }
}

impl fmt::Debug for VmMsrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmMsrs")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

fn mask(reason: ExitReason) -> MsrExitReason {
    match reason {
        ExitReason::Filter => MsrExitReason::Filter,
        ExitReason::Unknown => MsrExitReason::Unknown,
        ExitReason::Invalid => MsrExitReason::Inval,
    }
}

fn require(vm: &VmFd, cap: Cap, name: &'static str) -> Result<(), VmMsrsError> {
    if vm.check_extension(cap) {
        Ok(())
    } else {
        Err(VmMsrsError::MissingCapability { name })
    }
}
