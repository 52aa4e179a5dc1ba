//! What the host's kernel says of its guests. It is read as it comes: the kernel keeps some lines and overwrites the oldest.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use libtest_mimic::Failed;

/// Words that a healthy kernel does not say.
const TROUBLE: [&str; 6] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection",
    "rcu: INFO",
    "hung task",
];

/// How often it is read.
const LOOK: Duration = Duration::from_millis(200);

/// The kernel's log from a moment on, if this process may read it.
pub(super) struct Log {
    ended: Arc<AtomicBool>,
    reader: io::Result<JoinHandle<io::Result<Seen>>>,
}

/// What it has said.
#[derive(Default)]
struct Seen {
    lines: usize,
    /// How often lines were overwritten before they were read.
    gaps: usize,
    /// The first line that means trouble.
    trouble: Option<String>,
}

impl Log {
    pub(super) fn now() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let reader = file.and_then(|mut file| {
            // What was said before.
            Seen::default().read(&mut file)?;
            Ok(thread::spawn(move || {
                let mut seen = Seen::default();
                loop {
                    // Looked at before the log, so that what was said last is read.
                    let last = until.load(Ordering::Acquire);
                    seen.read(&mut file)?;
                    if last {
                        return Ok(seen);
                    }
                    thread::sleep(LOOK);
                }
            }))
        });
        Self { ended, reader }
    }

    /// How much it has said since, unless something of that means trouble.
    pub(super) fn since(self) -> Result<String, Failed> {
        let reader = match self.reader {
            Ok(reader) => reader,
            Err(error) => return Ok(format!("its log cannot be read: /dev/kmsg: {error}")),
        };
        self.ended.store(true, Ordering::Release);
        let seen = reader.join().map_err(|_| "the reader panicked")??;
        match seen.trouble {
            Some(line) => Err(format!("the host's kernel says: {line}").into()),
            None => Ok(format!(
                "{} lines in its log, none of trouble; {} times some were overwritten before they were read",
                seen.lines, seen.gaps
            )),
        }
    }
}

impl Seen {
    /// Reads what there is: a line with each read, and EPIPE where lines were overwritten.
    fn read(&mut self, file: &mut File) -> io::Result<()> {
        let mut record = vec![0; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    self.lines += 1;
                    let line = String::from_utf8_lossy(&record[..length]);
                    if self.trouble.is_none() && TROUBLE.iter().any(|words| line.contains(words)) {
                        self.trouble = Some(line.into_owned());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.gaps += 1,
                Err(error) => return Err(error),
            }
        }
    }
}
