//! Init of an initrd whose one task is the root file system on a disk: loads the modules that
//! [`ORDER_PATH`] lists, mounts the disk that `root=` on the kernel's command line names
//! (`/dev/vda` unless it does), and becomes that system's init.
//!
//! Without `rw` on the command line the mount is read-only, as an initrd's is: the system checks
//! the file system and mounts it for writing itself.

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::ORDER_PATH;
use guest_tests::init;

/// How long the disk may take to be there, once its driver is.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the new root is while it is not the root yet.
const NEW_ROOT: &str = "/root";

fn main() {
    // PID 1 has nowhere to go: the panic is a kernel panic, whose message is on the console.
    let Err(error) = run();
    panic!("cannot start from the disk: {error}");
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        init::mount(kind, at).map_err(|error| format!("cannot mount {kind} on {at}: {error}"))?;
    }
    for module in fs::read_to_string(ORDER_PATH)?.lines() {
        init::load_module(Path::new(module))
            .map_err(|error| format!("cannot load {module}: {error}"))?;
    }
    let parameters = fs::read_to_string("/proc/cmdline")?;
    let mut parameters = parameters.split_whitespace();
    let writable = parameters.clone().any(|parameter| parameter == "rw");
    let disk = parameters
        .find_map(|parameter| parameter.strip_prefix("root="))
        .unwrap_or("/dev/vda");
    wait_for(Path::new(disk))?;

    let read_only = if writable { 0 } else { libc::MS_RDONLY };
    fs::create_dir_all(NEW_ROOT)?;
    init::mount_from(disk, NEW_ROOT, "ext4", read_only)
        .map_err(|error| format!("cannot mount {disk}: {error}"))?;
    for directory in ["/dev", "/proc", "/sys"] {
        init::mount_from(
            directory,
            &format!("{NEW_ROOT}{directory}"),
            "",
            libc::MS_MOVE,
        )
        .map_err(|error| format!("cannot move {directory}: {error}"))?;
    }
    // The initrd stays below the new root: a megabyte that no one can reach.
    std::env::set_current_dir(NEW_ROOT)?;
    init::mount_from(".", "/", "", libc::MS_MOVE)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")?;
    Err(Command::new("/sbin/init").exec().into())
}

fn wait_for(disk: &Path) -> Result<(), String> {
    let begin = Instant::now();
    while !disk.exists() {
        if begin.elapsed() > TIMEOUT {
            return Err(format!("there is no {}", disk.display()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
