//! What the log says of updates. A guest may try as often as it likes, and must not fill the host's disk.

use std::sync::{Mutex, PoisonError};

use log::info;

use super::{Refusal, Update};
use crate::VcpuId;

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The revision was `from` and is now the update's.
    Loaded { from: u32, update: Update },
    /// Nothing changed.
    Refused(Refusal),
}

/// How many messages a device writes in its life.
const LIMIT: u32 = 64;

/// Decides which events are logged: not the one that was logged last, and no more than [`LIMIT`].
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<History>);

#[derive(Debug, Default)]
struct History {
    last: Option<Event>,
    count: u32,
}

impl History {
    /// Whether `event` is logged.
    fn admit(&mut self, event: Event) -> bool {
        // Each CPU does as the first one did; one message tells of all.
        if self.last == Some(event) || self.count == LIMIT {
            return false;
        }
        // Loading what is loaded is the second thread of a core, and no news.
        if matches!(event, Event::Loaded { from, update } if from == update.revision) {
            return false;
        }
        self.last = Some(event);
        self.count += 1;
        true
    }
}

impl Journal {
    /// Logs what became of the update that `vcpu` has at the linear address `address`.
    pub(super) fn note(&self, device: &str, vcpu: VcpuId, address: u64, event: Event) {
        let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !history.admit(event) {
            return;
        }
        match event {
            Event::Loaded { from, update } => {
                let Update {
                    revision,
                    date,
                    size,
                } = update;
                let (month, day, year) = (date >> 24, date >> 16 & 0xff, date & 0xffff);
                info!(
                    "{device}: {vcpu}: microcode {from:#x} -> {revision:#x}, dated {year:04x}-{month:02x}-{day:02x}, {size} bytes"
                );
            }
            Event::Refused(why) => {
                info!("{device}: {vcpu}: microcode update at {address:#x} refused: {why}");
            }
        }
        if history.count == LIMIT {
            info!("{device}: no more is said of microcode updates");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(from: u32, revision: u32) -> Event {
        let update = Update {
            revision,
            date: 0,
            size: 0,
        };
        Event::Loaded { from, update }
    }

    #[test]
    fn what_was_said_last_is_not_said_again() {
        let mut history = History::default();
        let bad = Event::Refused(Refusal::Checksum);
        let events = [bad, bad, loaded(1, 2), loaded(1, 2), loaded(2, 2), bad];
        assert_eq!(
            events.map(|event| history.admit(event)),
            [true, false, true, false, false, true]
        );
    }

    #[test]
    fn a_guest_that_keeps_trying_fills_no_log() {
        let mut history = History::default();
        let said = (0..1000)
            .filter(|i| history.admit(Event::Refused(Refusal::HeaderVersion(*i))))
            .count();
        assert_eq!(said, 64);
    }
}
