//! What can become of a system call.

use std::fmt;

use libc::{
    EACCES, EADDRINUSE, EAGAIN, ECONNABORTED, ECONNRESET, EINTR, EIO, EMFILE, ENFILE, ENOLCK,
    ENOMEM, ENOSPC, EPERM, EPIPE,
};
use nix::errno::Errno;
use syscalls::Sysno;

use super::call::{Call, Object};

/// A failure of one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is not made, and gives this error number.
    Fails(i32),
    /// It is made, and gives this error number: close(2) releases the file descriptor whatever it says.
    FailsAfterwards(i32),
    /// It is made for half the length.
    Short,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fails(errno) | Self::FailsAfterwards(errno) => {
                write!(f, "{:?}", Errno::from_raw(*errno))
            }
            Self::Short => f.write_str("half"),
        }
    }
}

impl Fault {
    /// The failures that a call can have which is about to be made with `arguments`, by its manual page and by what file
    /// systems and drivers give beyond it. None for calls that cannot fail in a program without mistakes.
    pub(super) fn of(call: &Call, arguments: &[u64; 6]) -> Vec<Self> {
        let fails: &[i32] = match call.number {
            Sysno::read
            | Sysno::readv
            | Sysno::recvfrom
            | Sysno::write
            | Sysno::writev
            | Sysno::sendto
            | Sysno::pread64
            | Sysno::preadv
            | Sysno::preadv2
            | Sysno::pwrite64
            | Sysno::pwritev
            | Sysno::pwritev2 => return transfer(call, arguments),
            Sysno::close => return vec![Self::FailsAfterwards(EIO), Self::FailsAfterwards(EINTR)],
            Sysno::ioctl => &[ENOMEM, EINTR, EAGAIN],
            Sysno::open | Sysno::openat | Sysno::openat2 => &[EMFILE, ENOMEM, EINTR, EACCES, EIO],
            Sysno::stat
            | Sysno::lstat
            | Sysno::fstat
            | Sysno::newfstatat
            | Sysno::statx
            | Sysno::readlink
            | Sysno::readlinkat
            | Sysno::getdents64
            | Sysno::lseek => &[EIO, ENOMEM],
            Sysno::ftruncate | Sysno::fallocate => &[EIO, ENOSPC, EINTR],
            Sysno::fsync | Sysno::fdatasync => &[EIO, ENOSPC, EINTR],
            Sysno::mkdir | Sysno::mkdirat | Sysno::rename | Sysno::renameat | Sysno::renameat2 => {
                &[EIO, ENOSPC, EACCES]
            }
            Sysno::unlink | Sysno::unlinkat | Sysno::rmdir => &[EIO, EACCES],
            Sysno::flock => &[EINTR, ENOLCK],
            Sysno::fcntl => return fcntl(call.operation),
            // The runtime's signal stack: see the module's opening.
            Sysno::mmap if call.operation > libc::MAP_STACK as u64 => &[],
            Sysno::mprotect if arguments[2] == 0 => &[],
            Sysno::brk if arguments[0] == 0 => &[],
            Sysno::mmap | Sysno::mremap | Sysno::munmap | Sysno::mprotect | Sysno::brk => &[ENOMEM],
            Sysno::madvise => &[ENOMEM, EAGAIN],
            Sysno::clone | Sysno::clone3 => &[EAGAIN, ENOMEM],
            Sysno::eventfd2
            | Sysno::signalfd4
            | Sysno::epoll_create1
            | Sysno::pipe2
            | Sysno::dup
            | Sysno::socket
            | Sysno::socketpair
            | Sysno::timerfd_create => &[EMFILE, ENFILE, ENOMEM],
            // Removing cannot fail.
            Sysno::epoll_ctl if call.operation == libc::EPOLL_CTL_DEL as u64 => &[],
            Sysno::epoll_ctl => &[ENOMEM, ENOSPC],
            Sysno::epoll_wait | Sysno::epoll_pwait | Sysno::epoll_pwait2 => &[EINTR],
            Sysno::poll | Sysno::ppoll => &[EINTR, ENOMEM],
            Sysno::nanosleep | Sysno::clock_nanosleep => &[EINTR],
            Sysno::futex
                if [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET]
                    .map(|op| op as u64)
                    .contains(&call.operation) =>
            {
                &[EINTR, EAGAIN]
            }
            Sysno::bind => &[EADDRINUSE, EACCES, ENOMEM],
            Sysno::listen => &[EACCES, ENOMEM],
            Sysno::connect => &[EINTR, EAGAIN],
            Sysno::accept4 => &[ECONNABORTED, EMFILE, ENOMEM, EINTR],
            // Without a real-time signal's place in the queue (RLIMIT_SIGPENDING).
            Sysno::tgkill => &[EAGAIN],
            Sysno::getrandom => &[EINTR],
            Sysno::prlimit64 | Sysno::landlock_restrict_self | Sysno::seccomp => &[EPERM, ENOMEM],
            Sysno::landlock_create_ruleset | Sysno::landlock_add_rule => &[EMFILE, ENOMEM],
            _ => &[],
        };
        fails.iter().copied().map(Self::Fails).collect()
    }
}

fn fcntl(command: u64) -> Vec<Fault> {
    let fails: &[i32] = match command as i32 {
        libc::F_DUPFD_CLOEXEC | libc::F_DUPFD => &[EMFILE],
        libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => &[EINTR, ENOLCK],
        _ => &[],
    };
    fails.iter().copied().map(Fault::Fails).collect()
}

/// Reading and writing.
fn transfer(call: &Call, arguments: &[u64; 6]) -> Vec<Fault> {
    let writes = matches!(
        call.number,
        Sysno::write
            | Sysno::writev
            | Sysno::sendto
            | Sysno::pwrite64
            | Sysno::pwritev
            | Sysno::pwritev2
    );
    let fails: &[i32] = match (call.object, writes) {
        // A number that is added is refused only where the sum would be more than 64 bits hold.
        (Object::Event, true) => &[EINTR],
        (Object::Event, false) => &[EINTR, EAGAIN],
        (Object::Pipe, true) => &[EPIPE, EINTR, EAGAIN],
        (Object::Pipe, false) => &[EINTR, EAGAIN],
        (Object::Socket, true) => &[EPIPE, ECONNRESET, EINTR, EAGAIN],
        (Object::Socket, false) => &[ECONNRESET, EINTR, EAGAIN],
        (Object::Any | Object::File | Object::Device, true) => &[EIO, ENOSPC, EINTR],
        (Object::Any | Object::File | Object::Device, false) => &[EIO, EINTR],
    };
    let mut faults: Vec<Fault> = fails.iter().copied().map(Fault::Fails).collect();
    // The third argument is a length, or the number of parts, of which the tracer halves the first.
    if call.object != Object::Event && arguments[2] > 0 {
        faults.push(Fault::Short);
    }
    faults
}
