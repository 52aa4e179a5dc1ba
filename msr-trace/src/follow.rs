//! A trace that is still being written.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use crate::error::ReadError;
use crate::format::block::{Content, FRAME};
use crate::format::encode::Decoder;
use crate::format::preamble;
use crate::header::Header;
use crate::note::Note;
use crate::read::next_block;
use crate::record::Record;

/// Reads a trace as it grows. Records come block by block: in order within a stream, and between streams to within
/// the writer's interval.
#[derive(Debug)]
pub struct Follower {
    file: File,
    header: Header,
    at: u64,
    lstar: Option<u64>,
    marks: Vec<(u64, String)>,
    ended: bool,
    lost: u64,
}

impl Follower {
    /// Opens a trace at its beginning.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let mut file = File::open(path).map_err(ReadError::Io)?;
        let (header, at) = preamble::read(&mut file)?;
        Ok(Self {
            file,
            header,
            at,
            lstar: None,
            marks: Vec::new(),
            ended: false,
            lost: 0,
        })
    }

    /// What it says of the machine.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The guest's `IA32_LSTAR`, once it was seen.
    pub fn lstar(&self) -> Option<u64> {
        self.lstar
    }

    /// What was done to the VM from outside, as [`Trace::marks`](crate::Trace::marks), as far as it was read since the last
    /// call.
    pub fn take_marks(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.marks)
    }

    /// Whether the recording was finished.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// How many records the blocks read last say were lost. Each stream counts its own; this is the largest.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The records of the blocks that have become whole since the last call, at most some 10,000.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn poll(&mut self) -> Result<Vec<Record>, ReadError> {
        let mut records = Vec::new();
        let mut payload = Vec::new();
        self.file
            .seek(SeekFrom::Start(self.at))
            .map_err(ReadError::Io)?;
        while records.len() < 10_000 && !self.ended {
            // A block that is cut off may be whole at the next call.
            let mut input = &self.file;
            let Some(Ok(frame)) = next_block(&mut input, &mut payload).map_err(ReadError::Io)?
            else {
                break;
            };
            match frame.content {
                Content::Note => match serde_json::from_slice(&payload) {
                    Ok(Note::Lstar { value }) => self.lstar = Some(value),
                    Ok(Note::Mark { time, text }) => self.marks.push((time, text)),
                    Ok(Note::End { .. }) => self.ended = true,
                    Err(_) => {}
                },
                Content::Records { source, vcpu } => {
                    self.lost = self.lost.max(frame.lost);
                    let bytes = std::mem::take(&mut payload);
                    let mut decoder = Decoder::new(bytes, frame.count, frame.first, vcpu, source);
                    while let Some(record) =
                        decoder.next().map_err(|_| ReadError::Malformed(self.at))?
                    {
                        records.push(record);
                    }
                }
            }
            self.at += FRAME as u64 + u64::from(frame.length);
        }
        records.sort_by_key(|record| record.time);
        Ok(records)
    }
}
