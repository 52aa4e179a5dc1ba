//! The terminal is raw while a guest runs, and afterwards as it was before, however the guest ended.

use guest_tests::guest::{OnTerminal, Settings};
use libtest_mimic::{Failed, Trial};

use super::{echo, kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    listed!("terminal":
        every_way_to_end_restores_the_terminal,
        a_person_can_quit_a_guest_that_reads_nothing,
    )
}

/// How a guest on a terminal is ended.
#[derive(Clone, Copy, Debug)]
enum By {
    Typing(&'static [u8]),
    Signal(libc::c_int),
}

fn expect(
    ended: (std::process::ExitStatus, Settings, String),
    before: &Settings,
    status: i32,
) -> Result<(), Failed> {
    let (actual, after, shown) = ended;
    if actual.code() != Some(status) {
        return Err(format!("{actual} instead of {status}\n{shown}").into());
    }
    if after != *before {
        return Err(format!("{before:?} became {after:?}\n{shown}").into());
    }
    Ok(())
}

fn every_way_to_end_restores_the_terminal() -> Result<(), Failed> {
    for (by, status) in [
        (By::Typing(b"q"), 0),
        (By::Typing(b"f"), 1),
        (By::Typing(b"\x03"), 1),
        (By::Typing(b"\x01x"), 1),
        (By::Signal(libc::SIGTERM), 1),
        (By::Signal(libc::SIGINT), 1),
        (By::Signal(libc::SIGHUP), 1),
    ] {
        let guest = echo()?;
        let mut terminal = OnTerminal::start(guest.command()?)?;
        terminal.wait_for("Ctrl-A h")?;
        terminal.wait_for("up")?;
        if !terminal.settings()?.is_raw() {
            return Err("the terminal is not raw while the guest runs".into());
        }
        match by {
            By::Typing(text) => terminal.enter(text)?,
            By::Signal(signal) => kill(terminal.pid()?.cast_unsigned(), signal)?,
        }
        let before = terminal.before.clone();
        expect(terminal.wait()?, &before, status)
            .map_err(|error| format!("{by:?}: {}", error.message().unwrap_or_default()))?;
    }
    Ok(())
}

fn a_person_can_quit_a_guest_that_reads_nothing() -> Result<(), Failed> {
    let mut kernel = guest_tests::guest::TinyKernel::new()?;
    let guest = guest_tests::guest::Guest::tiny(kernel.print("up\n")?.spin()?)?;
    let mut terminal = OnTerminal::start(guest.command()?)?;
    terminal.wait_for("up")?;
    // More than a UART takes, and than is kept for one that takes nothing.
    for _ in 0..100 {
        terminal.enter(&[b'x'; 100])?;
    }
    terminal.enter(b"\x01h")?;
    terminal.wait_for("power button")?;
    terminal.enter(b"\x01x")?;
    let before = terminal.before.clone();
    expect(terminal.wait()?, &before, 1)
}
