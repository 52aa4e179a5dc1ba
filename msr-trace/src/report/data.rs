//! What the page shows, as JSON.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek};

use msr_filter::{fields, names};
use serde::Serialize;

use crate::error::ReadError;
use crate::read::{Ending, Trace};
use crate::record::{Kind, Record};
use crate::symbols::Symbols;
use crate::totals::Totals;

/// Into how many parts the time is cut.
pub const BINS: usize = 240;
/// How many values of one sensor are kept.
pub const POINTS: usize = 2000;
/// How many MSRs the heat map has, and how many callers and faults the tables.
const ROWS: usize = 40;

/// Registers whose values are worth a plot, with the field.
const SENSORS: [(u32, &str, &str); 9] = [
    (0x198, "ratio", "ratio"),
    (0x19c, "below-target", "°C below target"),
    (0x1b1, "below-target", "°C below target"),
    (0x611, "energy", "energy units"),
    (0x619, "energy", "energy units"),
    (0x639, "energy", "energy units"),
    (0x641, "energy", "energy units"),
    (0xc001_029a, "energy", "energy units"),
    (0xc001_029b, "energy", "energy units"),
];

/// Classes of MSRs, by what they are for.
const CLASSES: [(&str, &[(u32, u32)]); 9] = [
    (
        "time",
        &[
            (0x10, 0x10),
            (0x3b, 0x3b),
            (0x6e0, 0x6e0),
            (0xe7, 0xe8),
            (0xc000_00e7, 0xc000_00e9),
        ],
    ),
    ("APIC", &[(0x1b, 0x1b), (0x800, 0x8ff)]),
    (
        "memory types",
        &[(0xfe, 0xfe), (0x200, 0x2ff), (0xc001_0016, 0xc001_001d)],
    ),
    (
        "machine check",
        &[
            (0x179, 0x17b),
            (0x280, 0x29f),
            (0x400, 0x47f),
            (0xc000_2000, 0xc000_2fff),
        ],
    ),
    (
        "system calls and segments",
        &[
            (0x174, 0x176),
            (0xc000_0080, 0xc000_0084),
            (0xc000_0100, 0xc000_0103),
        ],
    ),
    (
        "performance counters",
        &[
            (0xc1, 0xc8),
            (0x186, 0x18d),
            (0x309, 0x30c),
            (0x345, 0x345),
            (0x38d, 0x390),
            (0xc001_0000, 0xc001_0007),
            (0xc001_0200, 0xc001_020b),
        ],
    ),
    (
        "power and temperature",
        &[
            (0xce, 0xce),
            (0xe2, 0xe2),
            (0x198, 0x1b2),
            (0x3f8, 0x3fe),
            (0x600, 0x650),
            (0x770, 0x777),
            (0xc001_0061, 0xc001_0073),
            (0xc001_0299, 0xc001_02b3),
        ],
    ),
    (
        "mitigations and features",
        &[
            (0x3a, 0x3a),
            (0x48, 0x49),
            (0xcf, 0xcf),
            (0x10a, 0x10b),
            (0x122, 0x123),
            (0xc001_0015, 0xc001_0015),
            (0xc001_011f, 0xc001_011f),
            (0xc001_1000, 0xc001_1fff),
        ],
    ),
    (
        "KVM and Hyper-V",
        &[
            (0x11, 0x12),
            (0x4000_0000, 0x4000_01ff),
            (0x4b56_4d00, 0x4b56_4dff),
        ],
    ),
];

#[derive(Debug, Serialize)]
pub(super) struct Data {
    program: String,
    host: String,
    kernel: String,
    ending: &'static str,
    lost: u64,
    records: u64,
    faults: u64,
    vcpus: u32,
    /// In nanoseconds.
    span: u64,
    bin: u64,
    timeline: Vec<Class>,
    heat: Vec<Heat>,
    msrs: Vec<Msr>,
    callers: Vec<Caller>,
    faulted: Vec<Msr>,
    answerers: Vec<(String, u64)>,
    sensors: Vec<Sensor>,
    profile: Option<String>,
}

#[derive(Debug, Serialize)]
struct Class {
    name: &'static str,
    counts: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Heat {
    index: u32,
    name: String,
    counts: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Msr {
    index: u32,
    name: Option<&'static str>,
    reads: u64,
    writes: u64,
    faults: u64,
    peak: u64,
}

#[derive(Debug, Serialize)]
struct Caller {
    name: String,
    reads: u64,
    writes: u64,
    faults: u64,
}

#[derive(Debug, Serialize)]
struct Sensor {
    title: String,
    unit: &'static str,
    /// Seconds and values.
    points: Vec<(f64, u64)>,
}

fn class(index: u32) -> usize {
    let of = |ranges: &[(u32, u32)]| {
        ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&index))
    };
    CLASSES
        .iter()
        .position(|(_, ranges)| of(ranges))
        .unwrap_or(CLASSES.len())
}

fn name(index: u32) -> String {
    names::name(index).map_or_else(|| format!("{index:#x}"), str::to_owned)
}

/// Reads the trace twice: first for its end, then for everything.
pub(super) fn collect<R: Read + Seek>(
    trace: &mut Trace<R>,
    symbols: Option<&Symbols>,
    profile: Option<&str>,
) -> Result<Data, ReadError> {
    let header = trace.header().clone();
    let mut totals = Totals::default();
    let mut span = 1;
    let mut faults = 0;
    let mut answerers: BTreeMap<String, u64> = BTreeMap::new();
    for record in trace.records() {
        let record = record?;
        totals.add(&record);
        span = span.max(record.time.saturating_sub(header.start) + 1);
        faults += u64::from(record.fault);
        let by = header.answerer(&record);
        match answerers.get_mut(by) {
            Some(count) => *count += 1,
            None => drop(answerers.insert(by.to_owned(), 1)),
        }
    }
    let by_msr = totals.by_msr();
    let mut msrs: Vec<Msr> = by_msr
        .iter()
        .map(|(index, count)| Msr {
            index: *index,
            name: names::name(*index),
            reads: count.reads,
            writes: count.writes,
            faults: count.faults,
            peak: count.peak,
        })
        .collect();
    msrs.sort_by_key(|msr| (std::cmp::Reverse(msr.reads + msr.writes), msr.index));

    let bin = span.div_ceil(BINS as u64);
    let mut timeline: Vec<Class> = CLASSES
        .iter()
        .map(|(name, _)| *name)
        .chain(["others"])
        .map(|name| Class {
            name,
            counts: vec![0; BINS],
        })
        .collect();
    let rows: HashMap<u32, usize> = msrs
        .iter()
        .take(ROWS)
        .map(|msr| msr.index)
        .zip(0..)
        .collect();
    let mut heat: Vec<Heat> = msrs
        .iter()
        .take(ROWS)
        .map(|msr| Heat {
            index: msr.index,
            name: name(msr.index),
            counts: vec![0; BINS],
        })
        .collect();
    let mut sensors: BTreeMap<(u32, u16), Sensor> = BTreeMap::new();
    let mut seen: HashMap<(u32, u16), u64> = HashMap::new();
    for record in trace.records() {
        let record = record?;
        let time = record.time.saturating_sub(header.start);
        let at = ((time / bin) as usize).min(BINS - 1);
        timeline[class(record.index)].counts[at] += 1;
        if let Some(row) = rows.get(&record.index) {
            heat[*row].counts[at] += 1;
        }
        sense(&record, time, &by_msr, &mut sensors, &mut seen);
    }
    timeline.retain(|class| class.counts.iter().any(|count| *count > 0));

    let callers = totals.by_caller(|rip| {
        let function = symbols.and_then(|symbols| symbols.function_name(rip));
        function.map_or_else(|| crate::caller(symbols, rip), str::to_owned)
    });
    let mut callers: Vec<Caller> = callers
        .into_iter()
        .map(|(name, count)| Caller {
            name,
            reads: count.reads,
            writes: count.writes,
            faults: count.faults,
        })
        .collect();
    callers.sort_by(|a, b| {
        (b.reads + b.writes)
            .cmp(&(a.reads + a.writes))
            .then(a.name.cmp(&b.name))
    });
    callers.truncate(ROWS);
    let faulted = msrs
        .iter()
        .filter(|msr| msr.faults > 0)
        .map(|msr| Msr { ..*msr })
        .collect();
    Ok(Data {
        program: header.program.clone(),
        host: format!("{}, Linux {}", header.host.cpu, header.host.release),
        kernel: header.kernel.path.clone(),
        ending: match trace.ending() {
            Ending::Whole => "whole",
            Ending::Unfinished => "not ended in order",
            Ending::Broken(_) => "cut off",
        },
        lost: trace.total_lost(),
        records: trace.len(),
        faults,
        vcpus: header.vcpus,
        span,
        bin,
        timeline,
        heat,
        msrs,
        callers,
        faulted,
        answerers: answerers.into_iter().collect(),
        sensors: sensors.into_values().collect(),
        profile: profile.map(str::to_owned),
    })
}

/// Keeps a sensor's value, or every so many of a register that is read often.
fn sense(
    record: &Record,
    time: u64,
    by_msr: &BTreeMap<u32, crate::Count>,
    sensors: &mut BTreeMap<(u32, u16), Sensor>,
    seen: &mut HashMap<(u32, u16), u64>,
) {
    let Some((_, field, unit)) = SENSORS.iter().find(|(index, _, _)| *index == record.index) else {
        return;
    };
    let value = fields::decode(record.index, record.value).and_then(|decoded| decoded.field(field));
    let (Some(value), Kind::Read, false) = (value, record.kind, record.fault) else {
        return;
    };
    let key = (record.index, record.vcpu);
    let number = seen.entry(key).or_default();
    let every = by_msr
        .get(&record.index)
        .map_or(1, |count| count.total().div_ceil(POINTS as u64).max(1));
    if number.is_multiple_of(every) {
        let sensor = sensors.entry(key).or_insert_with(|| Sensor {
            title: format!("{}, vCPU {}", name(record.index), record.vcpu),
            unit,
            points: Vec::new(),
        });
        sensor.points.push((time as f64 / 1e9, value));
    }
    *number += 1;
}
