//! Guests that get nowhere, and guests that only look so.

use std::time::{Duration, Instant};

use guest_tests::guest::{BootError, Guest, Plan, Step, TINY_ADDRESS, TinyKernel};
use libtest_mimic::{Failed, Trial};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("hang":
        a_loop_with_interrupts_off_is_told_with_rip_within_20_seconds,
        a_guest_that_waits_and_computes_in_silence_is_left_alone,
    )
}

fn a_loop_with_interrupts_off_is_told_with_rip_within_20_seconds() -> Result<(), Failed> {
    const LIMIT: Duration = Duration::from_secs(20);
    let started = Instant::now();
    let outcome = Guest::tiny(TinyKernel::new()?.hang()?)?.run();
    let Err(BootError::NoProgress { vcpus, .. }) = outcome else {
        return Err(format!("{outcome:?}").into());
    };
    // CLI is one byte, and the loop comes after it.
    let rip = format!("rip {:016x}", TINY_ADDRESS + 1);
    for words in ["vCPU 0: running, interrupts off, ", &rip, "rip: eb fe"] {
        if !vcpus.contains(words) {
            return Err(format!("no `{words}` in\n{vcpus}").into());
        }
    }
    if started.elapsed() > LIMIT {
        return Err(format!("told after {:?}", started.elapsed()).into());
    }
    Ok(())
}

/// One CPU is idle and the other busy for longer than it takes to tell a guest that hangs.
fn a_guest_that_waits_and_computes_in_silence_is_left_alone() -> Result<(), Failed> {
    let spin = Step::Spin {
        cpu: 1,
        milliseconds: 17_000,
    };
    let outcome = Guest::new("[vm]\ncpus = 2\nmemory = 256\n", Plan::new([spin]))?.run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!("{}\n{}", outcome.status, outcome.stderr).into());
    }
    // It was looked at.
    for words in [
        "vCPU 0: halted, interrupts on",
        "vCPU 1: running, interrupts on",
    ] {
        if !outcome.stderr.contains(words) {
            return Err(format!("no `{words}` in\n{}", outcome.stderr).into());
        }
    }
    Ok(())
}
