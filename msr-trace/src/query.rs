//! Which records are asked for.

use std::collections::HashMap;

use msr_filter::MsrRange;

use crate::header::Header;
use crate::record::{Answerer, Kind, Record};

/// Who answered, in words of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswererClass {
    /// KVM.
    Kernel,
    /// Nobody: the fallback.
    Unclaimed,
    /// Any device.
    AnyDevice,
    /// The device of this name.
    Device(String),
}

impl std::str::FromStr for AnswererClass {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "kernel" => Self::Kernel,
            "unclaimed" => Self::Unclaimed,
            "device" => Self::AnyDevice,
            name => Self::Device(name.to_owned()),
        })
    }
}

/// Predicates that a record must satisfy, all of them. An empty list asks for nothing in particular.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Of these MSRs.
    pub msrs: Vec<MsrRange>,
    /// Of these vCPUs.
    pub vcpus: Vec<u16>,
    /// Reads or writes.
    pub kind: Option<Kind>,
    /// Those that faulted, or those that did not.
    pub faulted: Option<bool>,
    /// Answered by one of these.
    pub answerers: Vec<AnswererClass>,
    /// From a function of one of these names.
    pub functions: Vec<String>,
    /// Not before this time, in nanoseconds since the start.
    pub from: Option<u64>,
    /// Not after this time, in nanoseconds since the start.
    pub to: Option<u64>,
    /// Only where the value differs from the last one of the same vCPU, MSR and kind.
    pub only_changes: bool,
}

/// A query under way; it remembers the last values for [`Query::only_changes`].
#[derive(Debug)]
pub struct Selection<'a> {
    query: &'a Query,
    header: &'a Header,
    last: HashMap<(u16, u32, Kind), (u64, bool)>,
}

impl Query {
    /// Begins to select records of the trace with this header.
    pub fn select<'a>(&'a self, header: &'a Header) -> Selection<'a> {
        Selection {
            query: self,
            header,
            last: HashMap::new(),
        }
    }
}

impl Selection<'_> {
    /// Whether the record is asked for. `function` names the function of an address.
    pub fn takes<'n>(
        &mut self,
        record: &Record,
        function: impl FnOnce(u64) -> Option<&'n str>,
    ) -> bool {
        let query = self.query;
        let time = record.time.saturating_sub(self.header.start);
        let by = |class: &AnswererClass| match class {
            AnswererClass::Kernel => record.answerer == Answerer::Kernel,
            AnswererClass::Unclaimed => matches!(record.answerer, Answerer::Fallback(_)),
            AnswererClass::AnyDevice => matches!(record.answerer, Answerer::Device(_)),
            AnswererClass::Device(name) => {
                matches!(record.answerer, Answerer::Device(_))
                    && self.header.answerer(record) == name
            }
        };
        let plain = (query.msrs.is_empty()
            || query.msrs.iter().any(|msrs| msrs.contains(record.index)))
            && (query.vcpus.is_empty() || query.vcpus.contains(&record.vcpu))
            && query.kind.is_none_or(|kind| kind == record.kind)
            && query.faulted.is_none_or(|faulted| faulted == record.fault)
            && query.from.is_none_or(|from| time >= from)
            && query.to.is_none_or(|to| time <= to)
            && (query.answerers.is_empty() || query.answerers.iter().any(by));
        if !plain {
            return false;
        }
        if !query.functions.is_empty() {
            let name = record.rip.and_then(function);
            if !name.is_some_and(|name| query.functions.iter().any(|wanted| wanted == name)) {
                return false;
            }
        }
        if query.only_changes {
            let key = (record.vcpu, record.index, record.kind);
            let now = (record.value, record.fault);
            return self.last.insert(key, now) != Some(now);
        }
        true
    }
}
