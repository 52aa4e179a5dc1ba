//! Time and CPU time as counters need them: from zero, never backwards, and continued by a restored device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{CpuClock, DeviceContext, RestoreError, VcpuId};

/// A [`CpuClock`] that counts from the moment a device was made.
///
/// Whatever the clock beneath does, no reading is smaller than one that was finished before it began.
/// Nanoseconds in 64 bits last for 584 years and saturate then.
pub(super) struct MonotonicClock {
    clock: Arc<dyn CpuClock>,
    now: Reading,
    cpus: Box<[Reading]>,
}

/// The TSC's frequency in kHz where nobody knows it.
const ANY_TSC_KHZ: u32 = 1_000_000;

/// What a restored clock continues from, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClockState {
    now: u64,
    cpu_time: Vec<u64>,
}

/// One clock: `base` plus what the source has advanced since it showed `origin`.
#[derive(Default)]
struct Reading {
    origin: AtomicU64,
    base: AtomicU64,
    highest: AtomicU64,
}

impl Reading {
    fn at(source: Duration) -> Self {
        let reading = Self::default();
        reading.rebase(0, source);
        reading
    }

    fn rebase(&self, base: u64, source: Duration) {
        self.origin.store(nanoseconds(source), Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.highest.store(base, Ordering::Relaxed);
    }

    fn advance(&self, source: Duration) -> u64 {
        let since = nanoseconds(source).saturating_sub(self.origin.load(Ordering::Relaxed));
        let reading = self.base.load(Ordering::Relaxed).saturating_add(since);
        self.highest
            .fetch_max(reading, Ordering::Relaxed)
            .max(reading)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl MonotonicClock {
    /// The context's clock, for each of its vCPUs.
    pub(super) fn new(context: &DeviceContext) -> Self {
        let clock = Arc::clone(&context.clock);
        let vcpus = (0..context.topology.vcpus()).map(VcpuId);
        Self {
            now: Reading::at(clock.now()),
            cpus: vcpus.map(|id| Reading::at(clock.cpu_time(id))).collect(),
            clock,
        }
    }

    /// The frequency of the guest's TSC, in kHz.
    pub(super) fn tsc_khz(&self) -> u32 {
        self.clock.tsc_khz().unwrap_or(ANY_TSC_KHZ)
    }

    /// Nanoseconds since the device was made.
    pub(super) fn now(&self) -> u64 {
        self.now.advance(self.clock.now())
    }

    /// Nanoseconds of CPU time that a vCPU's thread has got since the device was made; 0 for a vCPU that
    /// the topology lacks.
    pub(super) fn cpu_time(&self, vcpu: u32) -> u64 {
        self.cpus.get(vcpu as usize).map_or(0, |reading| {
            reading.advance(self.clock.cpu_time(VcpuId(vcpu)))
        })
    }

    pub(super) fn save(&self) -> ClockState {
        let vcpus = 0u32..;
        let cpu_time = vcpus.zip(&self.cpus).map(|(id, _)| self.cpu_time(id));
        ClockState {
            now: self.now(),
            cpu_time: cpu_time.collect(),
        }
    }

    /// Whether `state` is of a clock with as many vCPUs.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Mismatch`] where it is not.
    pub(super) fn check(&self, state: &ClockState) -> Result<(), RestoreError> {
        let (found, expected) = (state.cpu_time.len(), self.cpus.len());
        if found == expected {
            Ok(())
        } else {
            Err(RestoreError::Mismatch(format!(
                "it is of a machine with {found} vCPUs, this one has {expected}"
            )))
        }
    }

    /// Goes on from a state that [`check`](Self::check) has passed. No vCPU may run meanwhile.
    pub(super) fn restore(&self, state: &ClockState) {
        self.now.rebase(state.now, self.clock.now());
        for (id, (reading, base)) in (0..).zip(self.cpus.iter().zip(&state.cpu_time)) {
            reading.rebase(*base, self.clock.cpu_time(VcpuId(id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Topology;
    use crate::testing::FakeClock;
    use proptest::prelude::*;

    fn on(clock: &Arc<FakeClock>) -> MonotonicClock {
        MonotonicClock::new(&DeviceContext {
            clock: clock.clone(),
            ..crate::testing::context(Topology::flat(1))
        })
    }

    fn set(clock: &FakeClock, now: Duration, cpu: Duration) {
        *clock.now.lock().unwrap() = now;
        clock.cpu_time.lock().unwrap().insert(VcpuId(0), cpu);
    }

    #[test]
    fn it_counts_from_zero_whatever_the_clock_shows_at_first() {
        let source = Arc::new(FakeClock::default());
        set(&source, Duration::from_secs(1000), Duration::from_secs(100));
        let clock = on(&source);
        assert_eq!((clock.now(), clock.cpu_time(0)), (0, 0));
        set(&source, Duration::from_secs(1003), Duration::from_secs(102));
        assert_eq!(
            (clock.now(), clock.cpu_time(0)),
            (3_000_000_000, 2_000_000_000)
        );
        assert_eq!(clock.cpu_time(7), 0);
    }

    #[test]
    fn a_restored_clock_goes_on_where_the_saved_one_was() {
        let clock = Arc::new(FakeClock::default());
        let saved = on(&clock);
        set(&clock, Duration::from_nanos(50), Duration::from_nanos(20));
        let state = saved.save();
        let other = Arc::new(FakeClock::default());
        set(&other, Duration::from_nanos(9000), Duration::from_nanos(0));
        let restored = on(&other);
        restored.check(&state).unwrap();
        restored.restore(&state);
        assert_eq!((restored.now(), restored.cpu_time(0)), (50, 20));
        set(&other, Duration::from_nanos(9001), Duration::from_nanos(2));
        assert_eq!((restored.now(), restored.cpu_time(0)), (51, 22));
    }

    proptest! {
        #[test]
        fn no_clock_makes_it_run_backwards(times in prop::collection::vec(any::<(u64, u32)>(), 1..50)) {
            let source = Arc::new(FakeClock::default());
            let clock = on(&source);
            let mut last = (0, 0);
            for (secs, nanos) in times {
                let time = Duration::new(secs >> 1, nanos);
                set(&source, time, time);
                let next = (clock.now(), clock.cpu_time(0));
                prop_assert!(next.0 >= last.0 && next.1 >= last.1);
                last = next;
            }
        }
    }
}
