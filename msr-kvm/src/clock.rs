//! Host time and the vCPU threads' CPU time, for MSR devices.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use msr_bus::{CpuClock, VcpuId};

/// Time since the clock was made, and the CPU time that the vCPUs of one VM have got.
#[derive(Debug)]
pub struct HostClock {
    start: Instant,
    tsc_khz: OnceLock<u32>,
    vcpus: Box<[Mutex<VcpuTime>]>,
}

/// The CPU time of one vCPU: what earlier threads got for it, and what its present thread has got since it took over.
#[derive(Debug, Default)]
struct VcpuTime {
    thread: Option<libc::clockid_t>,
    /// The thread's clock when it took over, in nanoseconds.
    since: u64,
    /// What earlier threads got, in nanoseconds.
    before: u64,
    /// The most seen so far: what a thread that ended had got.
    last: u64,
}

impl VcpuTime {
    fn now(&mut self) -> u64 {
        if let Some(now) = self.thread.and_then(nanoseconds) {
            let total = self.before.saturating_add(now.saturating_sub(self.since));
            self.last = self.last.max(total);
        }
        self.last
    }
}

impl HostClock {
    /// A clock that starts now, for as many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self {
            start: Instant::now(),
            tsc_khz: OnceLock::new(),
            vcpus: (0..vcpus).map(|_| Mutex::default()).collect(),
        }
    }

    /// Says at what frequency the vCPUs' TSC counts, as `KVM_GET_TSC_KHZ` gives it: 0 where it does not.
    pub fn set_tsc_khz(&self, tsc_khz: u32) {
        if tsc_khz != 0 {
            // It is set once, when the VM has its first vCPU.
            let _ = self.tsc_khz.set(tsc_khz);
        }
    }

    /// Says that the calling thread executes `vcpu` from now on. A vCPU that moves to another thread says so there.
    pub fn register(&self, vcpu: VcpuId) {
        let mut id = 0;
        // SAFETY: the calling thread exists, and `id` is valid for the call to write.
        let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) };
        let (Some(mut time), 0) = (self.time(vcpu), failed) else {
            return;
        };
        if time.thread != Some(id) {
            time.before = time.now();
            time.since = nanoseconds(id).unwrap_or(0);
            time.thread = Some(id);
        }
    }

    fn time(&self, vcpu: VcpuId) -> Option<MutexGuard<'_, VcpuTime>> {
        let time = self.vcpus.get(vcpu.0 as usize)?;
        // Integers, consistent after every statement.
        Some(time.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CpuClock for HostClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn cpu_time(&self, vcpu: VcpuId) -> Duration {
        let nanoseconds = self.time(vcpu).map_or(0, |mut time| time.now());
        Duration::from_nanos(nanoseconds)
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn work(clock: &HostClock, time: Duration) {
        let begin = clock.cpu_time(VcpuId(0));
        while clock.cpu_time(VcpuId(0)) < begin + time {}
    }

    #[test]
    fn a_vcpu_that_moves_between_threads_keeps_its_cpu_time() {
        let clock = HostClock::new(1);
        let piece = Duration::from_millis(5);
        let run = || {
            // What the thread did before it got the vCPU is not the vCPU's.
            let own = Instant::now();
            while own.elapsed() < 4 * piece {}
            clock.register(VcpuId(0));
            work(&clock, piece);
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap());
        let first = clock.cpu_time(VcpuId(0));
        assert!(first >= piece && first < 4 * piece, "{first:?}");
        thread::scope(|scope| scope.spawn(run).join().unwrap());
        let both = clock.cpu_time(VcpuId(0));
        assert!(
            both >= first + piece && both < first + 4 * piece,
            "{both:?}"
        );
    }

    #[test]
    fn a_vcpu_outside_the_machine_has_no_time_and_no_panic() {
        let clock = HostClock::new(1);
        clock.register(VcpuId(7));
        assert_eq!(clock.cpu_time(VcpuId(7)), Duration::ZERO);
    }
}
