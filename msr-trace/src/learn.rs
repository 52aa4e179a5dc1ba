//! From what guests did to the filter that lets them do it, and nothing else.
//!
//! A learnt profile denies by default and allows what KVM answered without a fault, reads and writes apart. What a device answered
//! is not in it: devices' claims are denied in the kernel in any case. MSRs that a recording could not see
//! (KVM lets the guest use them without an exit) are allowed and marked, because a deny-by-default filter would take
//! them away.

mod check;
mod profile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use msr_filter::MsrRange;

pub use check::{Check, Denied};
pub use profile::{Conflict, Profile};

use crate::error::ReadError;
use crate::header::OBSERVER;
use crate::read::Trace;
use crate::record::{Answerer, Kind, Record};
use crate::symbols::{Place, Symbols};

/// Why nothing can be learnt from a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// Records are missing from it.
    #[error(
        "{lost} records were lost, so that what the guest used may be missing; --with-losses learns from it all the same"
    )]
    Losses {
        /// How many.
        lost: u64,
    },
    /// It does not hold what KVM answers itself.
    #[error(
        "does not hold what KVM answers itself, and a profile from it would deny all of that; record with --observe or --trace-kernel"
    )]
    KernelNotSeen,
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What was seen of one kind of access to one MSR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// How often KVM answered it with a value.
    pub count: u64,
    /// From which functions, with how often from each.
    pub callers: BTreeMap<String, u64>,
}

/// What guests were seen to use.
#[derive(Clone, Debug, Default)]
pub struct Lesson {
    used: BTreeMap<(u32, Kind), Use>,
    not_seen: BTreeMap<(u32, u32), (MsrRange, String)>,
    traces: usize,
}

impl Lesson {
    /// Learns from a trace, with the names of the guest's functions. Call it once for each run.
    ///
    /// # Errors
    ///
    /// [`LearnError`]; with `with_losses` a trace with losses is taken too.
    pub fn learn<R: Read + Seek>(
        &mut self,
        trace: &mut Trace<R>,
        symbols: Option<&Symbols>,
        with_losses: bool,
    ) -> Result<(), LearnError> {
        let lost = trace.total_lost();
        if lost > 0 && !with_losses {
            return Err(LearnError::Losses { lost });
        }
        let header = trace.header().clone();
        if header.not_seen.iter().any(|line| line.msrs.is_none()) {
            return Err(LearnError::KernelNotSeen);
        }
        for line in &header.not_seen {
            if let Some(msrs) = line.msrs {
                self.not_seen
                    .insert((msrs.first(), msrs.last()), (msrs, line.why.clone()));
            }
        }
        for record in trace.records() {
            let record = record?;
            if is_kernels(&record, header.answerer(&record)) && !record.fault {
                let entry = self.used.entry((record.index, record.kind)).or_default();
                entry.count += 1;
                if let Some(rip) = record.rip {
                    *entry.callers.entry(function(symbols, rip)).or_default() += 1;
                }
            }
        }
        self.traces += 1;
        Ok(())
    }

    /// What was used, by MSR and kind.
    pub fn used(&self) -> &BTreeMap<(u32, Kind), Use> {
        &self.used
    }

    /// The MSRs that no run could see, with the reason.
    pub fn not_seen(&self) -> impl Iterator<Item = (MsrRange, &str)> {
        self.not_seen
            .values()
            .map(|(msrs, why)| (*msrs, why.as_str()))
    }
}

/// Whether KVM answered, itself or through the device that stands in for it.
fn is_kernels(record: &Record, answerer: &str) -> bool {
    record.answerer == Answerer::Kernel || answerer.starts_with(OBSERVER)
}

/// The function of an address, without the distance: one line of a profile for each.
fn function(symbols: Option<&Symbols>, rip: u64) -> String {
    match symbols.map(|symbols| symbols.place(rip)) {
        Some(Place::Function { name, .. }) => name.to_owned(),
        Some(Place::Module(_)) => "a module".to_owned(),
        Some(Place::User(_)) => "userspace".to_owned(),
        _ => format!("{rip:#x}"),
    }
}
