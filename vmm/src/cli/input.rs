//! What is typed on the console: bytes for the guest, and an escape for the VMM.

/// The escape character, Ctrl-A, as in QEMU and screen.
const ESCAPE: u8 = 0x01;
const CTRL_C: u8 = 0x03;

/// What the person at the console wants of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Stop the VM at once.
    Quit,
    /// Press the power button.
    PowerButton,
    /// Say what the escapes are.
    Help,
}

/// Finds escapes in what is typed.
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    escaped: bool,
}

impl Escapes {
    /// What is told at the start.
    pub(crate) const BANNER: &str = "Ctrl-C stops the VM, Ctrl-A h lists the console's escapes";

    /// What is told on request.
    pub(crate) const HELP: &str = "Ctrl-A x  stop the VM at once\r\n\
         Ctrl-A p  press the power button\r\n\
         Ctrl-A c  send Ctrl-C to the guest\r\n\
         Ctrl-A a  send Ctrl-A to the guest (or Ctrl-A twice)\r\n\
         Ctrl-A h  this help\r\n";

    /// Appends to `guest` what of `typed` is for the guest, and returns the requests in it.
    pub(crate) fn take(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Request> {
        let mut requests = Vec::new();
        for byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, &ESCAPE) => self.escaped = true,
                (false, byte) => guest.push(*byte),
                (true, b'x') => requests.push(Request::Quit),
                (true, b'p') => requests.push(Request::PowerButton),
                (true, b'h' | b'?') => requests.push(Request::Help),
                (true, b'c') => guest.push(CTRL_C),
                (true, b'a' | &ESCAPE) => guest.push(ESCAPE),
                // Not an escape: the guest gets what was typed.
                (true, byte) => guest.extend([ESCAPE, *byte]),
            }
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(typed: &[u8]) -> (Vec<u8>, Vec<Request>) {
        let mut guest = Vec::new();
        let requests = Escapes::default().take(typed, &mut guest);
        (guest, requests)
    }

    #[test]
    fn what_is_no_escape_reaches_the_guest() {
        assert_eq!(
            take(b"ls -l\r\x03\x1b[A"),
            (b"ls -l\r\x03\x1b[A".to_vec(), vec![])
        );
        assert_eq!(
            take(b"\x01\x01\x01a\x01c\x01z"),
            (b"\x01\x01\x03\x01z".to_vec(), vec![])
        );
    }

    #[test]
    fn escapes_are_requests_and_do_not_reach_the_guest() {
        let requests = vec![Request::Help, Request::PowerButton, Request::Quit];
        assert_eq!(take(b"a\x01hb\x01pc\x01x"), (b"abc".to_vec(), requests));
    }

    #[test]
    fn an_escape_may_come_in_two_pieces() {
        let (mut escapes, mut guest) = (Escapes::default(), Vec::new());
        assert_eq!(escapes.take(b"\x01", &mut guest), []);
        assert_eq!(escapes.take(b"x", &mut guest), [Request::Quit]);
        assert!(guest.is_empty());
    }
}
