//! Where the time of a boot goes, for `msr-vmm run --boot-timing`.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Something that happens once in a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootEvent {
    /// The program's `main` is called.
    Main,
    /// The command line and the configuration file are read.
    Configured,
    /// The MSR devices are built and the filter is compiled.
    MsrPlan,
    /// There is a VM, with its MSR filter.
    MsrFilter,
    /// The guest's memory is mapped and KVM has it.
    Memory,
    /// There are PICs, I/O APIC and PIT.
    InterruptControllers,
    /// The devices are there.
    Devices,
    /// The vCPUs are created, with their CPUID and MSRs.
    Vcpus,
    /// Kernel and initrd are in guest memory; they are loaded while all else is set up.
    KernelLoaded,
    /// The boot vCPU's registers, ACPI tables and zero page are written.
    Built,
    /// The boot vCPU's thread calls KVM_RUN for the first time, at the kernel's first instruction.
    FirstRun,
    /// The guest writes the first byte to its console.
    FirstOutput,
    /// The guest's init says that it runs: see [`layout::BOOT_TIMER`](crate::layout::BOOT_TIMER).
    Init,
    /// The guest ended.
    Ended,
}

impl BootEvent {
    const ALL: [Self; 14] = [
        Self::Main,
        Self::Configured,
        Self::MsrPlan,
        Self::MsrFilter,
        Self::Memory,
        Self::InterruptControllers,
        Self::Devices,
        Self::Vcpus,
        Self::KernelLoaded,
        Self::Built,
        Self::FirstRun,
        Self::FirstOutput,
        Self::Init,
        Self::Ended,
    ];

    /// What the table calls it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Main => "exec to main (CPU time)",
            Self::Configured => "command line, config",
            Self::MsrPlan => "MSR devices",
            Self::MsrFilter => "VM, MSR filter",
            Self::Memory => "memory",
            Self::InterruptControllers => "interrupt controllers",
            Self::Devices => "devices",
            Self::Vcpus => "vCPUs",
            Self::KernelLoaded => "kernel, initrd loaded",
            Self::Built => "registers, tables",
            Self::FirstRun => "first KVM_RUN",
            Self::FirstOutput => "first console output",
            Self::Init => "guest's init",
            Self::Ended => "end",
        }
    }
}

/// When a boot reached which [`BootEvent`].
///
/// Prints as a table, in the order in which things happened.
///
/// ```
/// use msr_vmm::{BootTiming, BootEvent};
///
/// let timing = BootTiming::since_exec();
/// timing.mark(BootEvent::Main);
/// assert!(timing.to_string().contains("exec to main"));
/// ```
#[derive(Debug)]
pub struct BootTiming {
    start: Instant,
    marks: [OnceLock<Duration>; BootEvent::ALL.len()],
}

impl BootTiming {
    /// Counts from `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            marks: [const { OnceLock::new() }; BootEvent::ALL.len()],
        }
    }

    /// Counts from the process's execve, which is taken to be as long ago as the process has used CPU time. That
    /// is exact to the microsecond in a program's first lines, unless the process had to wait for a CPU or for its
    /// own file to be read; the kernel notes the time itself in steps of 10 ms only (`/proc/self/stat`).
    pub fn since_exec() -> Self {
        let now = Instant::now();
        Self::new(now.checked_sub(process_cpu_time()).unwrap_or(now))
    }

    /// Notes that `event` is now. Only the first time counts.
    pub fn mark(&self, event: BootEvent) {
        let _ = self.marks[event as usize].set(self.start.elapsed());
    }

    /// When `event` was, since the start.
    pub fn at(&self, event: BootEvent) -> Option<Duration> {
        self.marks[event as usize].get().copied()
    }

    /// Everything that happened, in its order.
    fn in_order(&self) -> Vec<(BootEvent, Duration)> {
        let at = |event: BootEvent| Some((event, self.at(event)?));
        let mut marks: Vec<_> = BootEvent::ALL.into_iter().filter_map(at).collect();
        marks.sort_by_key(|(_, at)| *at);
        marks
    }
}

impl fmt::Display for BootTiming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(f, "{:<26}{:>10}{:>10}", "boot timing", "at ms", "took ms")?;
        let mut before = Duration::ZERO;
        for (event, at) in self.in_order() {
            let (now, took) = (milliseconds(at), milliseconds(at - before));
            writeln!(f, "  {:<24}{now:>10.3}{took:>10.3}", event.label())?;
            before = at;
        }
        Ok(())
    }
}

/// The CPU time of this process, all threads together.
fn process_cpu_time() -> Duration {
    // The clock exists on every Linux, so the call does not fail.
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Passes on the console's output and notes when it begins.
pub(crate) struct TimedOutput {
    pub(crate) output: Box<dyn Write + Send>,
    pub(crate) timing: Arc<BootTiming>,
}

impl Write for TimedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.timing.mark(BootEvent::FirstOutput);
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_listed_as_they_happened_and_their_first_time_counts() {
        let timing = BootTiming::new(Instant::now());
        timing.mark(BootEvent::Vcpus);
        timing.mark(BootEvent::KernelLoaded);
        timing.mark(BootEvent::Main);
        let first = timing.at(BootEvent::Vcpus);
        timing.mark(BootEvent::Vcpus);
        assert_eq!(timing.at(BootEvent::Vcpus), first);
        assert_eq!(timing.at(BootEvent::Init), None);
        let table = timing.to_string();
        let labels: Vec<&str> = table.lines().skip(1).map(|l| l[..26].trim()).collect();
        assert_eq!(
            labels,
            ["vCPUs", "kernel, initrd loaded", "exec to main (CPU time)"]
        );
    }

    #[test]
    fn every_event_has_its_own_place() {
        for (place, event) in BootEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, place, "{event:?}");
        }
    }

    #[test]
    fn output_is_passed_on_and_its_beginning_noted() {
        let timing = Arc::new(BootTiming::new(Instant::now()));
        let mut output = TimedOutput {
            output: Box::new(io::sink()),
            timing: timing.clone(),
        };
        assert_eq!(timing.at(BootEvent::FirstOutput), None);
        assert_eq!(output.write(b"Linux").unwrap(), 5);
        assert!(timing.at(BootEvent::FirstOutput).is_some());
    }
}
