//! What the process and its threads are entitled to.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

/// The most files that are open at a time: a VM with all its disks and 128 vCPUs has about 300.
pub(super) const MOST_FILES: u64 = 1024;

/// A user and a group, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's ID.
    pub uid: u32,
    /// The group's ID.
    pub gid: u32,
}

/// Text that names no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no user: write UID:GID, two numbers (65534:65534)")]
pub struct ParseUserError(String);

impl FromStr for User {
    type Err = ParseUserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once(':').and_then(|(uid, gid)| {
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            // -1 means "as it is" to the system calls.
            (uid != u32::MAX && gid != u32::MAX).then_some(Self { uid, gid })
        });
        numbers.ok_or_else(|| ParseUserError(text.to_owned()))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(super) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: this prctl takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Lowers what the process may use of the host.
pub(super) fn limit_resources() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is what both calls expect, and they keep no pointer to it.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_max = limit.rlim_max.min(MOST_FILES);
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))
    }
}

/// Keeps the allocator of the GNU C library from opening files, on whatever thread is the first to make it: the number of CPUs
/// (/sys/devices/system/cpu/online) when there are more than 8 arenas, and /proc/sys/vm/overcommit_memory when one that is not the
/// first is to shrink. New threads share the first arena, and what is free at its end is given back by malloc_trim(3) alone.
pub(super) fn keep_allocator_from_files() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes numbers, and has no effect on what is allocated already.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

pub(super) fn leave_network() -> io::Result<()> {
    // SAFETY: `unshare` takes a number.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

pub(super) fn change_root(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end in a zero byte and outlive the calls.
    unsafe {
        check(libc::chroot(path.as_ptr()))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

/// Changes user and group of all threads, and gives up all other groups.
pub(super) fn become_user(user: User) -> io::Result<()> {
    let User { uid, gid } = user;
    // SAFETY: no group is read through the null pointer, and the others take numbers. The C library has every thread make
    // the same change.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

/// `struct __user_cap_header_struct` (include/uapi/linux/capability.h).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two sets of 32 capabilities each.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Empties the calling thread's capability sets: effective, permitted, inheritable and, with these, ambient. With no new
/// privileges in force, the bounding set has no meaning any more.
pub(super) fn drop_capabilities() -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // Two `struct __user_cap_data_struct`: effective, permitted, inheritable.
    let none = [[0u32; 3]; 2];
    // SAFETY: header and data are laid out as version 3 has them, and the kernel keeps no pointer to them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) };
    check(result as libc::c_int)
}
