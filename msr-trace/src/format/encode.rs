//! Records in a block's payload: each names a *site*, which is everything about an access but its time and value.
//!
//! A guest reads few MSRs from few places, so a site is written out once a block. A record is then the site's number, the time
//! since the record before, and the value as it differs from the last one at that site: some eight bytes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::varint;
use crate::record::{Answerer, Kind, Reason, Record, Source};

/// Everything about an access but its time and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Site {
    index: u32,
    rip: Option<u64>,
    tag: u8,
}

// The tag: bit 0 write, bit 1 fault, bit 2 RIP known, bits 3 and 4 the answerer, bits 5 and 6 the reason, bit 7 injected.
const WRITE: u8 = 1 << 0;
const FAULT: u8 = 1 << 1;
const RIP: u8 = 1 << 2;
const INJECTED: u8 = 1 << 7;

fn tag(record: &Record) -> u8 {
    let (answerer, reason) = match record.answerer {
        Answerer::Kernel => (0, 0),
        Answerer::Device(reason) => (1, reason as u8),
        Answerer::Fallback(reason) => (2, reason as u8),
    };
    let mut tag = answerer << 3 | reason << 5;
    if record.kind == Kind::Write {
        tag |= WRITE;
    }
    if record.fault {
        tag |= FAULT;
    }
    if record.rip.is_some() {
        tag |= RIP;
    }
    if record.injected {
        tag |= INJECTED;
    }
    tag
}

fn answerer(tag: u8) -> Option<Answerer> {
    let reason = match tag >> 5 & 3 {
        0 => Reason::Filter,
        1 => Reason::Unknown,
        2 => Reason::Invalid,
        _ => return None,
    };
    match tag >> 3 & 3 {
        // KVM has no faults injected, and no reason.
        0 if tag >> 5 == 0 => Some(Answerer::Kernel),
        1 => Some(Answerer::Device(reason)),
        2 => Some(Answerer::Fallback(reason)),
        _ => None,
    }
}

/// Collects the records of one stream for a block.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    pub(crate) payload: Vec<u8>,
    pub(crate) count: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    // The guest chooses the keys: foldhash is quick and has a seed of its own in each process.
    sites: HashMap<Site, (u32, u64), RandomState>,
}

/// The most bytes that a record takes: number, tag, index, RIP, time and value.
const LONGEST: usize = 5 + 1 + 5 + 8 + 10 + 10;

impl Encoder {
    /// Adds a record. Time does not run backwards in a stream; where a clock says so, it stands still.
    pub(crate) fn push(&mut self, record: &Record) {
        let time = record.time.max(self.last);
        if self.count == 0 {
            self.first = time;
            self.last = time;
        }
        let site = Site {
            index: record.index,
            rip: record.rip,
            tag: tag(record),
        };
        let next = self.sites.len() as u32;
        let (number, value) = self.sites.entry(site).or_insert((next, 0));
        // In one piece: the vector then looks once whether it has room.
        let mut bytes = [0; LONGEST];
        let mut at = varint::put(&mut bytes, 0, u64::from(*number));
        if *number == next {
            bytes[at] = site.tag;
            at = varint::put(&mut bytes, at + 1, u64::from(site.index));
            if let Some(rip) = site.rip {
                bytes[at..at + 8].copy_from_slice(&rip.to_le_bytes());
                at += 8;
            }
        }
        at = varint::put(&mut bytes, at, time - self.last);
        at = varint::put(&mut bytes, at, record.value ^ *value);
        self.payload.extend_from_slice(&bytes[..at]);
        *value = record.value;
        self.last = time;
        self.count += 1;
    }

    /// Makes room for the next block. Time goes on from where it was.
    pub(crate) fn clear(&mut self) {
        self.payload.clear();
        self.sites.clear();
        self.count = 0;
    }
}

/// Takes the records out of a payload, one by one.
#[derive(Debug)]
pub(crate) struct Decoder {
    payload: Vec<u8>,
    at: usize,
    left: u32,
    vcpu: u16,
    source: Source,
    state: State,
}

/// What a record is told in terms of.
#[derive(Debug)]
struct State {
    time: u64,
    sites: Vec<(Site, u64)>,
}

/// A payload is not what an encoder makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Decoder {
    pub(crate) fn new(payload: Vec<u8>, count: u32, first: u64, vcpu: u16, source: Source) -> Self {
        Self {
            payload,
            at: 0,
            left: count,
            vcpu,
            source,
            state: State {
                time: first,
                sites: Vec::new(),
            },
        }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Record>, Malformed> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = &self.payload[self.at..];
        let (site, value) = self.state.next(&mut bytes).ok_or(Malformed)?;
        self.at = self.payload.len() - bytes.len();
        let answerer = answerer(site.tag).filter(|answerer| answerer.source() == self.source);
        Ok(Some(Record {
            time: self.state.time,
            vcpu: self.vcpu,
            index: site.index,
            kind: if site.tag & WRITE == 0 {
                Kind::Read
            } else {
                Kind::Write
            },
            value,
            rip: site.rip,
            fault: site.tag & FAULT != 0,
            injected: site.tag & INJECTED != 0,
            answerer: answerer.ok_or(Malformed)?,
        }))
    }
}

impl State {
    /// The next record's site and value. A payload is at most 128 KiB, which bounds the sites that it can name.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<(Site, u64)> {
        let number = usize::try_from(varint::take(bytes)?).ok()?;
        if number == self.sites.len() {
            let (&tag, rest) = bytes.split_first()?;
            *bytes = rest;
            let index = u32::try_from(varint::take(bytes)?).ok()?;
            let rip = if tag & RIP == 0 {
                None
            } else {
                let (rip, rest) = bytes.split_first_chunk::<8>()?;
                *bytes = rest;
                Some(u64::from_le_bytes(*rip))
            };
            self.sites.push((Site { index, rip, tag }, 0));
        }
        let (site, value) = self.sites.get_mut(number)?;
        self.time = self.time.checked_add(varint::take(bytes)?)?;
        *value ^= varint::take(bytes)?;
        Some((*site, *value))
    }
}
