//! How often which MSR reached userspace.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use msr_bus::{Access, MsrBus, MsrEvent, MsrObserver};
use msr_filter::{fields, names};

/// How many different MSRs one vCPU's table tells apart.
const SLOTS: usize = 2048;

/// Counts every access that reaches userspace, by MSR.
///
/// Each vCPU has a table of its own that only its thread writes, so counting shares no cache line and takes
/// no lock.
#[derive(Debug)]
pub struct MsrStats {
    vcpus: Box<[Table]>,
}

#[derive(Debug)]
struct Table {
    slots: Box<[Slot]>,
    /// Accesses to MSRs for which the table had no room.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// The MSR's index plus 1; 0 while the slot is free.
    key: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    faults: AtomicU64,
    /// Accesses that did not fault, and the value of the last of them.
    answered: AtomicU64,
    last: AtomicU64,
}

/// What was counted for one MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// RDMSRs, those that faulted included.
    pub reads: u64,
    /// WRMSRs, those that faulted included.
    pub writes: u64,
    /// Accesses of either kind that were answered with #GP.
    pub faults: u64,
    /// The value read or written last without a fault, on the vCPU with the most such accesses where several did.
    pub last: Option<u64>,
}

impl MsrStats {
    /// Empty tables for as many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        let table = |_| Table {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            dropped: AtomicU64::new(0),
        };
        Self {
            vcpus: (0..vcpus).map(table).collect(),
        }
    }

    /// What was counted so far, by MSR, over all vCPUs.
    pub fn counts(&self) -> BTreeMap<u32, Counts> {
        let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
        let mut answers: BTreeMap<u32, u64> = BTreeMap::new();
        for slot in self.vcpus.iter().flat_map(|table| &table.slots) {
            // Keys are index + 1, so they fit.
            let Some(index) = slot.key.load(Ordering::Acquire).checked_sub(1) else {
                continue;
            };
            let count = counts.entry(index as u32).or_default();
            count.reads += slot.reads.load(Ordering::Relaxed);
            count.writes += slot.writes.load(Ordering::Relaxed);
            count.faults += slot.faults.load(Ordering::Relaxed);
            let answered = slot.answered.load(Ordering::Relaxed);
            let most = answers.entry(index as u32).or_default();
            if answered > *most {
                *most = answered;
                count.last = Some(slot.last.load(Ordering::Relaxed));
            }
        }
        counts
    }

    /// How many accesses went uncounted because a vCPU touched more than 2,048 different MSRs.
    pub fn dropped(&self) -> u64 {
        self.vcpus
            .iter()
            .map(|table| table.dropped.load(Ordering::Relaxed))
            .sum()
    }

    /// The counts as a table for people, with who on `bus` answers.
    pub fn table<'a>(&'a self, bus: &'a MsrBus) -> impl fmt::Display + 'a {
        StatsTable { stats: self, bus }
    }
}

impl MsrObserver for MsrStats {
    fn observe(&self, event: &MsrEvent<'_>) {
        let Some(table) = self.vcpus.get(event.access.cpu.id().0 as usize) else {
            return;
        };
        let Some(slot) = table.slot(event.access.index) else {
            bump(&table.dropped);
            return;
        };
        bump(if event.kind == Access::READ {
            &slot.reads
        } else {
            &slot.writes
        });
        match event.outcome {
            Ok(value) => {
                slot.last.store(value, Ordering::Relaxed);
                bump(&slot.answered);
            }
            Err(_) => bump(&slot.faults),
        }
    }
}

/// Adds 1 to a counter that only this thread writes.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Table {
    fn slot(&self, index: u32) -> Option<&Slot> {
        let key = u64::from(index) + 1;
        let start = index.wrapping_mul(0x9e37_79b1) as usize >> 16;
        (0..SLOTS)
            .map(|step| &self.slots[(start + step) % SLOTS])
            .find(|slot| match slot.key.load(Ordering::Relaxed) {
                0 => {
                    slot.key.store(key, Ordering::Release);
                    true
                }
                found => found == key,
            })
    }
}

/// What is told of one MSR: a line of the table, without its end.
#[derive(Clone, Copy, Debug)]
pub struct StatsRow<'a> {
    /// The MSR.
    pub index: u32,
    /// RDMSRs, those that faulted included.
    pub reads: u64,
    /// WRMSRs, those that faulted included.
    pub writes: u64,
    /// Accesses that were answered with #GP.
    pub faults: u64,
    /// The device that answers; none for the default.
    pub device: Option<&'a str>,
}

impl StatsRow<'_> {
    /// The heads of the columns.
    pub fn head() -> String {
        format!(
            "{:<12}{:<36}{:>9}{:>9}{:>9}  answered by",
            "index", "name", "reads", "writes", "faults"
        )
    }
}

impl fmt::Display for StatsRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            reads,
            writes,
            faults,
            device,
        } = self;
        let name = names::name(*index).unwrap_or("-");
        let by = device.unwrap_or("default (unclaimed)");
        write!(
            f,
            "{index:<#12x}{name:<36}{reads:>9}{writes:>9}{faults:>9}  {by}"
        )
    }
}

struct StatsTable<'a> {
    stats: &'a MsrStats,
    bus: &'a MsrBus,
}

impl fmt::Display for StatsTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.stats.counts();
        if counts.is_empty() {
            return writeln!(f, "MSR accesses that reached userspace: none");
        }
        writeln!(f, "MSR accesses that reached userspace:")?;
        writeln!(f, "{}", StatsRow::head())?;
        for (
            index,
            Counts {
                reads,
                writes,
                faults,
                last,
            },
        ) in counts
        {
            let device = self.bus.device(index).map(msr_bus::MsrDevice::name);
            let row = StatsRow {
                index,
                reads,
                writes,
                faults,
                device,
            };
            writeln!(f, "{row}")?;
            if let Some(value) = last
                && let Some(fields) = fields::decode(index, value)
            {
                writeln!(f, "{:12}last {value:#x}: {fields}", "")?;
            }
        }
        if let Some(faults) = self.bus.faults() {
            writeln!(
                f,
                "accesses that went wrong on purpose: {}",
                faults.injected()
            )?;
        }
        match self.stats.dropped() {
            0 => Ok(()),
            dropped => writeln!(
                f,
                "and {dropped} accesses to more MSRs than this table tells apart"
            ),
        }
    }
}
