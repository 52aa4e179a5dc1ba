//! A trace as Perfetto's own format, a `.pftrace` that ui.perfetto.dev opens.
//!
//! Each vCPU is a track, and each access an instant on it, named after the MSR, with value, fields, caller and answerer as
//! arguments. Values that people follow over time (energy, temperature, frequency) are counters too, a track for each vCPU and register.
//! Names and callers are interned: written once, then a number.
//!
//! The messages are those fields of Perfetto's published schema (protos/perfetto/trace/perfetto_trace.proto) that this needs;
//! prost encodes them.

use std::collections::HashMap;
use std::io::{self, Write};

use msr_filter::{fields, names};
use prost::Message;

use crate::header::Header;
use crate::record::{Kind, Record};
use crate::symbols::Symbols;

/// Registers whose values are counters, with the field to show and its unit.
const COUNTERS: [(u32, &str, &str); 9] = [
    (0x198, "ratio", "x"),
    (0x19c, "below-target", "C"),
    (0x1b1, "below-target", "C"),
    (0x611, "energy", "units"),
    (0x619, "energy", "units"),
    (0x639, "energy", "units"),
    (0x641, "energy", "units"),
    (0xc001_029a, "energy", "units"),
    (0xc001_029b, "energy", "units"),
];

const SEQUENCE: u32 = 1;
const CLEARED: u32 = 1;
const NEEDS_STATE: u32 = 2;
const INSTANT: i32 = 3;
const COUNTER: i32 = 4;
const PROCESS: u64 = 1;
const MARKS: u64 = 2;
/// vCPU tracks and counter tracks have numbers from here on.
const VCPU: u64 = 0x1_0000;
const COUNTER_TRACK: u64 = 0x1000_0000;

/// Writes a trace's records as they come.
#[derive(Debug)]
pub struct Perfetto<'a, W> {
    out: W,
    header: &'a Header,
    events: HashMap<(Kind, u32), u64>,
    callers: HashMap<u64, u64>,
    answerers: HashMap<String, u64>,
    arguments: HashMap<&'static str, u64>,
    counters: HashMap<(u16, u32), u64>,
    strings: u64,
    /// Whether there is a track of marks.
    marked: bool,
}

impl<'a, W: Write> Perfetto<'a, W> {
    /// Begins the file.
    ///
    /// # Errors
    ///
    /// Those of `out`, here as below.
    pub fn new(out: W, header: &'a Header) -> io::Result<Self> {
        let mut perfetto = Self {
            out,
            header,
            events: HashMap::new(),
            callers: HashMap::new(),
            answerers: HashMap::new(),
            arguments: HashMap::new(),
            counters: HashMap::new(),
            strings: 0,
            marked: false,
        };
        let process = TrackDescriptor {
            uuid: Some(PROCESS),
            process: Some(ProcessDescriptor {
                pid: Some(1),
                process_name: Some("MSR accesses".to_owned()),
            }),
            ..TrackDescriptor::default()
        };
        perfetto.packet(Packet {
            sequence_flags: Some(CLEARED),
            first_packet_on_sequence: Some(true),
            track_descriptor: Some(process),
            ..Packet::default()
        })?;
        Ok(perfetto)
    }

    /// Adds a record.
    pub fn record(&mut self, record: &Record, symbols: Option<&Symbols>) -> io::Result<()> {
        let mut interned = InternedData::default();
        let track = self.vcpu(record.vcpu)?;
        let name = self.event(record, &mut interned);
        let shown = record.kind == Kind::Write || !record.fault;
        let mut arguments = Vec::new();
        if shown {
            let mut argument = self.argument("value", &mut interned);
            argument.pointer_value = Some(record.value);
            arguments.push(argument);
            if let Some(decoded) = fields::decode(record.index, record.value) {
                let mut argument = self.argument("fields", &mut interned);
                argument.string_value = Some(decoded.to_string());
                arguments.push(argument);
            }
        }
        if record.fault {
            let mut argument = self.argument("fault", &mut interned);
            argument.bool_value = Some(true);
            arguments.push(argument);
        }
        if record.injected {
            let mut argument = self.argument("injected", &mut interned);
            argument.bool_value = Some(true);
            arguments.push(argument);
        }
        if let Some(rip) = record.rip {
            let iid = self.caller(rip, symbols, &mut interned);
            let mut argument = self.argument("caller", &mut interned);
            argument.string_value_iid = Some(iid);
            arguments.push(argument);
        }
        let iid = self.answerer(record, &mut interned);
        let mut argument = self.argument("answered by", &mut interned);
        argument.string_value_iid = Some(iid);
        arguments.push(argument);
        let some = interned != InternedData::default();
        self.packet(Packet {
            timestamp: Some(record.time),
            sequence_flags: Some(NEEDS_STATE),
            interned_data: some.then_some(interned),
            track_event: Some(TrackEvent {
                kind: Some(INSTANT),
                track_uuid: Some(track),
                name_iid: Some(name),
                categories: vec!["msr".to_owned()],
                debug_annotations: arguments,
                ..TrackEvent::default()
            }),
            ..Packet::default()
        })?;
        if shown { self.counter(record) } else { Ok(()) }
    }

    /// Adds what was done to the VM from outside, as an instant of a track of its own.
    pub fn mark(&mut self, time: u64, text: &str) -> io::Result<()> {
        if !std::mem::replace(&mut self.marked, true) {
            self.descriptor(TrackDescriptor {
                uuid: Some(MARKS),
                parent_uuid: Some(PROCESS),
                name: Some("from outside".to_owned()),
                ..TrackDescriptor::default()
            })?;
        }
        self.packet(Packet {
            timestamp: Some(time),
            track_event: Some(TrackEvent {
                kind: Some(INSTANT),
                track_uuid: Some(MARKS),
                name: Some(text.to_owned()),
                categories: vec!["scenario".to_owned()],
                ..TrackEvent::default()
            }),
            ..Packet::default()
        })
    }

    /// Ends the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn vcpu(&mut self, vcpu: u16) -> io::Result<u64> {
        let track = VCPU + u64::from(vcpu);
        // Index u32::MAX is no counter's.
        if self.counters.insert((vcpu, u32::MAX), track).is_none() {
            let descriptor = TrackDescriptor {
                uuid: Some(track),
                parent_uuid: Some(PROCESS),
                thread: Some(ThreadDescriptor {
                    pid: Some(1),
                    tid: Some(i64::from(vcpu) + 2),
                    thread_name: Some(format!("vCPU {vcpu}")),
                }),
                ..TrackDescriptor::default()
            };
            self.descriptor(descriptor)?;
        }
        Ok(track)
    }

    fn counter(&mut self, record: &Record) -> io::Result<()> {
        let Some((_, field, unit)) = COUNTERS.iter().find(|(index, _, _)| *index == record.index)
        else {
            return Ok(());
        };
        let value = fields::decode(record.index, record.value).and_then(|d| d.field(field));
        let Some(value) = value else {
            return Ok(());
        };
        let next = COUNTER_TRACK + self.counters.len() as u64;
        let key = (record.vcpu, record.index);
        let track = match self.counters.get(&key) {
            Some(track) => *track,
            None => {
                self.counters.insert(key, next);
                let name = names::name(record.index).unwrap_or("MSR");
                self.descriptor(TrackDescriptor {
                    uuid: Some(next),
                    parent_uuid: Some(PROCESS),
                    name: Some(format!("{name} {field}, vCPU {}", record.vcpu)),
                    counter: Some(CounterDescriptor {
                        unit_name: Some((*unit).to_owned()),
                    }),
                    ..TrackDescriptor::default()
                })?;
                next
            }
        };
        self.packet(Packet {
            timestamp: Some(record.time),
            track_event: Some(TrackEvent {
                kind: Some(COUNTER),
                track_uuid: Some(track),
                // Fields of counters have 32 bits at most.
                counter_value: Some(value as i64),
                ..TrackEvent::default()
            }),
            ..Packet::default()
        })
    }

    fn event(&mut self, record: &Record, interned: &mut InternedData) -> u64 {
        let next = self.events.len() as u64 + 1;
        *self
            .events
            .entry((record.kind, record.index))
            .or_insert_with(|| {
                let kind = if record.kind == Kind::Write {
                    "WRMSR"
                } else {
                    "RDMSR"
                };
                let name = match names::name(record.index) {
                    Some(name) => format!("{kind} {name}"),
                    None => format!("{kind} {:#x}", record.index),
                };
                interned.event_names.push(Name {
                    iid: Some(next),
                    name: Some(name),
                });
                next
            })
    }

    fn argument(&mut self, name: &'static str, interned: &mut InternedData) -> DebugAnnotation {
        let next = self.arguments.len() as u64 + 1;
        let iid = *self.arguments.entry(name).or_insert_with(|| {
            let name = Some(name.to_owned());
            interned.debug_annotation_names.push(Name {
                iid: Some(next),
                name,
            });
            next
        });
        DebugAnnotation {
            name_iid: Some(iid),
            ..DebugAnnotation::default()
        }
    }

    fn caller(&mut self, rip: u64, symbols: Option<&Symbols>, interned: &mut InternedData) -> u64 {
        if let Some(iid) = self.callers.get(&rip) {
            return *iid;
        }
        let iid = self.string(crate::caller(symbols, rip), interned);
        self.callers.insert(rip, iid);
        iid
    }

    fn answerer(&mut self, record: &Record, interned: &mut InternedData) -> u64 {
        let name = self.header.answerer(record);
        if let Some(iid) = self.answerers.get(name) {
            return *iid;
        }
        let name = name.to_owned();
        let iid = self.string(name.clone(), interned);
        self.answerers.insert(name, iid);
        iid
    }

    fn string(&mut self, text: String, interned: &mut InternedData) -> u64 {
        self.strings += 1;
        interned
            .debug_annotation_string_values
            .push(InternedString {
                iid: Some(self.strings),
                text: Some(text.into_bytes()),
            });
        self.strings
    }

    fn descriptor(&mut self, descriptor: TrackDescriptor) -> io::Result<()> {
        self.packet(Packet {
            track_descriptor: Some(descriptor),
            ..Packet::default()
        })
    }

    /// A file is one `Trace` message, which is its packets one after the other.
    fn packet(&mut self, mut packet: Packet) -> io::Result<()> {
        packet.trusted_packet_sequence_id = Some(SEQUENCE);
        let trace = Trace {
            packet: vec![packet],
        };
        self.out.write_all(&trace.encode_to_vec())
    }
}

#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

/// `TracePacket`.
#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    trusted_packet_sequence_id: Option<u32>,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "12")]
    interned_data: Option<InternedData>,
    #[prost(uint32, optional, tag = "13")]
    sequence_flags: Option<u32>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
    #[prost(bool, optional, tag = "87")]
    first_packet_on_sequence: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(message, optional, tag = "3")]
    process: Option<ProcessDescriptor>,
    #[prost(message, optional, tag = "4")]
    thread: Option<ThreadDescriptor>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct ProcessDescriptor {
    #[prost(int32, optional, tag = "1")]
    pid: Option<i32>,
    #[prost(string, optional, tag = "6")]
    process_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ThreadDescriptor {
    #[prost(int32, optional, tag = "1")]
    pid: Option<i32>,
    #[prost(int64, optional, tag = "2")]
    tid: Option<i64>,
    #[prost(string, optional, tag = "5")]
    thread_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {
    #[prost(string, optional, tag = "6")]
    unit_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<DebugAnnotation>,
    /// `type`.
    #[prost(int32, optional, tag = "9")]
    kind: Option<i32>,
    #[prost(uint64, optional, tag = "10")]
    name_iid: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    track_uuid: Option<u64>,
    #[prost(string, repeated, tag = "22")]
    categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct DebugAnnotation {
    #[prost(uint64, optional, tag = "1")]
    name_iid: Option<u64>,
    #[prost(bool, optional, tag = "2")]
    bool_value: Option<bool>,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
    #[prost(uint64, optional, tag = "7")]
    pointer_value: Option<u64>,
    #[prost(uint64, optional, tag = "17")]
    string_value_iid: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct InternedData {
    #[prost(message, repeated, tag = "2")]
    event_names: Vec<Name>,
    #[prost(message, repeated, tag = "3")]
    debug_annotation_names: Vec<Name>,
    #[prost(message, repeated, tag = "29")]
    debug_annotation_string_values: Vec<InternedString>,
}

/// `EventName` and `DebugAnnotationName`.
#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(uint64, optional, tag = "1")]
    iid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct InternedString {
    #[prost(uint64, optional, tag = "1")]
    iid: Option<u64>,
    /// `str`.
    #[prost(bytes = "vec", optional, tag = "2")]
    text: Option<Vec<u8>>,
}
