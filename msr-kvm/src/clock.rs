//! Host time and the vCPU threads' CPU time, for MSR devices.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use msr_bus::{CpuClock, VcpuId};

/// Time since the VM was built, and the CPU time of its vCPU threads.
pub struct HostClock {
    start: Instant,
    tsc_khz: OnceLock<u32>,
    threads: Box<[ThreadClock]>,
}

#[derive(Default)]
struct ThreadClock {
    id: OnceLock<libc::clockid_t>,
    /// The most seen so far, in nanoseconds: what a thread that ended had got.
    last: AtomicU64,
}

impl HostClock {
    /// A clock that starts now, for as many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self {
            start: Instant::now(),
            tsc_khz: OnceLock::new(),
            threads: (0..vcpus).map(|_| ThreadClock::default()).collect(),
        }
    }

    /// Says at what frequency the vCPUs' TSC counts, as `KVM_GET_TSC_KHZ` gives it: 0 where it does not.
    pub fn set_tsc_khz(&self, tsc_khz: u32) {
        if tsc_khz != 0 {
            // It is set once, when the VM has its first vCPU.
            let _ = self.tsc_khz.set(tsc_khz);
        }
    }

    /// Says that the calling thread is the one that executes `vcpu`.
    pub fn register(&self, vcpu: VcpuId) {
        let mut id = 0;
        // SAFETY: the calling thread exists, and `id` is valid for the call to write.
        if unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) } == 0 {
            // Each vCPU has one thread, which registers once.
            let _ = self.threads[vcpu.0 as usize].id.set(id);
        }
    }
}

impl CpuClock for HostClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn cpu_time(&self, vcpu: VcpuId) -> Duration {
        let Some(thread) = self.threads.get(vcpu.0 as usize) else {
            return Duration::ZERO;
        };
        let now = thread
            .id
            .get()
            .map_or(0, |id| nanoseconds(*id).unwrap_or(0));
        let last = thread.last.fetch_max(now, Ordering::Relaxed);
        Duration::from_nanos(last.max(now))
    }

    fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz.get().copied()
    }
}

/// The clock's time, or `None` once its thread has ended.
fn nanoseconds(id: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to write.
    if unsafe { libc::clock_gettime(id, &raw mut time) } != 0 {
        return None;
    }
    let seconds = u64::try_from(time.tv_sec).ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(u64::try_from(time.tv_nsec).ok()?)
}
