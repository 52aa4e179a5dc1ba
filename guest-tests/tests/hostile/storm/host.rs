//! What the host's kernel says of its guests.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

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

/// The kernel's log from a moment on, if this process may read it.
pub(super) struct Log(io::Result<File>);

impl Log {
    pub(super) fn now() -> Self {
        let open = || -> io::Result<File> {
            let mut file = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/kmsg")?;
            read(&mut file)?;
            Ok(file)
        };
        Self(open())
    }

    /// How much it has said since, unless something of that means trouble.
    pub(super) fn since(self) -> Result<String, Failed> {
        let mut file = match self.0 {
            Ok(file) => file,
            Err(error) => return Ok(format!("its log cannot be read: /dev/kmsg: {error}")),
        };
        let lines = read(&mut file)?;
        match lines
            .iter()
            .find(|line| TROUBLE.iter().any(|words| line.contains(words)))
        {
            Some(line) => Err(format!("the host's kernel says: {line}").into()),
            None => Ok(format!("{} lines in its log, none of trouble", lines.len())),
        }
    }
}

/// One line with each read, and EPIPE where lines were overwritten.
fn read(file: &mut File) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut record = vec![0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => return Ok(lines),
            Ok(length) => lines.push(String::from_utf8_lossy(&record[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}
