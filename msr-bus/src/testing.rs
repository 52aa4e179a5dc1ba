//! A vCPU without KVM, for the tests of devices.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{
    CpuClock, CpuIdentity, CpuLocation, CpuVendor, DeviceContext, KernelMsrError, Topology,
    VcpuContext, VcpuId,
};

/// A [`VcpuContext`] made of plain values.
#[derive(Clone, Debug)]
pub struct FakeVcpu {
    /// The vCPU's number.
    pub id: VcpuId,
    /// The guest's topology.
    pub topology: Topology,
    /// Pieces of guest memory by linear address; everything else is not mapped.
    pub memory: BTreeMap<u64, Vec<u8>>,
    /// The MSRs "KVM" has, with their values.
    pub kernel_msrs: RefCell<BTreeMap<u32, u64>>,
    /// The guest's time-stamp counter.
    pub tsc: u64,
}

impl Default for FakeVcpu {
    /// vCPU 0 of a machine with one.
    fn default() -> Self {
        Self::new(VcpuId(0), Topology::flat(1))
    }
}

impl FakeVcpu {
    /// The vCPU numbered `id` of a machine with this topology.
    pub fn new(id: VcpuId, topology: Topology) -> Self {
        Self {
            id,
            topology,
            memory: BTreeMap::new(),
            kernel_msrs: RefCell::default(),
            tsc: 0,
        }
    }

    fn byte(&self, address: u64) -> Option<u8> {
        let (start, piece) = self.memory.range(..=address).next_back()?;
        let offset = usize::try_from(address - start).ok()?;
        piece.get(offset).copied()
    }
}

impl VcpuContext for FakeVcpu {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn location(&self) -> CpuLocation {
        self.topology.locate(self.id)
    }

    /// Linear addresses are physical ones.
    fn translate(&self, address: u64) -> Option<u64> {
        Some(address)
    }

    fn read_physical(&self, address: u64, buf: &mut [u8]) -> bool {
        (0..).zip(buf).all(|(i, byte)| {
            let at = address.checked_add(i);
            match at.and_then(|at| self.byte(at)) {
                Some(found) => {
                    *byte = found;
                    true
                }
                None => false,
            }
        })
    }

    fn kernel_msr(&self, index: u32) -> Result<u64, KernelMsrError> {
        self.kernel_msrs
            .borrow()
            .get(&index)
            .copied()
            .ok_or(KernelMsrError { index })
    }

    fn set_kernel_msr(&self, index: u32, value: u64) -> Result<(), KernelMsrError> {
        match self.kernel_msrs.borrow_mut().get_mut(&index) {
            Some(msr) => {
                *msr = value;
                Ok(())
            }
            None => Err(KernelMsrError { index }),
        }
    }

    fn tsc(&self) -> u64 {
        self.tsc
    }
}

/// A [`CpuClock`] that a test moves by hand.
#[derive(Debug, Default)]
pub struct FakeClock {
    /// What [`CpuClock::now`] gives.
    pub now: Mutex<Duration>,
    /// What [`CpuClock::cpu_time`] gives for each vCPU; zero for those it lacks.
    pub cpu_time: Mutex<BTreeMap<VcpuId, Duration>>,
}

impl CpuClock for FakeClock {
    fn now(&self) -> Duration {
        *self.now.lock().expect("no test panics with the lock held")
    }

    fn cpu_time(&self, vcpu: VcpuId) -> Duration {
        let times = self
            .cpu_time
            .lock()
            .expect("no test panics with the lock held");
        times.get(&vcpu).copied().unwrap_or_default()
    }
}

/// An Ice Lake server: GenuineIntel family 6 model 106 stepping 6.
pub const ICE_LAKE: CpuIdentity = CpuIdentity {
    vendor: CpuVendor::Intel,
    signature: 0x0006_06a6,
};

/// A Zen 3 server: AuthenticAMD family 0x19 model 1 stepping 1.
pub const ZEN_3: CpuIdentity = CpuIdentity {
    vendor: CpuVendor::Amd,
    signature: 0x00a0_0f11,
};

/// A context for building devices of an [Ice Lake server](ICE_LAKE), with a clock that stands still.
pub fn context(topology: Topology) -> DeviceContext {
    context_of(ICE_LAKE, topology)
}

/// A context for building devices of `cpu`, with a clock that stands still.
pub fn context_of(cpu: CpuIdentity, topology: Topology) -> DeviceContext {
    DeviceContext {
        topology,
        cpu,
        clock: Arc::new(FakeClock::default()),
        interrupts: Arc::default(),
    }
}
