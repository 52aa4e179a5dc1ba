//! The steps a guest is to take.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// What a guest does from its init's first instruction to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, in order. A step that fails does not keep the next from being taken.
    pub steps: Vec<Step>,
    /// How the guest ends after them.
    pub end: End,
    /// Whether only people read the console: then the lines for [`Report`](super::Report) are left
    /// out, except those about failed steps.
    pub for_people: bool,
}

impl Plan {
    /// A plan of these steps, and a power-off.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            end: End::PowerOff,
            for_people: false,
        }
    }

    /// The same with another end.
    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    /// The same for people to read: see [`for_people`](Self::for_people).
    pub fn read_by_people(self) -> Self {
        Self {
            for_people: true,
            ..self
        }
    }
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// `reboot(RB_POWER_OFF)`.
    #[default]
    PowerOff,
    /// `reboot(RB_AUTOBOOT)`.
    Reboot,
    /// Never: the guest idles until it is stopped from outside.
    Idle,
    /// A kernel panic.
    Panic,
}

/// Where [`Step::Storm`] has its queues and buffers: a physical address and a length. `memmap=` on the kernel's command line
/// keeps Linux from using it.
pub const RESERVED: (u64, u32) = (96 << 20, 4 << 20);

/// One thing for the guest to do. What it answers is said with each: an [`Answer`](super::Answer),
/// which is `Errno` instead where Linux refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Read an MSR through `/dev/cpu/CPU/msr`. Answers `Value`; EIO is #GP.
    ReadMsr {
        /// The CPU.
        cpu: u32,
        /// The MSR index.
        index: u32,
    },
    /// Write an MSR through `/dev/cpu/CPU/msr`. Answers `Done`; EIO is #GP.
    WriteMsr {
        /// The CPU.
        cpu: u32,
        /// The MSR index.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Read every MSR from `first` to `last`. Answers `Values` with those that can be read.
    ScanMsrs {
        /// The CPU.
        cpu: u32,
        /// The first index.
        first: u32,
        /// The last index, inclusive.
        last: u32,
    },
    /// Read an MSR on all online CPUs at the same time, `times` times each. Answers `Values` with
    /// the last value by CPU number.
    ReadMsrOnAll {
        /// The MSR index.
        index: u32,
        /// How often each CPU reads.
        times: u32,
    },
    /// Write `first + CPU` to an MSR on all online CPUs at the same time. Answers `Done`.
    WriteMsrOnAll {
        /// The MSR index.
        index: u32,
        /// The value that CPU 0 writes.
        first: u64,
    },
    /// Copy a file into memory so that it ends where the mapped memory does, and write the address of its byte `offset` to an
    /// MSR of a CPU, from a process that runs there: what the MSR's device reads there is the file. Answers `Done`.
    WriteMsrAddress {
        /// The CPU.
        cpu: u32,
        /// The MSR index.
        index: u32,
        /// The file's absolute path.
        path: String,
        /// From the file's start.
        offset: u32,
    },
    /// Execute CPUID on a CPU. Answers `Cpuid`.
    Cpuid {
        /// The CPU.
        cpu: u32,
        /// EAX before.
        leaf: u32,
        /// ECX before.
        subleaf: u32,
    },
    /// Load a module of the initrd, by name. Answers `Done`.
    LoadModule {
        /// The name, as the file's without `.ko`.
        name: String,
    },
    /// Read a file. Answers `Text`.
    ReadFile {
        /// The absolute path.
        path: String,
    },
    /// Wait until a file reads differently. Answers `Text` with what it reads then.
    AwaitChange {
        /// The absolute path.
        path: String,
        /// How long at most.
        milliseconds: u64,
    },
    /// Write a file. Answers `Done`.
    WriteFile {
        /// The absolute path.
        path: String,
        /// What to write, in one call.
        text: String,
    },
    /// List a directory. Answers `Text`, a name a line, sorted.
    ListDirectory {
        /// The absolute path.
        path: String,
    },
    /// The time since the guest's boot. Answers `Value`, in nanoseconds.
    Uptime,
    /// The kernel's release, as `uname -r`. Answers `Text`.
    KernelRelease,
    /// Wait until the kernel's log has a text. Answers `Done`.
    AwaitLog {
        /// The text.
        text: String,
        /// How long at most.
        milliseconds: u64,
    },
    /// The kernel's log so far. Answers `Text`.
    KernelLog,
    /// Stop Linux's own tracing, and tell what its `msr:read_msr` and `msr:write_msr` have recorded since the boot (`trace_event=` on the
    /// command line), x2APIC's registers left out. Answers `Text`: a [`TracedMsr`](super::TracedMsr) a line, in the order of time.
    TracedMsrs,
    /// The number and a digest of the kernel's own functions in /proc/kallsyms. Answers `Text`, as
    /// [`functions_digest`](super::functions_digest) has it.
    KallsymsDigest,
    /// Run a program to its end. Answers `Exited`.
    Execute {
        /// The program's path and its arguments.
        argv: Vec<String>,
    },
    /// Run a program to its end with another root directory, as root's shell would: with a `PATH`, a home and a terminal's name.
    /// Answers `Exited`.
    ExecuteIn {
        /// The root directory.
        root: String,
        /// The program's path or name there, and its arguments.
        argv: Vec<String>,
    },
    /// Let time pass idly. Answers `Done`.
    Sleep {
        /// How long.
        milliseconds: u64,
    },
    /// Keep a CPU busy. Answers `Done`.
    Spin {
        /// The CPU.
        cpu: u32,
        /// How long.
        milliseconds: u64,
    },
    /// Access MSRs, ports, device memory and virtio queues at random, from every CPU at once. Needs the module `msr`, no virtio driver,
    /// and [`RESERVED`] left alone by the kernel. Answers `Values` with how many accesses there were of each kind.
    Storm {
        /// Which accesses.
        seed: u64,
        /// How long.
        milliseconds: u64,
    },
    /// Mount a file system without a disk. Answers `Done`.
    Mount {
        /// Its type, such as `tmpfs`.
        kind: String,
        /// The directory to mount it on.
        at: String,
    },
    /// Mount an ext4 file system, once its disk is there, for reading only where the disk is. Answers `Done`.
    MountDisk {
        /// The disk's device file.
        disk: String,
        /// The directory to mount it on, which is made.
        at: String,
    },
    /// Read the first bytes of a file that may be a device. Answers `Text`, in hexadecimal digits.
    ReadBytes {
        /// The absolute path.
        path: String,
        /// How many.
        count: usize,
    },
    /// Read the first bytes of a disk past the page cache, `piece` after `piece`, or random numbers from `/dev/hwrng`. Answers `Value`, the
    /// nanoseconds that it took.
    TimeReads {
        /// The device file.
        path: String,
        /// How many bytes at once; for a disk a multiple of 4096.
        piece: usize,
        /// How often.
        times: usize,
    },
    /// Read the last block of a disk, past the page cache, until that fails. Answers `Errno`.
    ReadLastBlockUntilError {
        /// The disk's device file.
        disk: String,
    },
    /// Append [records](super::record()) to the file `records` in a directory and fsync each, after
    /// those that are there, while another thread makes, renames and removes files beside it. Prints
    /// `found N` first and `fsynced N` after each record, with the number of records so far. Answers
    /// nothing unless it fails, as it goes on until the machine ends.
    WriteRecords {
        /// The absolute path of the directory.
        directory: String,
    },
    /// Start a process for each [`Check`], which goes on until the machine ends. Answers `Done`.
    StartChecks {
        /// What they check.
        checks: Vec<Check>,
    },
    /// Print a line for people. `{release}` in it becomes the kernel's release. Answers `Done`.
    Print {
        /// The line.
        text: String,
    },
    /// Print a table row for people: an MSR of CPU 0 as it reads, after a write if one is given.
    /// Answers `Value`.
    ShowMsr {
        /// The MSR index.
        index: u32,
        /// Its name.
        name: String,
        /// What to write first.
        write: Option<u64>,
        /// The last column: who answers it.
        answered_by: String,
    },
}

impl Step {
    /// [`Step::ReadMsr`].
    pub const fn read_msr(cpu: u32, index: u32) -> Self {
        Self::ReadMsr { cpu, index }
    }

    /// [`Step::WriteMsr`].
    pub const fn write_msr(cpu: u32, index: u32, value: u64) -> Self {
        Self::WriteMsr { cpu, index, value }
    }

    /// [`Step::LoadModule`].
    pub fn load_module(name: &str) -> Self {
        Self::LoadModule {
            name: name.to_owned(),
        }
    }

    /// [`Step::WriteFile`].
    pub fn write_file(path: &str, text: &str) -> Self {
        Self::WriteFile {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// [`Step::ReadFile`].
    pub fn read_file(path: &str) -> Self {
        Self::ReadFile {
            path: path.to_owned(),
        }
    }

    /// [`Step::ExecuteIn`].
    pub fn execute_in<S: Into<String>>(root: &str, argv: impl IntoIterator<Item = S>) -> Self {
        Self::ExecuteIn {
            root: root.to_owned(),
            argv: argv.into_iter().map(Into::into).collect(),
        }
    }

    /// [`Step::Mount`].
    pub fn mount(kind: &str, at: &str) -> Self {
        Self::Mount {
            kind: kind.to_owned(),
            at: at.to_owned(),
        }
    }

    /// [`Step::Execute`].
    pub fn execute<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self::Execute {
            argv: argv.into_iter().map(Into::into).collect(),
        }
    }
}
