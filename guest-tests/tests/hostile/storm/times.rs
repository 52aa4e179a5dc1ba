//! How long answers took, and how long the host's scheduler takes by itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Times of one kind.
#[derive(Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.0.clone();
        times.sort();
        let at = |thousandths: usize| times.get(times.len() * thousandths / 1000);
        match (at(500), at(990), times.last()) {
            (Some(median), Some(most), Some(longest)) => write!(
                f,
                "{}, median {median:?}, 99% {most:?}, longest {longest:?}",
                times.len()
            ),
            _ => f.write_str("none"),
        }
    }
}

/// A thread that sleeps and wakes and does nothing else. What it is late, every process on this host may be.
pub(super) struct Sleeper {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Times>,
}

impl Sleeper {
    pub(super) fn start() -> Self {
        const SLEEP: Duration = Duration::from_millis(10);
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = thread::spawn(move || {
            let mut late = Times::default();
            while !until.load(Ordering::Relaxed) {
                let begin = Instant::now();
                thread::sleep(SLEEP);
                late.push(begin.elapsed().saturating_sub(SLEEP));
            }
            late
        });
        Self { ended, thread }
    }

    pub(super) fn late(self) -> Times {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
