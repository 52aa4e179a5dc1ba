//! What dispatching one access costs, next to vm-device's bus and a linear scan: for 1 to 4,096 claimed
//! ranges, claimed and unclaimed indices, one thread and two.
//!
//! Each number is the CPU time of one RDMSR on one thread, so that other load on the machine counts little.
//! With two threads both run at once on the same bus, and a number as with one means that they do not
//! slow each other down.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use msr_bus::testing::FakeVcpu;
use msr_bus::{ExitReason, GeneralProtection, MsrAccess, MsrBus, MsrDevice, MsrRange};
use vm_device::bus::{Bus, MmioAddress, MmioRange};

/// Claims one range and answers with its number.
struct Constant {
    name: String,
    claim: MsrRange,
    value: u64,
}

impl MsrDevice for Constant {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![self.claim]
    }

    fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        Ok(self.value)
    }

    fn write(&self, _: &MsrAccess<'_>, _: u64) -> Result<(), GeneralProtection> {
        Err(GeneralProtection)
    }
}

/// How the claimed ranges lie.
#[derive(Clone, Copy)]
enum Layout {
    /// As MSRs do: in windows of 0x2000 at 0, 0xc0000000 and 0xc0010000, every other index.
    Windows,
    /// Evenly over the whole index space, each on a page of its own: the worst case for the caches.
    Scattered,
}

/// `count` single-index claims, none of them next to another.
fn devices(layout: Layout, count: u32) -> Vec<Arc<dyn MsrDevice>> {
    let first = |i: u32| match layout {
        Layout::Windows => {
            let offset = i / 3 * 2;
            // 0x800-0x8ff are KVM's own.
            [0x1000, 0xc000_0000, 0xc001_0000][i as usize % 3] + offset
        }
        Layout::Scattered => 0x1000 + i * (u32::MAX / count - 1) / 2 * 2,
    };
    let device = |i| {
        Arc::new(Constant {
            name: format!("constant {i}"),
            claim: MsrRange::single(first(i)),
            value: u64::from(i),
        }) as Arc<dyn MsrDevice>
    };
    (0..count).map(device).collect()
}

/// One way to find the device that claims an index.
trait Dispatch: Sync {
    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection>;
}

impl Dispatch for MsrBus {
    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        MsrBus::read(self, access)
    }
}

struct Linear(Vec<(MsrRange, Arc<dyn MsrDevice>)>);

impl Dispatch for Linear {
    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let found = self
            .0
            .iter()
            .find(|(range, _)| range.contains(access.index));
        found.map_or(Err(GeneralProtection), |(_, device)| device.read(access))
    }
}

struct VmDevice(Bus<MmioAddress, Arc<dyn MsrDevice>>);

impl Dispatch for VmDevice {
    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let found = self.0.device(MmioAddress(access.index.into()));
        found.map_or(Err(GeneralProtection), |(_, device)| device.read(access))
    }
}

fn msr_bus(devices: &[Arc<dyn MsrDevice>]) -> MsrBus {
    let builder = devices
        .iter()
        .fold(MsrBus::builder(), |b, device| b.device(Arc::clone(device)));
    builder.build().expect("the claims are disjoint")
}

fn linear(devices: &[Arc<dyn MsrDevice>]) -> Linear {
    Linear(
        devices
            .iter()
            .map(|device| (device.claims()[0], Arc::clone(device)))
            .collect(),
    )
}

fn vm_device(devices: &[Arc<dyn MsrDevice>]) -> VmDevice {
    let mut bus = Bus::new();
    for device in devices {
        let claim = device.claims()[0];
        let range = MmioRange::new(MmioAddress(claim.first().into()), claim.len())
            .expect("an MSR range is no address overflow");
        bus.register(range, Arc::clone(device))
            .expect("the claims are disjoint");
    }
    VmDevice(bus)
}

/// The indices to read, in an order that no branch predictor learns.
fn indices(devices: &[Arc<dyn MsrDevice>], hit: bool) -> Vec<u32> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    (0..4096)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let claim = devices[seed as usize % devices.len()].claims()[0];
            claim.first() + u32::from(!hit)
        })
        .collect()
}

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to, and the clock exists on every Linux.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "clock_gettime");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `count` reads on each of `threads` threads; the time of the slowest.
fn run(bus: &dyn Dispatch, indices: &[u32], threads: usize, count: u64) -> Duration {
    let start = Barrier::new(threads);
    let work = || {
        let cpu = FakeVcpu::default();
        start.wait();
        let begin = cpu_time();
        for index in indices.iter().cycle().take(count as usize) {
            let access = MsrAccess {
                index: *index,
                reason: ExitReason::Filter,
                cpu: &cpu,
            };
            let _ = black_box(bus.read(black_box(&access)));
        }
        cpu_time() - begin
    };
    if threads == 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().expect("the reads do not panic"));
        times.max().unwrap_or_default()
    })
}

fn dispatch(c: &mut Criterion) {
    for (layout_name, layout) in [
        ("windows", Layout::Windows),
        ("scattered", Layout::Scattered),
    ] {
        for (kind, hit) in [("hit", true), ("miss", false)] {
            for threads in [1, 2] {
                let mut group = c.benchmark_group(format!("{layout_name}/{kind}/{threads} thread"));
                for count in [1, 16, 256, 4096] {
                    let devices = devices(layout, count);
                    let indices = indices(&devices, hit);
                    let buses: [(&str, Box<dyn Dispatch>); 3] = [
                        ("msr-bus", Box::new(msr_bus(&devices))),
                        ("vm-device", Box::new(vm_device(&devices))),
                        ("linear scan", Box::new(linear(&devices))),
                    ];
                    for (name, bus) in buses {
                        group.bench_function(BenchmarkId::new(name, count), |b| {
                            b.iter_custom(|iters| run(&*bus, &indices, threads, iters));
                        });
                    }
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .without_plots();
    targets = dispatch
}
criterion_main!(benches);
