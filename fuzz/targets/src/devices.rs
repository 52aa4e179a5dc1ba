//! Every MSR device model but `passthrough`, whose registers are the host's, by sequences of accesses; and save and restore
//! in the middle of them.
//!
//! A bus is built twice from the same configuration. The first answers a sequence of accesses; its state, through JSON,
//! is restored to the second; both then answer the same further accesses, and must agree on each. The clock is moved by
//! the input, so that power, temperature and counters move too.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use msr_bus::testing::{FakeClock, FakeVcpu};
use msr_bus::{
    BusState, CpuIdentity, DeviceContext, DeviceModel, ExitReason, GeneralProtection, MsrAccess,
    MsrBus, MsrDevice, MsrRange, Topology, VcpuId,
};
use msr_vmm::Config;
use msr_vmm::models::{BuiltIn, ModelName};

/// Devices that the CPU models lack, or have with other keys.
const MORE: &str = r#"
[[msr.device]]
type = "scratch"
msr = "0x1000"

[[msr.device]]
type = "ppin"
ppin = ["0x123456789abcdef0", 2]

[[msr.device]]
type = "forward"
msrs = ["0x1a0", "0x3a"]
hide = "0xff"
force = "0x100"
write = "forward"
write_mask = "0xffff0000"
"#;

/// Two packages, so that every scope differs from the others.
const TOPOLOGY: Topology = Topology {
    packages: 2,
    cores: 2,
    threads: 2,
};

/// What KVM "has", for devices that look.
const KERNEL_MSRS: [u32; 7] = [0x3a, 0xe7, 0xe8, 0x10, 0x1a0, 0xc000_0080, 0xc001_0015];

/// The configurations that an input chooses from.
pub(crate) fn configurations() -> Vec<Config> {
    let models = BuiltIn::all().iter().map(|model| {
        let name = ModelName::new(model.name);
        Config::load(None, Some(&name)).expect("a model that comes with the program loads")
    });
    let mut all: Vec<Config> = models
        .chain([toml::from_str(MORE).expect("this file's own text")])
        .collect();
    // A model that comes with the program has a number for one package.
    for device in all.iter_mut().flat_map(|config| &mut config.msr.devices) {
        if let Some(toml::Value::Array(numbers)) = device.keys.get_mut("ppin") {
            numbers.resize(TOPOLOGY.packages as usize, 0x1234.into());
        }
    }
    all
}

/// A bus with all devices of a configuration, and the clock that they follow.
pub(crate) struct Machine {
    pub(crate) bus: MsrBus,
    clock: Arc<FakeClock>,
    claims: Vec<MsrRange>,
    pub(crate) devices: Vec<Arc<dyn MsrDevice>>,
}

impl Machine {
    pub(crate) fn new(config: &Config, clock: &Arc<FakeClock>) -> Self {
        let cpu = config.cpu.cpu_identity().unwrap_or(ICE_LAKE);
        let context = DeviceContext {
            topology: TOPOLOGY,
            cpu,
            clock: clock.clone(),
            interrupts: Default::default(),
        };
        let mut builder = MsrBus::builder();
        let (mut claims, mut devices) = (Vec::new(), Vec::new());
        for device in &config.msr.devices {
            let device = device.build(DeviceModel::all(), &context);
            let device = device.unwrap_or_else(|error| panic!("{error}"));
            claims.extend(device.claims());
            builder = builder.device(device.clone());
            devices.push(device);
        }
        Self {
            bus: builder.build().unwrap_or_else(|error| panic!("{error}")),
            clock: clock.clone(),
            claims,
            devices,
        }
    }
}

const ICE_LAKE: CpuIdentity = msr_bus::testing::ICE_LAKE;

#[derive(Clone, Copy, Debug)]
enum Step {
    Read {
        vcpu: u32,
        index: u32,
    },
    Write {
        vcpu: u32,
        index: u32,
        value: u64,
    },
    Pass {
        time: Duration,
        vcpu: u32,
        busy: Duration,
    },
}

impl Step {
    fn arbitrary(u: &mut Unstructured<'_>, claims: &[MsrRange]) -> arbitrary::Result<Self> {
        let kind = u.int_in_range(0..=7)?;
        let vcpu = u.int_in_range(0..=TOPOLOGY.vcpus() - 1)?;
        if kind == 0 {
            return Ok(Self::Pass {
                time: Duration::from_micros(u32::arbitrary(u)?.into()),
                vcpu,
                busy: Duration::from_micros(u32::arbitrary(u)?.into()),
            });
        }
        let index = if u.ratio(1, 32)? {
            u32::arbitrary(u)?
        } else {
            let range = u.choose(claims)?;
            range.first() + u.int_in_range(0..=(range.last() - range.first()))?
        };
        if kind < 4 {
            return Ok(Self::Read { vcpu, index });
        }
        let value = match u.int_in_range(0..=3)? {
            0 => u64::arbitrary(u)?,
            1 => 1 << u.int_in_range(0..=63)?,
            2 => u8::arbitrary(u)?.into(),
            _ => u64::MAX,
        };
        Ok(Self::Write { vcpu, index, value })
    }
}

/// The vCPUs, whose in-kernel MSRs `forward` reads and writes.
struct Vcpus(Vec<FakeVcpu>);

impl Vcpus {
    fn new() -> Self {
        let vcpus = (0..TOPOLOGY.vcpus()).map(|id| {
            let vcpu = FakeVcpu::new(VcpuId(id), TOPOLOGY);
            vcpu.kernel_msrs
                .borrow_mut()
                .extend(KERNEL_MSRS.map(|index| (index, 0x55)));
            vcpu
        });
        Self(vcpus.collect())
    }

    fn answer(&self, machine: &Machine, step: Step) -> Result<u64, GeneralProtection> {
        let access = |vcpu: u32, index| MsrAccess {
            index,
            reason: ExitReason::Filter,
            cpu: &self.0[vcpu as usize],
        };
        match step {
            Step::Read { vcpu, index } => machine.bus.read(&access(vcpu, index)),
            Step::Write { vcpu, index, value } => {
                machine.bus.write(&access(vcpu, index), value).map(|()| 0)
            }
            Step::Pass { time, vcpu, busy } => {
                *machine.clock.now.lock().unwrap() += time;
                let mut times = machine.clock.cpu_time.lock().unwrap();
                *times.entry(VcpuId(vcpu)).or_default() += busy.min(time);
                Ok(0)
            }
        }
    }
}

thread_local! {
    static CONFIGURATIONS: Vec<Config> = configurations();
}

/// The first byte of `data` chooses the configuration, the second how many steps come before the state is saved.
pub fn run(data: &[u8]) {
    let [choice, before, steps @ ..] = data else {
        return;
    };
    CONFIGURATIONS.with(|all| {
        let config = &all[usize::from(*choice) % all.len()];
        compare(config, usize::from(*before), &mut Unstructured::new(steps));
    });
}

fn compare(config: &Config, before: usize, u: &mut Unstructured<'_>) {
    let clock = Arc::new(FakeClock::default());
    let first = Machine::new(config, &clock);
    let vcpus = Vcpus::new();
    for _ in 0..before {
        let Ok(step) = Step::arbitrary(u, &first.claims) else {
            return;
        };
        let _ = vcpus.answer(&first, step);
    }
    let state = first.bus.save();
    let read = BusState::from_json(&state.to_json()).expect("what was written is read");
    assert_eq!(read, state);
    let second = Machine::new(config, &clock);
    second
        .bus
        .restore(&read)
        .expect("a bus of the same configuration takes its state");
    assert_eq!(second.bus.save().to_json(), state.to_json());
    let others = Vcpus(vcpus.0.clone());
    while !u.is_empty() {
        let Ok(step) = Step::arbitrary(u, &first.claims) else {
            return;
        };
        let one = vcpus.answer(&first, step);
        if matches!(step, Step::Pass { .. }) {
            continue;
        }
        assert_eq!(one, others.answer(&second, step), "{step:x?}");
    }
}
