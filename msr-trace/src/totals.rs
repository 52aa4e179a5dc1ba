//! How often: by MSR, by caller, and over time.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::record::{Kind, Record};

/// What was counted of one MSR or one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Reads, those that faulted included.
    pub reads: u64,
    /// Writes, those that faulted included.
    pub writes: u64,
    /// Accesses of either kind that faulted.
    pub faults: u64,
    /// The time of the first.
    pub first: u64,
    /// The time of the last.
    pub last: u64,
    /// The most in any one second, counted from the start of the recording.
    pub peak: u64,
    second: u64,
    in_second: u64,
}

impl Count {
    /// Reads and writes.
    pub fn total(&self) -> u64 {
        self.reads + self.writes
    }

    fn add(&mut self, record: &Record) {
        if self.total() == 0 {
            self.first = record.time;
        }
        self.last = record.time;
        match record.kind {
            Kind::Read => self.reads += 1,
            Kind::Write => self.writes += 1,
        }
        self.faults += u64::from(record.fault);
        let second = record.time / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.in_second = 0;
        }
        self.in_second += 1;
        self.peak = self.peak.max(self.in_second);
    }
}

/// Counts of records. It takes memory for each MSR and each address that occurs, and none for each record.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    msrs: HashMap<u32, Count>,
    callers: HashMap<Option<u64>, Count>,
}

impl Totals {
    /// Counts a record.
    pub fn add(&mut self, record: &Record) {
        self.msrs.entry(record.index).or_default().add(record);
        self.callers.entry(record.rip).or_default().add(record);
    }

    /// The counts by MSR.
    pub fn by_msr(&self) -> BTreeMap<u32, Count> {
        self.msrs
            .iter()
            .map(|(key, count)| (*key, *count))
            .collect()
    }

    /// The counts by instruction, `None` for records without an address.
    pub fn by_rip(&self) -> BTreeMap<Option<u64>, Count> {
        self.callers
            .iter()
            .map(|(key, count)| (*key, *count))
            .collect()
    }

    /// The counts by caller, as `name` calls the function of an address.
    pub fn by_caller(&self, name: impl Fn(u64) -> String) -> BTreeMap<String, Count> {
        let mut named: BTreeMap<String, Count> = BTreeMap::new();
        for (rip, count) in &self.callers {
            let key = rip.map_or_else(|| "(address not recorded)".to_owned(), &name);
            let sum = named.entry(key).or_insert(Count {
                first: u64::MAX,
                ..Count::default()
            });
            sum.reads += count.reads;
            sum.writes += count.writes;
            sum.faults += count.faults;
            sum.first = sum.first.min(count.first);
            sum.last = sum.last.max(count.last);
            // An upper bound: the seconds of two addresses may be different ones.
            sum.peak += count.peak;
        }
        named
    }
}
