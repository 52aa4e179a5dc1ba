use std::io::Cursor;

use proptest::prelude::*;

use crate::{Answerer, Ending, Header, Kind, Note, Reason, Record, Trace, TraceWriter};

fn header(vcpus: u32) -> Header {
    Header {
        program: "test".to_owned(),
        vcpus,
        with_rip: true,
        ..Header::default()
    }
}

fn answerers() -> impl Strategy<Value = Answerer> {
    let reasons = prop_oneof![
        Just(Reason::Filter),
        Just(Reason::Unknown),
        Just(Reason::Invalid)
    ];
    prop_oneof![
        Just(Answerer::Kernel),
        reasons.clone().prop_map(Answerer::Device),
        reasons.prop_map(Answerer::Fallback),
    ]
}

fn records(vcpus: u16, count: usize) -> impl Strategy<Value = Vec<Record>> {
    let record = (
        0..1u64 << 40,
        0..vcpus,
        prop_oneof![0x10u32..0x14, any::<u32>()],
        any::<bool>(),
        any::<u64>(),
        proptest::option::of(prop_oneof![Just(0xffff_ffff_8100_0000), any::<u64>()]),
        any::<bool>(),
        any::<bool>(),
        answerers(),
    );
    let record = record.prop_map(
        |(time, vcpu, index, write, value, rip, fault, injected, answerer)| Record {
            time,
            vcpu,
            index,
            kind: if write { Kind::Write } else { Kind::Read },
            value,
            rip,
            fault,
            injected: injected && answerer != Answerer::Kernel,
            answerer,
        },
    );
    proptest::collection::vec(record, 0..count).prop_map(|mut records| {
        records.sort_by_key(|record| record.time);
        records
    })
}

/// A trace with a block each `every` records and stream.
fn written(vcpus: u32, records: &[Record], every: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, &header(vcpus)).unwrap();
    for (number, record) in records.iter().enumerate() {
        writer.record(record).unwrap();
        if number % every == every - 1 {
            writer.flush_old(u64::MAX).unwrap();
        }
    }
    writer.finish().unwrap();
    file
}

fn read(bytes: &[u8]) -> Option<(Vec<Record>, Ending)> {
    let mut trace = Trace::new(Cursor::new(bytes)).ok()?;
    // What a checksum lets through is read or refused; the error is the last item.
    let read = trace.records().map_while(Result::ok).collect();
    Some((read, trace.ending()))
}

/// By stream, as only there order is promised for equal times.
fn by_stream(records: &[Record]) -> Vec<Record> {
    let mut sorted = records.to_vec();
    sorted.sort_by_key(|record| (record.vcpu, record.answerer.source()));
    sorted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_in_the_order_of_time(records in records(3, 200), every in 1usize..50) {
        let (read, ending) = read(&written(3, &records, every)).unwrap();
        prop_assert_eq!(ending, Ending::Whole);
        prop_assert!(read.is_sorted_by_key(|record| record.time));
        prop_assert_eq!(by_stream(&read), by_stream(&records));
    }

    #[test]
    fn a_mutated_trace_is_refused_or_read(
        records in records(2, 60),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = written(2, &records, 20);
        for (at, byte) in flips {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some((read, _)) = read(&file) {
            prop_assert!(read.len() <= records.len());
        }
    }

    #[test]
    fn a_block_whose_checksum_is_right_and_contents_are_not_is_an_error(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        count in 0u32..400,
    ) {
        use super::block::{Content, Frame};
        let mut file = Vec::new();
        super::preamble::write(&mut file, &header(1)).unwrap();
        let content = Content::Records { source: crate::Source::Userspace, vcpu: 0 };
        let frame = Frame {
            content, length: payload.len() as u32, count, lost: 0, first: 0, last: u64::MAX, checksum: 0,
        };
        file.extend_from_slice(&frame.seal(&payload));
        file.extend_from_slice(&payload);
        let mut trace = Trace::new(Cursor::new(file)).unwrap();
        let items: Vec<_> = trace.records().collect();
        // A record takes three bytes at least.
        prop_assert!(items.len() <= payload.len() / 3 + 1);
        prop_assert!(items.iter().rev().skip(1).all(Result::is_ok));
    }
}

fn numbered(count: u64) -> Vec<Record> {
    (0..count)
        .map(|n| Record {
            time: 1000 * n,
            vcpu: 0,
            index: 0x10 + (n % 3) as u32,
            kind: Kind::Read,
            value: n,
            rip: Some(0xffff_ffff_8100_0000 + n % 5),
            fault: n % 7 == 0,
            injected: false,
            answerer: Answerer::Device(Reason::Filter),
        })
        .collect()
}

#[test]
fn a_trace_cut_at_any_byte_of_its_last_two_blocks_reads_up_to_the_block_before() {
    let records = numbered(30);
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, &header(1)).unwrap();
    let mut ends = vec![writer.bytes()];
    for ten in records.chunks(10) {
        for record in ten {
            writer.record(record).unwrap();
        }
        writer.flush_old(u64::MAX).unwrap();
        ends.push(writer.bytes());
    }
    drop(writer);
    for cut in ends[1]..ends[3] {
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let (read, ending) = read(&file[..cut as usize]).unwrap();
        assert_eq!(read, records[..10 * whole], "cut at {cut}");
        let at_an_end = ends.contains(&cut);
        let expected = if at_an_end {
            Ending::Unfinished
        } else {
            Ending::Broken(ends[whole])
        };
        assert_eq!(ending, expected, "cut at {cut}");
    }
}

#[test]
fn a_cut_or_foreign_preamble_is_refused() {
    let file = written(1, &numbered(3), 10);
    let trace = Trace::new(Cursor::new(&file)).unwrap();
    let preamble = file.len() as u64 - trace.whole_length();
    assert_eq!(preamble, 0);
    for cut in 0..20 {
        assert!(Trace::new(Cursor::new(&file[..cut])).is_err(), "{cut}");
    }
    for (at, byte, message) in [(0, b'X', "is no trace"), (8, 9, "version 9")] {
        let mut other = file.clone();
        other[at] = byte;
        let error = Trace::new(Cursor::new(other)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let mut other = file;
    other[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = Trace::new(Cursor::new(other)).unwrap_err().to_string();
    assert!(error.contains("4294967295 bytes"), "{error}");
}

#[test]
fn losses_and_notes_are_in_the_file() {
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, &header(2)).unwrap();
    writer.note(&Note::Lstar { value: 7 }).unwrap();
    writer.lost(1, crate::Source::Userspace, 5).unwrap();
    let (records, bytes) = writer.finish().unwrap();
    assert_eq!((records, bytes), (0, file.len() as u64));
    let trace = Trace::new(Cursor::new(file)).unwrap();
    assert_eq!(trace.lstar(), Some(7));
    assert_eq!(trace.total_lost(), 5);
    assert!(
        trace
            .lost()
            .any(|lost| lost == (1, crate::Source::Userspace, 5))
    );
    let end = Note::End {
        records: 0,
        lost: vec![0, 5],
    };
    assert_eq!(trace.notes().last(), Some(&end));
}

#[test]
fn a_record_of_a_vcpu_that_the_header_lacks_is_an_error() {
    let mut writer = TraceWriter::new(Vec::new(), &header(1)).unwrap();
    let record = Record {
        vcpu: 1,
        ..numbered(1)[0]
    };
    assert!(writer.record(&record).is_err());
}

#[test]
fn records_of_one_site_take_few_bytes() {
    let records = numbered(10_000);
    let bytes = written(1, &records, usize::MAX).len();
    assert!(bytes < 10 * records.len(), "{bytes}");
}
