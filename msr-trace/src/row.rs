//! A record as people and other programs read it: with names.

use std::collections::HashMap;
use std::fmt;

use foldhash::fast::RandomState;
use msr_filter::fields::{self, Decoded, Layout};
use msr_filter::names;
use serde::Serialize;

use crate::header::Header;
use crate::record::{Kind, Reason, Record};
use crate::symbols::{Place, Symbols};

/// A record, with the names of what it is about; a [`RowMaker`] makes it. As JSON it is one line of `msr-vmm trace show --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row<'a> {
    /// Nanoseconds since the start of the recording.
    pub time_ns: u64,
    /// The vCPU.
    pub vcpu: u16,
    /// Read or write.
    pub kind: Kind,
    /// The MSR's index.
    pub msr: u32,
    /// Its name.
    pub name: Option<&'static str>,
    /// The value, in hexadecimal: not every JSON reader has 64 bits. `None` for a read that faulted.
    #[serde(serialize_with = "hex")]
    pub value: Option<u64>,
    /// The value's fields.
    #[serde(serialize_with = "shown")]
    pub fields: Option<Decoded>,
    /// The address of the instruction.
    #[serde(serialize_with = "hex")]
    pub rip: Option<u64>,
    /// The function that it is in, with the distance from its start, or what else is known of the address.
    pub caller: Option<&'a str>,
    /// Why the access left the kernel.
    pub reason: Option<Reason>,
    /// Whether the guest got #GP.
    pub fault: bool,
    /// Whether the access went wrong on purpose.
    pub injected: bool,
    /// Who answered: a device's name, `kernel` or `unclaimed`.
    pub answerer: &'a str,
    /// The rule that decided who is asked.
    pub rule: &'a str,
}

fn shown<S: serde::Serializer>(fields: &Option<Decoded>, to: S) -> Result<S::Ok, S::Error> {
    match fields {
        Some(fields) => to.collect_str(fields),
        None => to.serialize_none(),
    }
}

fn hex<S: serde::Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => {
            let mut digits = [0; 18];
            to.serialize_str(hexadecimal(*value, &mut digits))
        }
        None => to.serialize_none(),
    }
}

/// `value` as `{:#x}` has it, without the formatting machinery: a trace has millions.
fn hexadecimal(mut value: u64, digits: &mut [u8; 18]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[value as usize & 0xf];
        value >>= 4;
        if value == 0 {
            break;
        }
    }
    digits[at - 2..at].copy_from_slice(b"0x");
    // Letters and digits only.
    std::str::from_utf8(&digits[at - 2..]).unwrap_or_default()
}

/// What every record of an MSR and a kind has in common.
#[derive(Clone, Copy, Debug)]
struct Known<'a> {
    name: Option<&'static str>,
    layout: Option<&'static Layout>,
    rule: &'a str,
}

/// Makes rows; what a guest does again and again is looked up once.
#[derive(Debug)]
pub struct RowMaker<'a> {
    header: &'a Header,
    known: HashMap<(u32, Kind), Known<'a>, RandomState>,
    callers: HashMap<u64, String, RandomState>,
    slide: Option<u64>,
}

/// How many addresses' names are kept.
const CACHE: usize = 1 << 16;

impl<'a> RowMaker<'a> {
    /// Makes rows of the trace with this header.
    pub fn new(header: &'a Header) -> Self {
        Self {
            header,
            known: HashMap::default(),
            callers: HashMap::default(),
            slide: None,
        }
    }

    /// The row of a record.
    pub fn row(&mut self, symbols: Option<&Symbols>, record: &Record) -> Row<'_> {
        let header = self.header;
        let faulted_read = record.kind == Kind::Read && record.fault;
        let value = (!faulted_read).then_some(record.value);
        let index = record.index;
        if self.known.len() > CACHE {
            self.known.clear();
        }
        let known = *self
            .known
            .entry((index, record.kind))
            .or_insert_with(|| Known {
                name: names::name(index),
                layout: fields::layout(index),
                rule: header.rule(record),
            });
        let slide = symbols.map(Symbols::slide);
        if self.callers.len() > CACHE || self.slide != slide {
            self.callers.clear();
            self.slide = slide;
        }
        let callers = &mut self.callers;
        let caller = record.rip.map(|rip| {
            callers
                .entry(rip)
                .or_insert_with(|| caller(symbols, rip))
                .as_str()
        });
        Row {
            time_ns: record.time.saturating_sub(header.start),
            vcpu: record.vcpu,
            kind: record.kind,
            msr: index,
            name: known.name,
            value,
            fields: value.and_then(|value| Some(known.layout?.decode(value))),
            rip: record.rip,
            caller,
            reason: record.answerer.reason(),
            fault: record.fault,
            injected: record.injected,
            answerer: header.answerer(record),
            rule: known.rule,
        }
    }
}

/// What is known of an instruction's address.
pub fn caller(symbols: Option<&Symbols>, rip: u64) -> String {
    match symbols {
        Some(symbols) => symbols.place(rip).to_string(),
        None => Place::without_symbols(rip).to_string(),
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (
            self.time_ns / 1_000_000_000,
            self.time_ns / 1000 % 1_000_000,
        );
        write!(
            f,
            "{seconds:>5}.{micros:06} vcpu{:<2} {:<5} {:#010x} {:<28} ",
            self.vcpu,
            self.kind,
            self.msr,
            self.name.unwrap_or("-")
        )?;
        match (self.fault, self.value) {
            (true, Some(value)) => write!(f, "#GP ({value:#x})")?,
            (true, None) => f.write_str("#GP")?,
            (false, value) => write!(f, "{:#018x}", value.unwrap_or(0))?,
        }
        if self.injected {
            f.write_str(" (injected)")?;
        }
        write!(f, "  {}", self.answerer)?;
        if let Some(reason) = self.reason {
            write!(f, " ({reason}, {})", self.rule)?;
        }
        if let Some(caller) = &self.caller {
            write!(f, "  {caller}")?;
        }
        if let Some(fields) = &self.fields {
            write!(f, "  {fields}")?;
        }
        Ok(())
    }
}

/// A row as comma-separated values (RFC 4180).
#[derive(Debug)]
pub struct Csv<'a, 'b>(pub &'a Row<'b>);

impl Csv<'_, '_> {
    /// The first line.
    pub const HEADER: &'static str =
        "time_ns,vcpu,kind,msr,name,value,fields,rip,caller,reason,fault,answerer,rule,injected";
}

impl fmt::Display for Csv<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.0;
        let hex = |value: Option<u64>| value.map_or(String::new(), |value| format!("{value:#x}"));
        let text = |text: Option<&str>| quoted(text.unwrap_or(""));
        write!(
            f,
            "{},{},{},{:#x},{},{},{},{},{},{},{},{},{},{}",
            row.time_ns,
            row.vcpu,
            row.kind,
            row.msr,
            text(row.name),
            hex(row.value),
            quoted(
                &row.fields
                    .map_or(String::new(), |fields| fields.to_string())
            ),
            hex(row.rip),
            text(row.caller),
            row.reason
                .map_or(String::new(), |reason| reason.to_string()),
            row.fault,
            quoted(row.answerer),
            quoted(row.rule),
            row.injected
        )
    }
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_what_the_standard_library_prints() {
        for value in [0, 1, 0xf, 0x10, 0xdead_beef, 1 << 63, u64::MAX] {
            assert_eq!(hexadecimal(value, &mut [0; 18]), format!("{value:#x}"));
        }
    }
}
