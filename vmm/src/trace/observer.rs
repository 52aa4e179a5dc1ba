//! The bus's observer that records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use msr_bus::{Access, AnsweredBy, ExitReason, MsrEvent, MsrObserver, VcpuContext};
use msr_trace::{Answerer, Kind, Reason, Record, Recorder};

/// The address of Linux's system call entry.
const LSTAR: u32 = 0xc000_0082;
/// The first address of a guest kernel.
const KERNEL_HALF: u64 = 1 << 63;
/// As long as the guest's `IA32_LSTAR` is 0, this many exits look at it, and then one in as many.
const LOOKS: u32 = 64;

/// Records every access that reaches userspace.
///
/// A record costs the clock (no system call, as the vDSO has it) and one push. Until Linux has set `IA32_LSTAR` a few exits
/// read it, an ioctl each; the first value is noted once.
#[derive(Debug)]
pub struct TraceObserver {
    recorder: Arc<Recorder>,
    looked: AtomicU32,
}

impl TraceObserver {
    /// An observer that pushes to `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self {
            recorder,
            looked: AtomicU32::new(0),
        }
    }

    /// Looks at the guest's `IA32_LSTAR` unless it is known.
    pub fn look_at_lstar(&self, cpu: &dyn VcpuContext) {
        if !self.recorder.knows_lstar()
            && let Ok(value) = cpu.kernel_msr(LSTAR)
            && value >= KERNEL_HALF
        {
            self.recorder.set_lstar(value);
        }
    }
}

impl MsrObserver for TraceObserver {
    #[inline]
    fn observe(&self, event: &MsrEvent<'_>) {
        let cpu = event.access.cpu;
        let rip = cpu.instruction_pointer();
        if !self.recorder.knows_lstar() && rip.is_none_or(|rip| rip >= KERNEL_HALF) {
            let looked = self.looked.fetch_add(1, Ordering::Relaxed);
            if looked < LOOKS || looked.is_multiple_of(LOOKS) {
                self.look_at_lstar(cpu);
            }
        }
        let reason = match event.access.reason {
            ExitReason::Filter => Reason::Filter,
            ExitReason::Unknown => Reason::Unknown,
            ExitReason::Invalid => Reason::Invalid,
        };
        let write = event.kind == Access::WRITE;
        self.recorder.push(Record {
            time: monotonic(),
            // KVM has at most 4096 vCPUs.
            vcpu: cpu.id().0 as u16,
            index: event.access.index,
            kind: if write { Kind::Write } else { Kind::Read },
            value: event.outcome.unwrap_or(event.written),
            rip,
            fault: event.outcome.is_err(),
            injected: event.injected.is_some(),
            answerer: match event.answered_by {
                AnsweredBy::Device(_) => Answerer::Device(reason),
                AnsweredBy::Fallback => Answerer::Fallback(reason),
            },
        });
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of traces.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    // The clock counts from the host's boot, so neither part is negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
