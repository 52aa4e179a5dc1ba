//! `msr-vmm` on a terminal of its own, as a person has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that anything on the terminal may take to show.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that runs in the foreground of a pseudo terminal. Dropping it kills the process.
pub struct OnTerminal {
    /// The process's parent and the terminal's session leader: stands still when the process has ended, so that
    /// the terminal outlives it, and then ends with its status.
    leader: Child,
    master: File,
    shown: Arc<Mutex<Vec<u8>>>,
    /// The settings before the process started.
    pub before: Settings,
}

/// What `stty -a` shows of a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    input: libc::tcflag_t,
    output: libc::tcflag_t,
    control: libc::tcflag_t,
    local: libc::tcflag_t,
    characters: Vec<libc::cc_t>,
}

impl Settings {
    /// Whether a program gets each character as it is typed, and the terminal echoes none.
    pub fn is_raw(&self) -> bool {
        self.local & (libc::ICANON | libc::ECHO) == 0
    }
}

impl OnTerminal {
    /// Starts `command` on a new terminal.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let (master, slave) = open_pty()?;
        let before = settings(&master)?;
        command
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        // SAFETY: the function makes async-signal-safe calls only and allocates nothing.
        unsafe { command.pre_exec(lead_a_session) };
        let leader = command.spawn()?;
        // The command holds the terminal's other end too; the reader is to see the end of it.
        drop(command);
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, into) = (master.try_clone()?, shown.clone());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut piece) {
                into.lock()
                    .expect("no holder panics")
                    .extend_from_slice(&piece[..length]);
            }
        });
        Ok(Self {
            leader,
            master,
            shown,
            before,
        })
    }

    /// The process.
    pub fn pid(&self) -> io::Result<libc::pid_t> {
        let leader = self.leader.id();
        let children = std::fs::read_to_string(format!("/proc/{leader}/task/{leader}/children"))?;
        children
            .trim()
            .parse()
            .map_err(|_| io::Error::other(format!("the session leader's children: {children:?}")))
    }

    /// Types.
    pub fn enter(&mut self, text: &[u8]) -> io::Result<()> {
        self.master.write_all(text)
    }

    /// What the terminal has shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no holder panics")).into_owned()
    }

    /// Waits until it shows `text`.
    pub fn wait_for(&self, text: &str) -> io::Result<()> {
        self.until(&format!("{text:?} to show"), || {
            Ok(self.shown().contains(text))
        })
    }

    /// The settings now.
    pub fn settings(&self) -> io::Result<Settings> {
        settings(&self.master)
    }

    /// Waits for the process's end, and returns its status and how it left the terminal.
    pub fn wait(mut self) -> io::Result<(ExitStatus, Settings, String)> {
        let leader = self.leader.id().cast_signed();
        self.until("the end", || {
            let mut status = 0;
            // SAFETY: status is a valid place for the result; a stop leaves the child to be waited for.
            let changed =
                unsafe { libc::waitpid(leader, &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
            match changed {
                0 => Ok(false),
                _ if changed == leader && libc::WIFSTOPPED(status) => Ok(true),
                _ => Err(io::Error::other(format!("the session leader: {status:#x}"))),
            }
        })?;
        let after = self.settings()?;
        let shown = self.shown();
        // SAFETY: the process is this one's child, not yet waited for.
        unsafe { libc::kill(leader, libc::SIGCONT) };
        Ok((self.leader.wait()?, after, shown))
    }

    fn until(&self, what: &str, mut ready: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
        let start = Instant::now();
        while !ready()? {
            if start.elapsed() > LIMIT {
                let shown = self.shown();
                return Err(io::Error::other(format!(
                    "waited in vain for {what}; the terminal shows\n{shown}"
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            // SAFETY: kill takes no pointers; the leader has not waited for the process, which it does only
            // where this finds no child.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        // Both fail only for a process that has ended and been waited for.
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}

fn open_pty() -> io::Result<(File, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    let size = libc::winsize {
        ws_row: 40,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both are valid places for a descriptor, and the size is read; the name and the settings are left out.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in [master, slave] {
        // SAFETY: fcntl takes no pointers here.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: both were just made and belong to nothing else.
    Ok(unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) })
}

fn settings(terminal: &File) -> io::Result<Settings> {
    // SAFETY: termios is plain integers, for which zero is a value.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and termios a valid place for the result.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut termios) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Settings {
        input: termios.c_iflag,
        output: termios.c_oflag,
        control: termios.c_cflag,
        local: termios.c_lflag,
        characters: termios.c_cc.to_vec(),
    })
}

/// Between fork and exec: makes this process the leader of a session with standard input as its terminal, and
/// returns in a child. A terminal is hung up, and its settings reset, when the leader ends, so the leader is
/// not the process that is looked at.
fn lead_a_session() -> io::Result<()> {
    // SAFETY: system calls that take no pointers, but for waitpid's, which is valid.
    unsafe {
        if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(()),
            _ => {}
        }
        // What is typed concerns the whole group.
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // Among them the pipe on which `spawn` waits for the exec.
        libc::close_range(3, libc::c_uint::MAX, 0);
        let mut status = 0;
        while libc::waitpid(-1, &raw mut status, 0) < 0 {}
        libc::kill(libc::getpid(), libc::SIGSTOP);
        let code = if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            128 + libc::WTERMSIG(status)
        };
        libc::_exit(code)
    }
}
