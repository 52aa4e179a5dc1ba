//! What runs longer than a test should: `make soak`.

use std::time::{Duration, Instant};

use guest_tests::guest::{End, Guest, Plan, RunningGuest, Step, TinyKernel};
use libtest_mimic::{Failed, Trial};

use super::{console, kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    let trials = listed!("soak":
        a_tiny_guest_can_be_stopped_at_any_moment,
        a_linux_guest_can_be_stopped_at_any_moment,
        a_slow_reader_gets_everything_that_a_guest_with_a_driver_writes,
    );
    trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(true))
        .collect()
}

/// The longest that a guest may take to stop. An emulated CPU is slow, and yet stops at once.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Moments from 0 to `span`, the same in each run, and spread evenly: multiples of the golden ratio.
fn moments(count: u32, span: Duration) -> impl Iterator<Item = Duration> {
    (0..count).map(move |n| span.mul_f64((f64::from(n) * 0.618_033_988_75).fract()))
}

/// Stops a guest by the signal, which it may not have asked for yet, and says how long that took.
fn stop(running: RunningGuest, signal: libc::c_int) -> Result<Duration, Failed> {
    let sent = Instant::now();
    kill(running.pid(), signal)?;
    let outcome = running.wait()?;
    let took = sent.elapsed();
    // Before it has blocked the signal, the process dies of it; from then on it ends in order.
    let in_order = outcome.status.code() == Some(1) && outcome.stderr.contains("stopped");
    if !(in_order || outcome.status.code().is_none() && outcome.console.is_empty()) {
        return Err(format!("{}\n{}", outcome.status, outcome.stderr).into());
    }
    if took > AT_ONCE {
        return Err(format!("it took {took:?}").into());
    }
    Ok(took)
}

fn stop_each<G>(guest: G, count: u32, span: Duration) -> Result<(), Failed>
where
    G: Fn() -> Result<Guest, Failed>,
{
    let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    let mut longest = Duration::ZERO;
    for (moment, signal) in moments(count, span).zip(signals.into_iter().cycle()) {
        let running = guest()?.start()?;
        std::thread::sleep(moment);
        let took = stop(running, signal).map_err(|error| {
            format!("after {moment:?}: {}", error.message().unwrap_or_default())
        })?;
        longest = longest.max(took);
    }
    println!("{count} guests were stopped, each within {longest:?}");
    Ok(())
}

fn a_tiny_guest_can_be_stopped_at_any_moment() -> Result<(), Failed> {
    let halts = || -> Result<Guest, Failed> {
        let mut kernel = TinyKernel::new()?;
        Ok(Guest::tiny(kernel.print("up\n")?.halt()?)?.option("--cpus", "4"))
    };
    let spins = || -> Result<Guest, Failed> {
        let mut kernel = TinyKernel::new()?;
        Ok(Guest::tiny(kernel.print("up\n")?.spin()?)?.option("--cpus", "2"))
    };
    stop_each(halts, 150, Duration::from_millis(150))?;
    stop_each(spins, 150, Duration::from_millis(150))
}

fn a_linux_guest_can_be_stopped_at_any_moment() -> Result<(), Failed> {
    let linux = || -> Result<Guest, Failed> {
        let plan = Plan::new([Step::KernelRelease]).ending(End::Idle);
        Ok(Guest::new("vm.cpus = 2", plan)?)
    };
    stop_each(linux, 30, Duration::from_secs(12))
}

fn a_slow_reader_gets_everything_that_a_guest_with_a_driver_writes() -> Result<(), Failed> {
    console::slow_reader()
}
