//! An MSR of a vCPU, read or written from outside as the guest would see it.
//!
//! The way is that of a guest's own RDMSR or WRMSR: the filter decides whether KVM answers; what KVM does not answer goes
//! to the bus, if the exit reason is enabled, and is seen by its observer. It happens on the vCPU's thread, between two
//! instructions of the guest, paused or not.
//!
//! One thing differs: KVM answers as it answers the host (`KVM_GET_MSRS`, `KVM_SET_MSRS`). It then skips checks that a
//! guest's access has to pass, so that registers that are read-only for the guest can be written.

use std::sync::Arc;

use msr_bus::{Access, ExitReason, MsrAccess, MsrBus, VcpuContext, VcpuId};
use msr_filter::Verdict;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter_in_force::FilterInForce;
use crate::running::{RunningVm, VcpuGone};

/// Who answers an access.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AnsweredBy {
    /// KVM itself.
    Kernel,
    /// The MSR device of this name.
    Device(String),
    /// The default for what no device claims (`msr.unclaimed`).
    Default,
    /// Nobody: KVM injects #GP, because `msr.exits` lacks the reason.
    Nobody,
}

/// An access from outside, answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrAnswer {
    /// The value read, or 0 for a write; `None` for #GP.
    pub value: Option<u64>,
    /// Who answered.
    pub by: AnsweredBy,
}

impl RunningVm {
    /// What an RDMSR on `vcpu` would give now.
    ///
    /// # Errors
    ///
    /// [`VcpuGone`].
    pub fn read_msr(&self, vcpu: VcpuId, index: u32) -> Result<MsrAnswer, VcpuGone> {
        self.access_msr(vcpu, index, None)
    }

    /// What a WRMSR of `value` on `vcpu` would do now, done.
    ///
    /// # Errors
    ///
    /// [`VcpuGone`].
    pub fn write_msr(&self, vcpu: VcpuId, index: u32, value: u64) -> Result<MsrAnswer, VcpuGone> {
        self.access_msr(vcpu, index, Some(value))
    }

    fn access_msr(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: Option<u64>,
    ) -> Result<MsrAnswer, VcpuGone> {
        let way = Way {
            filter: self.filter_in_force(),
            exits: self.msr_plan().exits.clone(),
            bus: self.msr_bus().clone(),
        };
        self.on_vcpu(vcpu, move |vcpu| {
            let access = |cpu: &dyn VcpuContext| way.access(cpu, index, value);
            vcpu.msrs.with_context(&vcpu.fd, access)
        })
    }
}

/// What decides who answers, and who does.
struct Way {
    filter: Arc<FilterInForce>,
    exits: Vec<ExitReason>,
    bus: Arc<MsrBus>,
}

impl Way {
    fn access(&self, cpu: &dyn VcpuContext, index: u32, value: Option<u64>) -> MsrAnswer {
        let kind = match value {
            None => Access::READ,
            Some(_) => Access::WRITE,
        };
        if self.filter.filter.verdict(index, kind) == Verdict::Deny {
            return self.exit(cpu, index, value, ExitReason::Filter);
        }
        let kernel = match value {
            None => cpu.kernel_msr(index).ok(),
            Some(value) => cpu.set_kernel_msr(index, value).ok().map(|()| 0),
        };
        if kernel.is_some() {
            let by = AnsweredBy::Kernel;
            return MsrAnswer { value: kernel, by };
        }
        // An MSR that KVM does not even read is one that it does not know; else it rejects the value.
        let reason = match cpu.kernel_msr(index) {
            Err(_) => ExitReason::Unknown,
            Ok(_) => ExitReason::Invalid,
        };
        self.exit(cpu, index, value, reason)
    }

    /// What becomes of an access that KVM hands to userspace for `reason`.
    fn exit(
        &self,
        cpu: &dyn VcpuContext,
        index: u32,
        value: Option<u64>,
        reason: ExitReason,
    ) -> MsrAnswer {
        if !self.exits.contains(&reason) {
            let by = AnsweredBy::Nobody;
            return MsrAnswer { value: None, by };
        }
        let access = MsrAccess { index, reason, cpu };
        let answer = match value {
            None => self.bus.read(&access),
            Some(value) => self.bus.write(&access, value).map(|()| 0),
        };
        MsrAnswer {
            value: answer.ok(),
            by: self
                .bus
                .device(index)
                .map_or(AnsweredBy::Default, |device| {
                    AnsweredBy::Device(device.name().to_owned())
                }),
        }
    }
}
