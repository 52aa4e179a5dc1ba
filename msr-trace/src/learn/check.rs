//! What a filter would have denied of what a guest did.

use std::collections::BTreeMap;
use std::fmt;

use msr_filter::{FilterSpec, Verdict, names};

use super::{Use, function, is_kernels};
use crate::header::Header;
use crate::record::{Kind, Record};
use crate::symbols::Symbols;

/// A filter held against a trace.
#[derive(Debug)]
pub struct Check<'a> {
    spec: &'a FilterSpec,
    header: &'a Header,
    symbols: Option<&'a Symbols>,
    denied: BTreeMap<(u32, Kind), Use>,
}

/// An access that a filter denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The MSR.
    pub index: u32,
    /// The kind of access.
    pub kind: Kind,
    /// How often and from where.
    pub used: Use,
}

impl<'a> Check<'a> {
    /// Begins to hold `spec` against the trace with this header.
    pub fn new(spec: &'a FilterSpec, header: &'a Header, symbols: Option<&'a Symbols>) -> Self {
        Self {
            spec,
            header,
            symbols,
            denied: BTreeMap::new(),
        }
    }

    /// Looks at a record. What a device answers and what faulted before is not the filter's.
    pub fn look(&mut self, record: &Record) {
        if record.fault
            || !is_kernels(record, self.header.answerer(record))
            || self.spec.verdict(record.index, record.kind.access()) == Verdict::Allow
        {
            return;
        }
        let used = self.denied.entry((record.index, record.kind)).or_default();
        used.count += 1;
        if let Some(rip) = record.rip {
            *used.callers.entry(function(self.symbols, rip)).or_default() += 1;
        }
    }

    /// What would have been denied, by MSR.
    pub fn denied(self) -> Vec<Denied> {
        self.denied
            .into_iter()
            .map(|((index, kind), used)| Denied { index, kind, used })
            .collect()
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = names::name(self.index).unwrap_or("-");
        write!(
            f,
            "{:#010x} {name:<28} {:<5} {:>8}",
            self.index, self.kind, self.used.count
        )?;
        for (caller, count) in &self.used.callers {
            write!(f, "  {caller} ({count})")?;
        }
        Ok(())
    }
}
