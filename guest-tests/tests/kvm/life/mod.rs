//! The life cycle of a guest under `msr-vmm`, from start to every kind of end. Most of these guests are a few
//! instructions, so that they run on any KVM.

use guest_tests::guest::{Guest, TinyKernel};
use libtest_mimic::{Failed, Trial};

mod console;
pub(crate) mod control;
mod control_debian;
mod control_trace;
mod faults;
mod hang;
mod hostile;
mod hostile_snapshot;
mod kvmclock;
mod library;
mod linux_storm;
mod loading;
mod ports;
mod power_button;
mod scenario;
mod snapshot;
mod snapshot_boot;
mod snapshot_memory;
mod soak;
mod terminal;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    [
        console::trials(),
        control::trials(),
        control_debian::trials(),
        control_trace::trials(),
        faults::trials(),
        hang::trials(),
        hostile::trials(),
        hostile_snapshot::trials(),
        kvmclock::trials(),
        library::trials(),
        linux_storm::trials(),
        loading::trials(),
        ports::trials(),
        power_button::trials(),
        scenario::trials(),
        snapshot::trials(),
        snapshot_boot::trials(),
        snapshot_memory::trials(),
        soak::trials(),
        terminal::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Lists tests under the names of their functions.
macro_rules! listed {
    ($prefix:literal: $($test:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(concat!("life::", $prefix, "::", stringify!($test)), $test)),*]
    };
}
use listed;

/// A guest that says it is up and echoes what is typed: see [`TinyKernel::echo`].
fn echo() -> Result<Guest, Failed> {
    let mut kernel = TinyKernel::new()?;
    Ok(Guest::tiny(kernel.print("up\n")?.echo()?)?)
}

/// Sends a signal to a child of this process, or a child's child, that has not been waited for.
fn kill(pid: u32, signal: libc::c_int) -> Result<(), Failed> {
    // SAFETY: kill takes no pointers.
    if unsafe { libc::kill(pid.cast_signed(), signal) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
