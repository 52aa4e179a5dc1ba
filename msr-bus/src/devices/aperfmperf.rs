//! `IA32_APERF` and `IA32_MPERF`: from their ratio software tells how fast a CPU ran while it worked.
//!
//! Both count per thread, in the C0 state only: MPERF (0xe7) at the frequency of the TSC, APERF (0xe8) at
//! the frequency that the CPU really ran at (SDM volume 3B, section 15.2; AMD APM volume 2, section
//! 17.2.1). AMD has read-only copies at 0xc00000e7 and 0xc00000e8. Software may write the counters, and
//! they count on from what it wrote.
//!
//! A vCPU is at work while its thread has a CPU of the host, so both follow the thread's CPU time. They
//! never run backwards, whatever the host's clocks do and across save and restore.
//!
//! Linux that is shown APERFMPERF by CPUID (leaf 6, bit 0 of ECX) reads both in every scheduler tick.

use std::sync::atomic::{AtomicU64, Ordering};

use msr_filter::MsrRange;
use serde::{Deserialize, Serialize};

use super::monotonic_clock::{ClockState, MonotonicClock};
use crate::{
    CpuVendor, DeviceContext, DeviceState, GeneralProtection, Model, MsrAccess, MsrDevice,
    PerScope, RestoreError, Scope, Syscall,
};

const MPERF: u32 = 0xe7; // IA32_MPERF
const APERF: u32 = 0xe8; // IA32_APERF
const MPERF_READ_ONLY: u32 = 0xc000_00e7; // MPerfReadOnly
const APERF_READ_ONLY: u32 = 0xc000_00e8; // APerfReadOnly

/// The version of [`State`].
const VERSION: u32 = 1;

/// The keys of a `[[msr.device]]` with `type = "aperfmperf"`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The frequency at which MPERF counts, in MHz to a thousandth: that of the guest's TSC, which it is unless given.
    pub tsc_mhz: Option<f64>,
    /// How fast a CPU at work runs, as a multiple of `tsc_mhz`, from 0.01 to 100, to a millionth: APERF counts so
    /// much faster.
    #[serde(default = "one")]
    pub ratio: f64,
    /// When MPERF counts. "busy": while the vCPU's thread has a CPU, so that APERF/MPERF is `ratio` and MPERF/TSC how
    /// busy the vCPU is. "always": all the time, so that APERF/MPERF is `ratio` times the share of a CPU that the
    /// vCPU really got.
    #[serde(default)]
    pub mperf: Mperf,
}

/// When MPERF counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mperf {
    /// While the vCPU's thread has a CPU.
    #[default]
    Busy,
    /// All the time.
    Always,
}

fn one() -> f64 {
    1.0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    clock: ClockState,
    /// What the guest's writes added to MPERF and APERF of each thread.
    added: Vec<[u64; 2]>,
}

#[derive(Clone, Copy, Debug)]
enum Counter {
    Mperf,
    Aperf,
}

/// The device.
pub struct AperfMperf {
    name: String,
    clock: MonotonicClock,
    /// Unless it is the clock's.
    tsc_khz: Option<u32>,
    /// In millionths.
    ratio: u64,
    mperf: Mperf,
    vendor: CpuVendor,
    /// What a guest's writes added to each counter, modulo 2^64.
    added: PerScope<[AtomicU64; 2]>,
}

impl Model for AperfMperf {
    const TYPE: &'static str = "aperfmperf";
    const SUMMARY: &'static str = "APERF and MPERF from the CPU time that the vCPUs really get";
    const SYSCALLS: &'static [Syscall] = &[Syscall::CLOCK_GETTIME, Syscall::FUTEX];
    type Config = Config;

    fn build(name: String, config: Config, context: &DeviceContext) -> Result<Self, String> {
        let ratio = config.ratio;
        if let Some(tsc_mhz) = config.tsc_mhz
            && !(1.0..=100_000.0).contains(&tsc_mhz)
        {
            return Err(format!(
                "tsc_mhz: {tsc_mhz} MHz is not between 1 and 100000 MHz"
            ));
        }
        if !(0.01..=100.0).contains(&ratio) {
            return Err(format!("ratio: {ratio} is not between 0.01 and 100"));
        }
        Ok(Self {
            name,
            clock: MonotonicClock::new(context),
            tsc_khz: config.tsc_mhz.map(|mhz| (mhz * 1e3).round() as u32),
            ratio: (ratio * 1e6).round() as u64,
            mperf: config.mperf,
            vendor: context.cpu.vendor,
            added: PerScope::new(Scope::Thread, &context.topology, |_| Default::default()),
        })
    }
}

impl AperfMperf {
    /// What a counter of a vCPU would show had the guest written none.
    fn count(&self, counter: Counter, vcpu: u32) -> u64 {
        let cpu_time = || self.clock.cpu_time(vcpu);
        let (nanoseconds, ratio) = match (counter, self.mperf) {
            (Counter::Mperf, Mperf::Always) => (self.clock.now(), 1_000_000),
            (Counter::Mperf, Mperf::Busy) => (cpu_time(), 1_000_000),
            (Counter::Aperf, _) => (cpu_time(), self.ratio),
        };
        let tsc_khz = self.tsc_khz.unwrap_or_else(|| self.clock.tsc_khz());
        // kHz times ns are millionths of a cycle. 64 + 27 + 27 bits at most.
        let cycles = u128::from(nanoseconds) * u128::from(tsc_khz) * u128::from(ratio);
        (cycles / 1_000_000_000_000) as u64
    }
}

impl MsrDevice for AperfMperf {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<MsrRange> {
        let indices: &[u32] = match self.vendor {
            CpuVendor::Intel => &[MPERF, APERF],
            CpuVendor::Amd => &[MPERF, APERF, MPERF_READ_ONLY, APERF_READ_ONLY],
        };
        indices.iter().copied().map(MsrRange::single).collect()
    }

    fn read(&self, access: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        let counter = match access.index {
            MPERF | MPERF_READ_ONLY => Counter::Mperf,
            APERF | APERF_READ_ONLY => Counter::Aperf,
            _ => return Err(GeneralProtection),
        };
        let location = access.cpu.location();
        let added = self.added.at(location)[counter as usize].load(Ordering::Relaxed);
        Ok(self.count(counter, location.thread).wrapping_add(added))
    }

    fn write(&self, access: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let counter = match access.index {
            MPERF => Counter::Mperf,
            APERF => Counter::Aperf,
            _ => return Err(GeneralProtection),
        };
        let location = access.cpu.location();
        let added = value.wrapping_sub(self.count(counter, location.thread));
        self.added.at(location)[counter as usize].store(added, Ordering::Relaxed);
        Ok(())
    }

    fn save(&self) -> Option<DeviceState> {
        let added = self.added.iter();
        let state = State {
            clock: self.clock.save(),
            added: added
                .map(|thread| thread.each_ref().map(|a| a.load(Ordering::Relaxed)))
                .collect(),
        };
        Some(DeviceState::encode(VERSION, &state))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let state: State = state.decode(VERSION)?;
        self.clock.check(&state.clock)?;
        if state.added.len() != self.added.len() {
            return Err(RestoreError::Mismatch("it is of other vCPUs".into()));
        }
        self.clock.restore(&state.clock);
        for (thread, saved) in self.added.iter().zip(&state.added) {
            for (added, value) in thread.iter().zip(saved) {
                added.store(*value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::devices::fixture::{Fixture, config};
    use crate::testing::{ICE_LAKE, ZEN_3};
    use crate::{Topology, VcpuId};

    const SECOND: Duration = Duration::from_secs(1);

    fn counters(keys: &str) -> (Fixture, AperfMperf) {
        let fixture = Fixture::new(ICE_LAKE, Topology::flat(2));
        let device = AperfMperf::build("a".into(), config(keys), &fixture.context).unwrap();
        (fixture, device)
    }

    #[test]
    fn a_busy_cpu_counts_at_the_tsc_frequency_and_the_configured_ratio() {
        let (fixture, device) = counters("tsc_mhz = 2300\nratio = 1.5");
        fixture.pass(SECOND * 10, &[SECOND * 4, SECOND]);
        for (vcpu, seconds) in [(0, 4), (1, 1)] {
            let mperf = fixture.read(&device, vcpu, MPERF);
            assert_eq!(mperf, Ok(seconds * 2_300_000_000));
            let aperf = fixture.read(&device, vcpu, APERF);
            assert_eq!(aperf, Ok(seconds * 3_450_000_000));
        }
    }

    #[test]
    fn when_mperf_counts_always_the_ratio_is_the_share_of_a_cpu() {
        let (fixture, device) = counters("tsc_mhz = 2000\nmperf = 'always'");
        fixture.pass(SECOND * 10, &[SECOND * 4]);
        assert_eq!(fixture.read(&device, 0, MPERF), Ok(20_000_000_000));
        assert_eq!(fixture.read(&device, 0, APERF), Ok(8_000_000_000));
    }

    #[test]
    fn a_written_counter_counts_on_from_what_was_written_and_wraps_around() {
        let (fixture, device) = counters("tsc_mhz = 1000");
        fixture.pass(SECOND, &[SECOND, SECOND]);
        fixture.write(&device, 0, MPERF, 0).unwrap();
        fixture.write(&device, 0, APERF, u64::MAX).unwrap();
        fixture.pass(SECOND, &[SECOND, SECOND]);
        assert_eq!(fixture.read(&device, 0, MPERF), Ok(1_000_000_000));
        assert_eq!(fixture.read(&device, 0, APERF), Ok(999_999_999));
        assert_eq!(fixture.read(&device, 1, MPERF), Ok(2_000_000_000));
    }

    #[test]
    fn amd_has_copies_that_cannot_be_written() {
        let fixture = Fixture::new(ZEN_3, Topology::flat(1));
        let keys = config("tsc_mhz = 1000\nratio = 2");
        let device = AperfMperf::build("a".into(), keys, &fixture.context).unwrap();
        assert_eq!(device.claims().len(), 4);
        fixture.pass(SECOND, &[SECOND]);
        for (index, count) in [(0xc000_00e7, 1_000_000_000), (0xc000_00e8, 2_000_000_000)] {
            assert_eq!(fixture.read(&device, 0, index), Ok(count));
            assert_eq!(fixture.write(&device, 0, index, 0), Err(GeneralProtection));
        }
    }

    #[test]
    fn what_cannot_be_is_a_clear_error() {
        for (keys, message) in [
            (
                "tsc_mhz = 0",
                "tsc_mhz: 0 MHz is not between 1 and 100000 MHz",
            ),
            (
                "tsc_mhz = nan",
                "tsc_mhz: NaN MHz is not between 1 and 100000 MHz",
            ),
            (
                "tsc_mhz = 2000\nratio = -1",
                "ratio: -1 is not between 0.01 and 100",
            ),
        ] {
            let fixture = Fixture::new(ICE_LAKE, Topology::flat(1));
            let refused = AperfMperf::build("a".into(), config(keys), &fixture.context).err();
            assert_eq!(refused.as_deref(), Some(message));
        }
    }

    #[test]
    fn a_restored_device_goes_on_where_the_saved_one_was() {
        let (fixture, saved) = counters("tsc_mhz = 1000");
        fixture.write(&saved, 0, APERF, 5).unwrap();
        fixture.pass(SECOND * 9, &[SECOND * 3]);
        let (other, restored) = counters("tsc_mhz = 1000");
        other.pass(SECOND, &[SECOND * 2, SECOND * 8]);
        restored.restore(&saved.save().unwrap()).unwrap();
        assert_eq!(other.read(&restored, 0, APERF), Ok(3_000_000_005));
        other.pass(SECOND, &[SECOND]);
        assert_eq!(other.read(&restored, 0, MPERF), Ok(4_000_000_000));
        assert_eq!(other.read(&restored, 1, MPERF), Ok(0));

        let fixture = Fixture::new(ICE_LAKE, Topology::flat(3));
        let three =
            AperfMperf::build("a".into(), config("tsc_mhz = 1000"), &fixture.context).unwrap();
        assert!(matches!(
            three.restore(&saved.save().unwrap()),
            Err(RestoreError::Mismatch(_))
        ));
    }

    #[test]
    fn readers_on_other_threads_never_see_a_counter_run_backwards() {
        let (fixture, device) = counters("tsc_mhz = 2000\nmperf = 'always'");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = [0; 2];
                    for _ in 0..2000 {
                        let next = [MPERF, APERF].map(|i| fixture.read(&device, 0, i).unwrap());
                        assert!(next[0] >= last[0] && next[1] >= last[1]);
                        last = next;
                    }
                });
            }
            // A clock that jumps to and fro.
            for step in 0..2000u64 {
                let time = Duration::from_micros(step * 7919 % 1009);
                *fixture.clock.now.lock().unwrap() = time;
                fixture
                    .clock
                    .cpu_time
                    .lock()
                    .unwrap()
                    .insert(VcpuId(0), time);
            }
        });
    }

    proptest! {
        #[test]
        fn no_clock_makes_a_counter_run_backwards_but_by_wrapping(
            times in prop::collection::vec(0u64..1 << 40, 1..40), ratio in 0.01f64..100.0
        ) {
            let (fixture, device) = counters(&format!("tsc_mhz = 3000\nratio = {ratio:?}"));
            let mut last = [0; 2];
            for time in times {
                let time = Duration::from_nanos(time);
                fixture.clock.cpu_time.lock().unwrap().insert(VcpuId(0), time);
                let next = [MPERF, APERF].map(|i| fixture.read(&device, 0, i).unwrap());
                prop_assert!(next[0] >= last[0] && next[1] >= last[1]);
                last = next;
            }
        }

        #[test]
        fn no_time_overflows(time in any::<u64>(), tsc in 1.0f64..100_000.0, ratio in 0.01f64..100.0) {
            let (fixture, device) = counters(&format!("tsc_mhz = {tsc:?}\nratio = {ratio:?}"));
            fixture.pass(Duration::from_secs(time), &[Duration::from_secs(time)]);
            fixture.read(&device, 0, APERF).unwrap();
        }
    }
}
