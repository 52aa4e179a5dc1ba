//! What is learnt about a recording while it runs.

use serde::{Deserialize, Serialize};

/// A note in a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Note {
    /// The guest's `IA32_LSTAR`, the address of Linux's `entry_SYSCALL_64`: what the addresses of its functions
    /// are moved by follows from it.
    Lstar {
        /// Its value.
        value: u64,
    },
    /// Something was done to the VM from outside.
    Mark {
        /// When, in nanoseconds of the records' clock.
        time: u64,
        /// What, for people.
        text: String,
    },
    /// The recording ended in order. A trace without it was cut off.
    End {
        /// How many records it holds.
        records: u64,
        /// How many records were lost, by vCPU.
        lost: Vec<u64>,
    },
}
