//! SIGTERM presses the power button, where a driver waits for it.

use std::time::{Duration, Instant};

use guest_tests::guest::{Guest, Plan, Step, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_vmm::layout;

use super::{kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    listed!("power_button":
        linux_switches_itself_off_at_sigterm,
        a_guest_that_ignores_the_button_is_stopped_after_the_grace_period,
        a_second_signal_stops_the_guest_at_once,
    )
}

fn linux_switches_itself_off_at_sigterm() -> Result<(), Failed> {
    /// How often the button was pressed, and that it is enabled.
    const COUNT: &str = "/sys/firmware/acpi/interrupts/ff_pwr_btn";
    let button = Step::LoadModule {
        name: "button".to_owned(),
    };
    let pressed = Step::AwaitChange {
        path: COUNT.to_owned(),
        milliseconds: 60_000,
    };
    // Long enough that the guest ended by itself if its status is 0, as it must be.
    let guest = Guest::new("vm.grace = 600", Plan::new([button, pressed]))?;
    let mut running = guest.start()?;
    running.wait_for("@ {\"Answer\":[0,\"Done\"]}")?;
    // The guest looks at the count first.
    std::thread::sleep(Duration::from_secs(1));
    kill(running.pid(), libc::SIGTERM)?;
    let outcome = running.wait()?;
    let report = outcome.report()?;
    let enabled = |count: &str| count.split_whitespace().any(|word| word == "enabled");
    match report.text(1) {
        Some(text) if text.trim_start().starts_with("1 ") && enabled(text) => {}
        _ => return Err(format!("{:?}", report.answer(1)).into()),
    }
    match outcome.status.code() {
        Some(0) => Ok(()),
        _ => Err(format!("{}\n{}", outcome.status, outcome.stderr).into()),
    }
}

/// A guest whose driver for the button enables it and then does nothing.
fn no_handler(grace: &str) -> Result<Guest, Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.0.mov(dx, u32::from(layout::PM1A_EVENT) + 2)?;
    kernel.0.mov(ax, 1 << 8)?;
    kernel.0.out(dx, ax)?;
    kernel.print("up\n")?.spin()?;
    Ok(Guest::tiny(&mut kernel)?.option("--grace", grace))
}

fn stopped_within(
    guest: Guest,
    signals: &[libc::c_int],
    limits: std::ops::Range<Duration>,
) -> Result<(), Failed> {
    let mut running = guest.start()?;
    running.wait_for("up")?;
    let sent = Instant::now();
    for signal in signals {
        kill(running.pid(), *signal)?;
        // Two of the same kind that are pending at once count as one.
        std::thread::sleep(Duration::from_millis(200));
    }
    let outcome = running.wait()?;
    let took = sent.elapsed();
    if outcome.status.code() != Some(1) || !limits.contains(&took) {
        return Err(format!("{} after {took:?}\n{}", outcome.status, outcome.stderr).into());
    }
    Ok(())
}

fn a_guest_that_ignores_the_button_is_stopped_after_the_grace_period() -> Result<(), Failed> {
    let second = Duration::from_secs(1);
    stopped_within(no_handler("1")?, &[libc::SIGTERM], second..10 * second)?;
    stopped_within(
        no_handler("0")?,
        &[libc::SIGTERM],
        Duration::ZERO..10 * second,
    )
}

fn a_second_signal_stops_the_guest_at_once() -> Result<(), Failed> {
    let limits = Duration::ZERO..Duration::from_secs(10);
    for second in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        stopped_within(no_handler("600")?, &[libc::SIGTERM, second], limits.clone())?;
    }
    // Ctrl-C is never polite.
    stopped_within(no_handler("600")?, &[libc::SIGINT], limits)
}
