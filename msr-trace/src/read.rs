//! A trace, read back.
//!
//! Opening looks at every block once, checks its checksum and remembers where it is; reading the records then goes
//! through each stream's blocks and merges the streams by time. It takes at most one block of each stream in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::ReadError;
use crate::format::block::{Content, FRAME, Frame};
use crate::format::encode::Decoder;
use crate::format::preamble;
use crate::header::Header;
use crate::note::Note;
use crate::record::{Record, Source};

/// How a trace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order: the recording was finished.
    Whole,
    /// After its last whole block: the recording still goes on, or was killed.
    Unfinished,
    /// At a block that is cut off or damaged, at this byte. What comes before it is whole.
    Broken(u64),
}

/// Where a block of records is.
#[derive(Clone, Copy, Debug)]
struct Place {
    payload: u64,
    length: u32,
    count: u32,
    first: u64,
}

/// A trace.
#[derive(Debug)]
pub struct Trace<R> {
    input: R,
    header: Header,
    notes: Vec<Note>,
    streams: BTreeMap<(u16, Source), Vec<Place>>,
    lost: BTreeMap<(u16, Source), u64>,
    records: u64,
    ending: Ending,
    /// Where the blocks begin.
    blocks: u64,
    length: u64,
}

impl Trace<BufReader<File>> {
    /// Opens a trace.
    ///
    /// # Errors
    ///
    /// [`ReadError`], where it is no trace or its header is broken. A trace that ends early is no error:
    /// [`ending`](Self::ending).
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(ReadError::Io)?;
        Self::new(BufReader::with_capacity(64 << 10, file))
    }
}

impl<R: Read + Seek> Trace<R> {
    /// Reads a trace from anywhere.
    ///
    /// # Errors
    ///
    /// As [`open`](Trace::open).
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let (header, at) = preamble::read(&mut input)?;
        let mut trace = Self {
            input,
            header,
            notes: Vec::new(),
            streams: BTreeMap::new(),
            lost: BTreeMap::new(),
            records: 0,
            ending: Ending::Unfinished,
            blocks: at,
            length: at,
        };
        trace.scan()?;
        Ok(trace)
    }

    fn scan(&mut self) -> Result<(), ReadError> {
        let mut payload = Vec::new();
        loop {
            let at = self.length;
            let Some(frame) = next_block(&mut self.input, &mut payload).map_err(ReadError::Io)?
            else {
                return Ok(());
            };
            let Ok(frame) = frame else {
                self.ending = Ending::Broken(at);
                return Ok(());
            };
            match frame.content {
                Content::Note => match serde_json::from_slice(&payload) {
                    Ok(note) => {
                        if matches!(note, Note::End { .. }) {
                            self.ending = Ending::Whole;
                        }
                        self.notes.push(note);
                    }
                    // A note of a later version of this program.
                    Err(error) => log::debug!("a note at byte {at} is skipped: {error}"),
                },
                Content::Records { source, vcpu } if u32::from(vcpu) < self.header.vcpus => {
                    let lost = self.lost.entry((vcpu, source)).or_default();
                    *lost = frame.lost.max(*lost);
                    self.records += u64::from(frame.count);
                    self.streams.entry((vcpu, source)).or_default().push(Place {
                        payload: at + FRAME as u64,
                        length: frame.length,
                        count: frame.count,
                        first: frame.first,
                    });
                }
                Content::Records { .. } => {
                    self.ending = Ending::Broken(at);
                    return Ok(());
                }
            }
            self.length = at + FRAME as u64 + u64::from(frame.length);
        }
    }

    /// What it says of the machine.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The notes, in the order in which they were written.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The guest's `IA32_LSTAR`, if it was seen.
    pub fn lstar(&self) -> Option<u64> {
        self.notes.iter().find_map(|note| match note {
            Note::Lstar { value } => Some(*value),
            Note::Mark { .. } | Note::End { .. } => None,
        })
    }

    /// What was done to the VM from outside: when, in nanoseconds of the records' clock, and what. In the order of time.
    pub fn marks(&self) -> Vec<(u64, &str)> {
        let marks = self.notes.iter().filter_map(|note| match note {
            Note::Mark { time, text } => Some((*time, text.as_str())),
            Note::Lstar { .. } | Note::End { .. } => None,
        });
        let mut marks: Vec<_> = marks.collect();
        marks.sort_by_key(|(time, _)| *time);
        marks
    }

    /// How many records it has, as far as it is whole.
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records are known to have been lost, of a vCPU and a source.
    pub fn lost(&self) -> impl Iterator<Item = (u16, Source, u64)> + '_ {
        self.lost
            .iter()
            .map(|((vcpu, source), lost)| (*vcpu, *source, *lost))
    }

    /// How many records are known to have been lost.
    pub fn total_lost(&self) -> u64 {
        self.lost
            .values()
            .fold(0, |sum, lost| sum.saturating_add(*lost))
    }

    /// How it ends.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// The end of its last whole block, in bytes.
    pub fn whole_length(&self) -> u64 {
        self.length
    }

    /// How long its whole blocks are, without the header, in bytes.
    pub fn blocks_length(&self) -> u64 {
        self.length - self.blocks
    }

    /// The records, in the order of their time.
    ///
    /// Each is an error where a block's contents make no sense although its checksum is right, or where the file can no longer
    /// be read; it is the last item then.
    pub fn records(&mut self) -> Records<'_, R> {
        let streams: Vec<Cursor<'_>> = self
            .streams
            .iter()
            .map(|((vcpu, source), places)| Cursor {
                vcpu: *vcpu,
                source: *source,
                places: places.iter(),
                decoder: None,
                at: 0,
            })
            .collect();
        Records {
            input: &mut self.input,
            next: BinaryHeap::with_capacity(streams.len()),
            waiting: vec![None; streams.len()],
            to_fill: (0..streams.len()).collect(),
            streams,
            failed: false,
        }
    }
}

/// Reads the next block into `payload`; `None` at the end of the file, and `Err` inside for a block that is cut off or
/// damaged.
pub(crate) fn next_block(
    input: &mut impl Read,
    payload: &mut Vec<u8>,
) -> io::Result<Option<Result<Frame, ()>>> {
    let mut bytes = [0; FRAME];
    let mut filled = 0;
    while filled < FRAME {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled == 0 {
        return Ok(None);
    }
    let frame = if filled == FRAME {
        Frame::parse(&bytes)
    } else {
        None
    };
    let Some(frame) = frame else {
        return Ok(Some(Err(())));
    };
    payload.clear();
    input.take(frame.length.into()).read_to_end(payload)?;
    let whole = payload.len() == frame.length as usize && frame.holds(&bytes, payload);
    Ok(Some(if whole { Ok(frame) } else { Err(()) }))
}

/// A place in a stream.
struct Cursor<'a> {
    vcpu: u16,
    source: Source,
    places: std::slice::Iter<'a, Place>,
    decoder: Option<Decoder>,
    /// Where the decoder's block is.
    at: u64,
}

impl Cursor<'_> {
    fn next<R: Read + Seek>(&mut self, input: &mut R) -> Result<Option<Record>, ReadError> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                match decoder.next() {
                    Ok(Some(record)) => return Ok(Some(record)),
                    Ok(None) => {}
                    Err(_) => return Err(ReadError::Malformed(self.at)),
                }
            }
            let Some(place) = self.places.next() else {
                self.decoder = None;
                return Ok(None);
            };
            self.at = place.payload - FRAME as u64;
            input
                .seek(SeekFrom::Start(place.payload))
                .map_err(ReadError::Io)?;
            let mut payload = vec![0; place.length as usize];
            input.read_exact(&mut payload).map_err(ReadError::Io)?;
            self.decoder = Some(Decoder::new(
                payload,
                place.count,
                place.first,
                self.vcpu,
                self.source,
            ));
        }
    }
}

/// The records of a trace, in the order of their time.
pub struct Records<'a, R> {
    input: &'a mut R,
    streams: Vec<Cursor<'a>>,
    /// The next record of each stream.
    waiting: Vec<Option<Record>>,
    /// Their times, with the stream.
    next: BinaryHeap<Reverse<(u64, usize)>>,
    to_fill: Vec<usize>,
    failed: bool,
}

impl<R: Read + Seek> Iterator for Records<'_, R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        while let Some(stream) = self.to_fill.pop() {
            match self.streams[stream].next(self.input) {
                Ok(Some(record)) => {
                    self.next.push(Reverse((record.time, stream)));
                    self.waiting[stream] = Some(record);
                }
                Ok(None) => {}
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let Reverse((_, stream)) = self.next.pop()?;
        self.to_fill.push(stream);
        self.waiting[stream].take().map(Ok)
    }
}
