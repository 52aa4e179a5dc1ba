//! The terminal in raw mode, and back.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use nix::sys::termios::{
    LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr,
    tcsetattr,
};
use nix::unistd::{getpgrp, tcgetpgrp};

/// How the terminal was when the process started.
static ORIGINAL: OnceLock<libc::termios> = OnceLock::new();

/// Standard input as a terminal in raw mode; dropping it restores what was before.
pub(crate) struct RawTerminal;

impl RawTerminal {
    /// Switches standard input to raw mode, where it is a terminal and this process is in its foreground.
    ///
    /// Ctrl-C still raises SIGINT; everything else goes to the guest, and the VMM's own lines still end
    /// where they should.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin).ok() != Some(getpgrp()) {
            return Ok(None);
        }
        let original = tcgetattr(&stdin)?;
        let mut raw = original.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= original.output_flags & (OutputFlags::OPOST | OutputFlags::ONLCR);
        raw.local_flags |= LocalFlags::ISIG;
        for key in [
            SpecialCharacterIndices::VQUIT,
            SpecialCharacterIndices::VSUSP,
        ] {
            raw.control_chars[key as usize] = libc::_POSIX_VDISABLE;
        }
        if ORIGINAL.set(original.into()).is_ok() {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        }
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(Self))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores what was before raw mode. Nothing but system calls, so that a signal handler may call it.
pub(crate) fn restore() {
    if let Some(original) = ORIGINAL.get() {
        // Without the terminal there is nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &Termios::from(*original));
    }
}
