//! Init of the tests' Linux guests: follows the plan in its initrd and reports on the console. See
//! `guest_tests::guest`.

mod check;
mod disk;
mod guarded;
mod msr;
mod steps;
mod storm;
mod traced;

use std::error::Error;
use std::fs;
use std::io::{self, Write};

use guest_tests::guest::{Answer, End, Line, PLAN_PATH, Plan, Step};
use guest_tests::init;

fn main() {
    if std::process::id() != 1 {
        check::main();
    }
    // Without the port there is nobody who measures.
    let _ = init::stop_boot_timer();
    let plan = match prepare() {
        Ok(plan) => plan,
        Err(error) => {
            report(&Line::Failed(error.to_string()));
            finish(End::PowerOff);
        }
    };
    let talkative = !plan.for_people;
    if talkative {
        report(&Line::Up);
    }
    for (number, step) in plan.steps.iter().enumerate() {
        let answer = steps::take(step);
        let shows_its_own = matches!(step, Step::ShowMsr { .. });
        let failed = matches!(answer, Answer::Errno(_) | Answer::Failed(_));
        if talkative || (failed && !shows_its_own) {
            report(&Line::Answer(number, answer));
        }
    }
    if talkative {
        report(&Line::End);
    }
    finish(plan.end);
}

/// One write a line, so that nothing of the kernel's comes between.
fn report(line: &Line) {
    // Without a console there is nobody to tell.
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}

fn prepare() -> Result<Plan, Box<dyn Error>> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ] {
        init::mount(kind, at).map_err(|error| format!("cannot mount {kind} on {at}: {error}"))?;
    }
    init::quiet_console()?;
    Ok(serde_json::from_slice(&fs::read(PLAN_PATH)?)?)
}

fn finish(end: End) -> ! {
    let command = match end {
        End::PowerOff => libc::RB_POWER_OFF,
        End::Reboot => libc::RB_AUTOBOOT,
        End::Panic => panic!("as planned: the end of PID 1 is a kernel panic"),
        End::Idle => loop {
            std::thread::park();
        },
    };
    init::drain(&io::stdout());
    // SAFETY: the call takes no pointers; nothing is left that would need a sync.
    unsafe { libc::reboot(command) };
    // The machine goes down at its own pace.
    loop {
        std::thread::park();
    }
}
