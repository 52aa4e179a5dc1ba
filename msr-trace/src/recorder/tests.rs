use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;
use crate::{Answerer, Kind, Reason, Trace};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is full from the start of the records on.
struct Full(bool);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.0, true) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record(vcpu: u16, number: u64) -> Record {
    Record {
        time: number,
        vcpu,
        index: 0x10,
        kind: Kind::Write,
        value: number,
        rip: None,
        fault: false,
        injected: false,
        answerer: Answerer::Fallback(Reason::Unknown),
    }
}

fn header(vcpus: u32) -> Header {
    Header {
        vcpus,
        ..Header::default()
    }
}

#[test]
fn every_record_is_written_or_counted_as_lost_and_each_vcpus_keep_their_order() {
    const EACH: u64 = 200_000;
    let file = Shared::default();
    let recorder = Arc::new(Recorder::new(2));
    let recording =
        Recording::start(file.clone(), &header(2), recorder.clone(), || u64::MAX).unwrap();
    thread::scope(|scope| {
        for vcpu in 0..2 {
            let recorder = &recorder;
            scope.spawn(move || (0..EACH).for_each(|n| recorder.push(record(vcpu, n))));
        }
    });
    let summary = recording.finish().unwrap();
    assert_eq!(summary.records + summary.lost, 2 * EACH);
    let bytes = file.0.lock().unwrap().clone();
    assert_eq!(summary.bytes, bytes.len() as u64);
    let mut trace = Trace::new(io::Cursor::new(bytes)).unwrap();
    assert_eq!(trace.total_lost(), summary.lost);
    let mut next = [0, 0];
    let mut count = 0;
    for record in trace.records() {
        let record = record.unwrap();
        let next = &mut next[usize::from(record.vcpu)];
        assert!(record.value >= *next);
        *next = record.value + 1;
        count += 1;
    }
    assert_eq!(count, summary.records);
}

#[test]
fn a_full_ring_loses_and_counts_and_does_not_block() {
    let recorder = Recorder::new(1);
    for number in 0..RING as u64 + 3 {
        recorder.push(record(0, number));
    }
    // No such vCPU.
    recorder.push(record(1, 0));
    let file = Shared::default();
    let recording = Recording::start(file.clone(), &header(1), Arc::new(recorder), || 0).unwrap();
    let summary = recording.finish().unwrap();
    assert_eq!((summary.records, summary.lost), (RING as u64, 3));
}

#[test]
fn a_full_disk_ends_the_recording_with_an_error_and_nothing_else() {
    let recorder = Arc::new(Recorder::new(1));
    let recording = Recording::start(Full(false), &header(1), recorder.clone(), || 0).unwrap();
    for number in 0..100_000 {
        recorder.push(record(0, number));
    }
    let error = recording.finish().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn the_first_lstar_is_noted_once() {
    let recorder = Arc::new(Recorder::new(1));
    let file = Shared::default();
    let recording = Recording::start(file.clone(), &header(1), recorder.clone(), || 0).unwrap();
    assert!(!recorder.knows_lstar());
    recorder.set_lstar(0xffff_ffff_8100_0000);
    recorder.set_lstar(5);
    assert!(recorder.knows_lstar());
    recording.finish().unwrap();
    let bytes = file.0.lock().unwrap().clone();
    let trace = Trace::new(io::Cursor::new(bytes)).unwrap();
    assert_eq!(trace.lstar(), Some(0xffff_ffff_8100_0000));
}

#[test]
fn marks_are_read_back_with_their_times_in_order() {
    let recorder = Arc::new(Recorder::new(1));
    let file = std::env::temp_dir().join(format!("msr-trace-marks-{}", std::process::id()));
    let header = Header {
        vcpus: 1,
        ..Header::default()
    };
    let out = std::fs::File::create(&file).unwrap();
    let recording = Recording::start(out, &header, recorder.clone(), || 0).unwrap();
    recorder.mark(7, "hot".into());
    recorder.mark(5, "\u{e9} \"quoted\"\n".into());
    recording.finish().unwrap();
    let trace = crate::Trace::open(&file).unwrap();
    assert_eq!(trace.marks(), [(5, "\u{e9} \"quoted\"\n"), (7, "hot")]);
    assert_eq!(trace.ending(), crate::Ending::Whole);
    let mut follower = crate::Follower::open(&file).unwrap();
    assert!(follower.poll().unwrap().is_empty());
    assert_eq!(follower.take_marks().len(), 2);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn marks_that_nobody_writes_are_lost_beyond_a_limit_and_the_last_one_says_so() {
    let recorder = Recorder::new(1);
    for time in 0..3 * MARKS as u64 {
        recorder.mark(time, "hot".into());
    }
    let marks = recorder.marks();
    assert_eq!(marks.len(), MARKS + 1);
    let last = marks.last().unwrap();
    assert!(
        matches!(last, Note::Mark { time, text } if *time == MARKS as u64 && text.contains("lost")),
        "{last:?}"
    );
}
