//! Traces from an untrusted file.
//!
//! A file is refused, or it gives records and ends, by itself or with an error. What was read, written again, is read as
//! the same.

use std::io::Cursor;

use msr_trace::{Record, Trace, TraceWriter};

/// More than a file of this size can have if each record takes a byte.
fn most(data: &[u8]) -> usize {
    data.len() + 1
}

/// Reads `data` as a trace.
pub fn run(data: &[u8]) {
    let mut trace = match Trace::new(Cursor::new(data)) {
        Ok(trace) => trace,
        Err(error) => return drop(error.to_string()),
    };
    let header = trace.header().clone();
    let lost = trace.lost().count();
    let claimed = trace.total_lost();
    assert!(lost > 0 || claimed == 0, "{claimed} records lost by nobody");
    let mut records: Vec<Record> = Vec::new();
    for record in trace.records().take(most(data)) {
        match record {
            Ok(record) => records.push(record),
            // Further reading is the caller's decision, and has an end as well.
            Err(error) => drop(error.to_string()),
        }
    }
    assert!(records.len() < most(data), "a record takes no bytes");
    let mut written = Vec::new();
    let mut writer = match TraceWriter::new(&mut written, &header) {
        Ok(writer) => writer,
        Err(error) => return drop(error.to_string()),
    };
    for record in &records {
        if let Err(error) = writer.record(record) {
            return drop(error.to_string());
        }
    }
    if writer.finish().is_err() {
        return;
    }
    let mut again = Trace::new(Cursor::new(&written)).expect("what was written is a trace");
    let read: Result<Vec<Record>, _> = again.records().collect();
    assert_eq!(read.expect("and all of it is read").len(), records.len());
}
