//! What processes of a guest check again and again while the machine is saved and carried on around them.

use serde::{Deserialize, Serialize};

/// The first argument of the init where it is to check something and not to be the init. A [`Check`] in JSON follows.
pub const CHECK_ARGUMENT: &str = "check";

/// What one process checks until the machine ends, or something is wrong: it then prints a line that begins with `wrong: `.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// That memory has what was written to it, page by page with checksums, that floating-point registers keep their values, and
    /// that nothing that counts up ever runs backwards: RDTSC, CLOCK_MONOTONIC, CLOCK_REALTIME and MSRs. Prints `checked CPU N` now and then,
    /// with the number of passes so far.
    Cpus {
        /// The CPU that the process stays on; or those between which it goes to and fro, named `0+1` in its lines.
        cpus: Vec<u32>,
        /// The MSRs that count up; only for a process that stays.
        counters: Vec<u32>,
        /// Of these MSRs, too, those that do not read 0 at first. One must not.
        any_counters: Vec<u32>,
        /// Loads an Intel microcode update for a processor of this signature (CPUID.1:EAX) every second, each with a greater revision, and expects
        /// to read the revision that was loaded last.
        microcode: Option<u32>,
    },
    /// The kernel's log: prints its warnings and worse, each after `kernel: `.
    KernelLog,
}

impl Check {
    /// What the process is called in its lines.
    pub fn label(&self) -> String {
        match self {
            Self::Cpus { cpus, .. } => {
                let cpus: Vec<_> = cpus.iter().map(u32::to_string).collect();
                cpus.join("+")
            }
            Self::KernelLog => "log".to_owned(),
        }
    }
}
