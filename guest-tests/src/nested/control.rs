//! What the host and the outer VM's init say to each other.
//!
//! The host leaves a [`Job`] in the initramfs. The init answers with [`Event`]s, one a line,
//! through QEMU's debug console at [`CONTROL_PORT`]: apart from the kernel's console and from the
//! job's own output, so that neither can be mistaken for the other, and without a driver, so that
//! it works from the first instruction of the init to the last.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// I/O port of QEMU's `isa-debugcon`: a byte written there reaches the host.
pub const CONTROL_PORT: u16 = 0xe9;

/// I/O port of QEMU's `isa-debug-exit`: a write ends QEMU at once.
pub const EXIT_PORT: u16 = 0xf4;

/// Where the initramfs holds the [`Job`], as JSON.
pub const JOB_PATH: &str = "/job.json";

/// The serial port that carries the job's standard output and error.
pub const OUTPUT_TTY: &str = "/dev/ttyS1";

/// How often the init says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// What the outer VM is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Paths of the kernel modules to load first, dependencies before dependents.
    pub modules: Vec<String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment of the program.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// How long it may leave the CPUs next to idle before it counts as waiting for something that never comes.
    pub idle_limit: Duration,
}

/// How far the outer VM is, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The init runs.
    Up,
    /// It still does: said every [`HEARTBEAT`].
    Alive,
    /// The modules are loaded; the job starts.
    Ready,
    /// The job exited with this status.
    Exited(u8),
    /// A signal ended the job.
    Signalled(u8),
    /// The job has neither ended nor used a CPU for this many seconds: it waits for something that never
    /// comes. The kernel's console says next what each task waits for.
    Stuck(u64),
    /// The init could not run the job.
    Failed(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => write!(f, "up"),
            Self::Alive => write!(f, "alive"),
            Self::Ready => write!(f, "ready"),
            Self::Exited(status) => write!(f, "exited {status}"),
            Self::Signalled(signal) => write!(f, "signalled {signal}"),
            Self::Stuck(seconds) => write!(f, "stuck {seconds}"),
            // A line is a message: the text must not hold more of them.
            Self::Failed(text) => write!(f, "failed {}", text.replace('\n', "; ")),
        }
    }
}

/// A control line that is none of [`Event`]'s.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown control line {0:?} from the outer VM")]
pub struct UnknownEvent(String);

impl FromStr for Event {
    type Err = UnknownEvent;

    fn from_str(line: &str) -> Result<Self, UnknownEvent> {
        let unknown = || UnknownEvent(line.to_owned());
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = || rest.parse().map_err(|_| unknown());
        match word {
            "up" => Ok(Self::Up),
            "alive" => Ok(Self::Alive),
            "ready" => Ok(Self::Ready),
            "exited" => Ok(Self::Exited(number()?)),
            "signalled" => Ok(Self::Signalled(number()?)),
            "stuck" => Ok(Self::Stuck(rest.parse().map_err(|_| unknown())?)),
            "failed" => Ok(Self::Failed(rest.to_owned())),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_line() {
        for event in [
            Event::Up,
            Event::Alive,
            Event::Ready,
            Event::Exited(101),
            Event::Signalled(9),
            Event::Stuck(30),
            Event::Failed("cannot load kvm.ko".to_owned()),
        ] {
            assert_eq!(event.to_string().parse(), Ok(event));
        }
    }

    #[test]
    fn a_failure_of_many_lines_stays_one_line() {
        assert_eq!(Event::Failed("a\nb".to_owned()).to_string(), "failed a; b");
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "exited", "exited 256", "exited x", "stuck", "down"] {
            assert_eq!(line.parse::<Event>(), Err(UnknownEvent(line.to_owned())));
        }
    }
}
