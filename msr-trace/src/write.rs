//! Records into blocks, blocks into a file.

use std::io::{self, Write};
use std::time::Duration;

use crate::format::block::{Content, Frame};
use crate::format::encode::Encoder;
use crate::format::{MAX_PAYLOAD, preamble};
use crate::header::Header;
use crate::note::Note;
use crate::record::{Record, Source};

/// A block is written once its payload has this many bytes.
const FULL: usize = 48 << 10;
/// A block of fewer is written once its first record is this old. A VMM that is killed loses at most the records of
/// this time, one block of each stream, and what its rings hold.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

const _: () = assert!(FULL + 64 < MAX_PAYLOAD);

/// Writes a trace. Each block goes out in one write, so that a file that is cut off ends in at most one broken
/// block.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    streams: Vec<Stream>,
    vcpus: u32,
    records: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

#[derive(Debug, Default)]
struct Stream {
    encoder: Encoder,
    lost: u64,
    /// What the last written block said.
    lost_written: u64,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace.
    ///
    /// # Errors
    ///
    /// Those of `out`, here as below. After one the trace is not to be written on.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let bytes = preamble::write(&mut out, header)?;
        let streams = (0..2 * header.vcpus as usize).map(|_| Stream::default());
        Ok(Self {
            out,
            streams: streams.collect(),
            vcpus: header.vcpus,
            records: 0,
            bytes,
            buffer: Vec::with_capacity(FULL + 128),
        })
    }

    /// Adds a record. A vCPU that the header does not have is an error.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        let source = record.answerer.source();
        let number = self.stream(record.vcpu, source)?;
        let encoder = &mut self.streams[number].encoder;
        encoder.push(record);
        self.records += 1;
        if encoder.payload.len() >= FULL {
            self.flush_stream(number)?;
        }
        Ok(())
    }

    /// Says how many records of a stream have been lost since the start.
    pub fn lost(&mut self, vcpu: u16, source: Source, count: u64) -> io::Result<()> {
        let number = self.stream(vcpu, source)?;
        self.streams[number].lost = count;
        Ok(())
    }

    /// Writes the blocks whose first record is older than [`FLUSH_INTERVAL`] at `now`, in nanoseconds of
    /// `CLOCK_MONOTONIC`.
    pub fn flush_old(&mut self, now: u64) -> io::Result<()> {
        let oldest = now.saturating_sub(FLUSH_INTERVAL.as_nanos() as u64);
        for number in 0..self.streams.len() {
            let encoder = &self.streams[number].encoder;
            if encoder.count > 0 && encoder.first <= oldest {
                self.flush_stream(number)?;
            }
        }
        Ok(())
    }

    /// Adds a note.
    pub fn note(&mut self, note: &Note) -> io::Result<()> {
        let payload = serde_json::to_vec(note)?;
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let frame = Frame {
            content: Content::Note,
            length,
            count: 0,
            lost: 0,
            first: 0,
            last: 0,
            checksum: 0,
        };
        self.write_block(frame, &payload)
    }

    /// Writes what is left, and that the trace is whole. Returns how many records and bytes it has.
    pub fn finish(mut self) -> io::Result<(u64, u64)> {
        for number in 0..self.streams.len() {
            self.flush_stream(number)?;
        }
        let lost = self
            .streams
            .chunks(2)
            .map(|streams| streams.iter().map(|stream| stream.lost).sum())
            .collect();
        let records = self.records;
        self.note(&Note::End { records, lost })?;
        self.out.flush()?;
        Ok((records, self.bytes))
    }

    /// How many bytes the file has so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn stream(&self, vcpu: u16, source: Source) -> io::Result<usize> {
        if u32::from(vcpu) >= self.vcpus {
            let vcpus = self.vcpus;
            let message = format!("a record of vCPU {vcpu} in a trace of {vcpus} vCPUs");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(2 * usize::from(vcpu) + source as usize)
    }

    fn flush_stream(&mut self, number: usize) -> io::Result<()> {
        let stream = &mut self.streams[number];
        if stream.encoder.count == 0 && stream.lost == stream.lost_written {
            return Ok(());
        }
        let source = if number.is_multiple_of(2) {
            Source::Userspace
        } else {
            Source::Kernel
        };
        // `number` is below twice the number of vCPUs, which are at most 4096.
        let vcpu = (number / 2) as u16;
        let mut encoder = std::mem::take(&mut stream.encoder);
        let frame = Frame {
            content: Content::Records { source, vcpu },
            length: encoder.payload.len() as u32,
            count: encoder.count,
            lost: stream.lost,
            first: if encoder.count == 0 {
                encoder.last
            } else {
                encoder.first
            },
            last: encoder.last,
            checksum: 0,
        };
        stream.lost_written = stream.lost;
        let written = self.write_block(frame, &encoder.payload);
        encoder.clear();
        self.streams[number].encoder = encoder;
        written
    }

    fn write_block(&mut self, frame: Frame, payload: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&frame.seal(payload));
        self.buffer.extend_from_slice(payload);
        self.bytes += self.buffer.len() as u64;
        self.out.write_all(&self.buffer)
    }
}
