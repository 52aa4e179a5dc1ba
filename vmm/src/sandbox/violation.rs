//! The report of a system call that a thread's filter does not let through.
//!
//! The filter has the kernel send SIGSYS to the thread instead of executing the call. The handler writes one line and
//! ends the process, by system calls that every filter lets through and without memory of its own.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::OnceLock;

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::policy::Role;

/// The exit status: a fault of the host's side.
const STATUS: libc::c_int = 1;
/// `SYS_SECCOMP`: a filter sent the signal (include/uapi/asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

thread_local! {
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
    static NAME: Cell<[u8; 16]> = const { Cell::new([0; 16]) };
}

static LAST: OnceLock<fn()> = OnceLock::new();

/// Has violations reported on standard error, after which the process ends with status 1. `last` is called before that,
/// in the signal handler: it may restore the terminal by TCSETS on standard input, and must do nothing else.
///
/// # Errors
///
/// Where the handler of SIGSYS cannot be set.
pub fn report_violations(last: fn()) -> io::Result<()> {
    // The first one stays; there is one command a process.
    let _ = LAST.set(last);
    register_signal_handler(libc::SIGSYS, violated).map_err(io::Error::from)
}

/// Keeps what the handler says of the calling thread.
pub(super) fn name_thread(role: Role) {
    ROLE.set(Some(role));
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes to the pointer.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr(), 0, 0, 0) };
    NAME.set(name);
}

/// The beginning of `siginfo_t` for SIGSYS on 64-bit Linux (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct SigsysInfo {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    call_address: *const libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

extern "C" fn violated(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler a valid siginfo_t, which is larger than its part read here.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    if let Some(last) = LAST.get() {
        last();
    }
    let mut line = Line::default();
    // It cannot fail: a line too long is cut off.
    let _ = if info.code == SYS_SECCOMP {
        describe(&mut line, info.call)
    } else {
        write!(line, "msr-vmm: somebody sent SIGSYS; the VM ends")
    };
    line.say_and_exit()
}

/// Ends the process as after a violation, for another reason.
pub(super) fn end(why: fmt::Arguments<'_>) -> ! {
    if let Some(last) = LAST.get() {
        last();
    }
    let mut line = Line::default();
    // It cannot fail: a line too long is cut off.
    let _ = line.write_fmt(why);
    line.say_and_exit()
}

fn describe(line: &mut Line, call: libc::c_int) -> fmt::Result {
    let name = NAME.get();
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(16);
    let name = str::from_utf8(&name[..length]).unwrap_or("?");
    let call_name = usize::try_from(call).ok().and_then(Sysno::new);
    let call_name = call_name.map_or("unknown", |call| call.name());
    write!(
        line,
        "msr-vmm: sandbox violation: thread {name} made system call {call} ({call_name}), which its filter"
    )?;
    if let Some(role) = ROLE.get() {
        write!(line, " ({role})")?;
    }
    write!(
        line,
        " does not allow. The VM ends. This is a bug of the sandbox or an attack: please report this line, and what \
         `msr-vmm run --print-config` prints. --sandbox=off runs the guest without it"
    )
}

/// Text in memory of its own.
struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 512],
            length: 0,
        }
    }
}

impl Line {
    /// Says this line, and ends the process.
    fn say_and_exit(&mut self) -> ! {
        // The last byte is free: `write_str` leaves it.
        self.bytes[self.length] = b'\n';
        // SAFETY: `bytes` has one byte more than the text, and neither call returns to anything that could mind.
        unsafe {
            libc::write(
                libc::STDERR_FILENO,
                self.bytes.as_ptr().cast(),
                self.length + 1,
            );
            libc::_exit(STATUS)
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays for the end of the line.
        let room = self.bytes.len() - 1 - self.length;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
        Ok(())
    }
}
