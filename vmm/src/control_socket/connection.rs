//! One client's connection: lines in, lines out, both bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::Id;

/// The longest line of a request, in bytes, the newline included.
pub const MAX_LINE: usize = 64 << 10;

/// A client. Its requests are taken one at a time, and none as long as an answer waits to be read.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The client will send no more.
    ended: bool,
    /// It gets what waits for it, and no more.
    closing: bool,
    /// The requests that are answered when the guest has ended.
    pub(super) waiting: Vec<Id>,
}

/// What there is of a client's input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole line.
    Whole(Vec<u8>),
    /// More than a line can have.
    TooLong,
    /// Nothing whole yet.
    Partial,
}

impl Connection {
    /// `stream` must not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            ended: false,
            closing: false,
            waiting: Vec::new(),
        }
    }

    /// Reads what is there, up to the longest line.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        while self.input.len() < MAX_LINE {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(length) => self.input.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next line, if the client may be served now.
    pub(super) fn next_line(&mut self) -> Line {
        if self.closing || !self.output.is_empty() {
            return Line::Partial;
        }
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) if end < MAX_LINE => {
                let rest = self.input.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.input, rest);
                line.pop();
                Line::Whole(line)
            }
            None if self.input.len() < MAX_LINE => Line::Partial,
            _ => Line::TooLong,
        }
    }

    /// Adds a line for the client.
    pub(super) fn push(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
    }

    /// Gives the client what waits for it and then closes.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.input = Vec::new();
        self.waiting.clear();
    }

    /// Writes what the client takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A large answer's room is not kept.
        self.output = Vec::new();
        Ok(())
    }

    /// Whether an answer waits to be read.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether the client may send something that matters.
    pub(super) fn takes_input(&self) -> bool {
        !self.ended && !self.closing && self.output.is_empty()
    }

    /// Whether there is nothing left to do for the client.
    pub(super) fn is_done(&self) -> bool {
        self.output.is_empty() && (self.closing || self.ended && self.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, Connection::new(server))
    }

    #[test]
    fn lines_come_whole_and_one_at_a_time() {
        let (mut client, mut connection) = pair();
        client.write_all(b"one\ntwo\nthr").unwrap();
        connection.fill().unwrap();
        assert_eq!(connection.next_line(), Line::Whole(b"one".to_vec()));
        connection.push("answer");
        // Not before the answer is out.
        assert_eq!(connection.next_line(), Line::Partial);
        assert!(!connection.takes_input());
        connection.flush().unwrap();
        assert_eq!(connection.next_line(), Line::Whole(b"two".to_vec()));
        assert_eq!(connection.next_line(), Line::Partial);
        client.write_all(b"ee\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        connection.fill().unwrap();
        assert_eq!(connection.next_line(), Line::Whole(b"three".to_vec()));
        assert!(connection.is_done());
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit_and_no_more_is_read() {
        let (mut client, mut connection) = pair();
        let sender = std::thread::spawn(move || {
            // Fails once the other end is gone.
            let _ = client.write_all(&vec![b'x'; 1 << 20]);
        });
        while connection.next_line() == Line::Partial {
            connection.fill().unwrap();
        }
        assert_eq!(connection.next_line(), Line::TooLong);
        assert!(connection.input.len() < MAX_LINE + 4096);
        drop(connection);
        sender.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_left_alone() {
        let (client, mut connection) = pair();
        connection.push(&"x".repeat(1 << 20));
        connection.flush().unwrap();
        assert!(connection.has_output() && !connection.takes_input() && !connection.is_done());
        drop(client);
        assert!(connection.flush().is_err());
    }
}
