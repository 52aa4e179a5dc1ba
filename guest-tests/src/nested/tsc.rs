//! How fast the emulated CPU's time stamp counter runs: as fast as this machine's, which QEMU's TCG gives to its guests.
//!
//! The outer VM's kernel would find out by counting against the emulated PIT. On a machine with more to do than it has
//! CPUs it was seen to be wrong by a factor of four and more, and all times in the outer VM and in its guests with it.

use std::arch::x86_64::_rdtsc;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// In kHz, or `None` where this machine's counter does not run evenly.
pub(super) fn frequency_khz() -> Option<u64> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let even = ["constant_tsc", "nonstop_tsc"];
    if !even.iter().all(|flag| cpuinfo.contains(flag)) {
        return None;
    }
    let (first_time, first) = now();
    thread::sleep(Duration::from_millis(50));
    let (last_time, last) = now();
    let nanoseconds = last_time.duration_since(first_time).as_nanos();
    let cycles = u128::from(last.wrapping_sub(first));
    u64::try_from(cycles * 1_000_000 / nanoseconds).ok()
}

/// The time and the counter at the same moment, as nearly as can be: the best of a few tries, for the thread may be
/// interrupted between the two.
fn now() -> (Instant, u64) {
    let look = |_| {
        // SAFETY: RDTSC is there on every x86-64 CPU, and has no effects.
        let before = unsafe { _rdtsc() };
        let time = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after.wrapping_sub(before), time, before)
    };
    let best = (0..20).map(look).min_by_key(|(length, ..)| *length);
    best.map_or_else(|| (Instant::now(), 0), |(_, time, counter)| (time, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        if let (Some(first), Some(second)) = (frequency_khz(), frequency_khz()) {
            assert!(first.abs_diff(second) < first / 1000, "{first} {second}");
        }
    }
}
