//! A machine for the tests of devices that follow the clock.

use std::sync::Arc;
use std::time::Duration;

use crate::testing::{FakeClock, FakeVcpu, context_of};
use crate::{
    CpuIdentity, DeviceContext, ExitReason, GeneralProtection, MsrAccess, MsrDevice, Topology,
    VcpuId,
};

/// A topology, and a clock moved by hand.
pub(super) struct Fixture {
    pub(super) clock: Arc<FakeClock>,
    pub(super) context: DeviceContext,
}

impl Fixture {
    pub(super) fn new(cpu: CpuIdentity, topology: Topology) -> Self {
        let clock = Arc::new(FakeClock::default());
        let context = DeviceContext {
            clock: clock.clone(),
            ..context_of(cpu, topology)
        };
        Self { clock, context }
    }

    /// Lets time pass, and the vCPUs get this much CPU time, beginning with vCPU 0.
    pub(super) fn pass(&self, time: Duration, cpu_time: &[Duration]) {
        *self.clock.now.lock().unwrap() += time;
        let mut times = self.clock.cpu_time.lock().unwrap();
        for (id, got) in (0..).map(VcpuId).zip(cpu_time) {
            *times.entry(id).or_default() += *got;
        }
    }

    fn access(
        &self,
        index: u32,
        vcpu: u32,
        go: impl FnOnce(&MsrAccess<'_>) -> Result<u64, GeneralProtection>,
    ) -> Result<u64, GeneralProtection> {
        let cpu = FakeVcpu::new(VcpuId(vcpu), self.context.topology);
        go(&MsrAccess {
            index,
            reason: ExitReason::Filter,
            cpu: &cpu,
        })
    }

    /// RDMSR on a vCPU.
    pub(super) fn read(
        &self,
        device: &dyn MsrDevice,
        vcpu: u32,
        index: u32,
    ) -> Result<u64, GeneralProtection> {
        self.access(index, vcpu, |access| device.read(access))
    }

    /// WRMSR on a vCPU.
    pub(super) fn write(
        &self,
        device: &dyn MsrDevice,
        vcpu: u32,
        index: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let written = self.access(index, vcpu, |access| {
            device.write(access, value).map(|()| 0)
        });
        written.map(drop)
    }
}

/// A device's configuration from the TOML of its keys.
pub(super) fn config<T: serde::de::DeserializeOwned>(keys: &str) -> T {
    toml::from_str(keys).expect("the test wrote it")
}
