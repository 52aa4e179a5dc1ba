//! Looks for texts in what the guest writes to its console.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msr_kvm::scenario::MAX_TEXT;
use vmm_sys_util::eventfd::EventFd;

/// Looks for texts, and tells once each is found.
#[derive(Debug)]
pub struct ConsoleWatch {
    /// Whether there is anything to look for.
    active: AtomicBool,
    state: Mutex<Watched>,
    event: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Watched {
    /// The texts, by who waits for each.
    texts: Vec<(u32, Vec<u8>)>,
    /// The end of what was written, in which a text may have begun.
    tail: Vec<u8>,
    /// Who has found theirs.
    found: Vec<u32>,
}

impl ConsoleWatch {
    pub(super) fn new(event: Arc<EventFd>) -> Self {
        Self {
            active: AtomicBool::new(false),
            state: Mutex::default(),
            event,
        }
    }

    /// Looks for `text` from now on, until it is found.
    pub(super) fn look_for(&self, id: u32, text: &str) {
        let mut state = self.state();
        if state.texts.is_empty() {
            // What was written while nobody looked does not count.
            state.tail.clear();
        }
        state.texts.push((id, text.as_bytes().to_owned()));
        self.active.store(true, Ordering::Release);
    }

    /// Who has found theirs since the last call.
    pub(super) fn take_found(&self) -> Vec<u32> {
        std::mem::take(&mut self.state().found)
    }

    fn saw(&self, piece: &[u8]) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state();
        let Watched { texts, tail, found } = &mut *state;
        tail.extend_from_slice(piece);
        let before = found.len();
        texts.retain(|(id, text)| {
            let there = tail.windows(text.len()).any(|window| window == text);
            if there {
                found.push(*id);
            }
            !there
        });
        let surplus = tail.len().saturating_sub(MAX_TEXT - 1);
        tail.drain(..surplus);
        self.active.store(!texts.is_empty(), Ordering::Release);
        if found.len() > before {
            // It fails only with 2^64 - 2 events unread, and then the loop is awake.
            let _ = self.event.write(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, Watched> {
        // Whole after every statement that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer of the console's output that is looked at. It writes on the console's own thread, never on a vCPU's.
#[derive(Debug)]
pub struct WatchedOutput<W> {
    output: W,
    watch: Arc<ConsoleWatch>,
}

impl<W> WatchedOutput<W> {
    /// Writes to `output`, and has `watch` see it.
    pub fn new(output: W, watch: Arc<ConsoleWatch>) -> Self {
        Self { output, watch }
    }
}

impl<W: Write> Write for WatchedOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        match &written {
            Ok(length) => self.watch.saw(&bytes[..*length]),
            // It is tried again.
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // Nobody reads it, and yet the guest has written it.
            Err(_) => self.watch.saw(bytes),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> (Arc<ConsoleWatch>, WatchedOutput<Vec<u8>>) {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let watch = Arc::new(ConsoleWatch::new(Arc::new(event)));
        (watch.clone(), WatchedOutput::new(Vec::new(), watch))
    }

    #[test]
    fn a_text_is_found_once_in_however_many_pieces_it_comes() {
        let (watch, mut output) = watched();
        output.write_all(b"login: ").unwrap();
        watch.look_for(3, "login:");
        watch.look_for(4, "#");
        // What came before it was looked for does not count.
        output.write_all(b"x").unwrap();
        assert!(watch.take_found().is_empty());
        for byte in b"debian login: " {
            output.write_all(&[*byte]).unwrap();
        }
        assert_eq!(watch.take_found(), [3]);
        assert_eq!(watch.event.read().unwrap(), 1);
        output.write_all(b"login: root\n# ").unwrap();
        assert_eq!(watch.take_found(), [4]);
        assert!(!watch.active.load(Ordering::Relaxed));
        output.write_all(b"# login:").unwrap();
        assert!(watch.take_found().is_empty());
        assert!(
            output
                .output
                .starts_with(b"login: xdebian login: login: root\n# # login:")
        );
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_longest_text_is_found_across_it() {
        let (watch, mut output) = watched();
        let text = "y".repeat(MAX_TEXT);
        watch.look_for(1, &text);
        output.write_all(&[b'x'; 10_000]).unwrap();
        assert_eq!(watch.state().tail.len(), MAX_TEXT - 1);
        output.write_all(&text.as_bytes()[1..]).unwrap();
        assert!(watch.take_found().is_empty());
        output.write_all(b"y").unwrap();
        assert_eq!(watch.take_found(), [1]);
    }
}
