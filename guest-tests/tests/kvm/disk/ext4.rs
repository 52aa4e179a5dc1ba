//! An ext4 file system with the records that a guest writes, made and looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guest_tests::assets;
use guest_tests::guest::{Folder, Plan, Step, intact_records};
use libtest_mimic::Failed;

const SIZE: u64 = 48 << 20;

/// A plan that mounts the first disk and writes records to it until the machine ends.
pub(super) fn plan() -> Plan {
    Plan::new([
        Step::load_module("virtio_mmio"),
        Step::load_module("virtio_blk"),
        Step::MountDisk {
            disk: "/dev/vda".to_owned(),
            at: "/disk".to_owned(),
        },
        Step::WriteRecords {
            directory: "/disk".to_owned(),
        },
    ])
}

/// The number after `word` in the last line that begins with it and is complete.
pub(super) fn last_number(console: &str, word: &str) -> Option<u64> {
    let complete = &console[..console.rfind('\n')?];
    let mut numbers = complete.lines().filter_map(|line| {
        let number = line.trim_end().strip_prefix(word)?.strip_prefix(' ')?;
        number.parse().ok()
    });
    numbers.next_back()
}

/// A disk image with an empty file system.
pub(super) fn make(folder: &Folder) -> Result<PathBuf, Failed> {
    let image = folder.path("ext4");
    fs::File::create(&image)?.set_len(SIZE)?;
    tool("mkfs.ext4", &["-q", "-F", "-b", "4096"], &image, 0)?;
    Ok(image)
}

/// Has a copy of an image recover from its journal, which it must need, and then checks it, which must
/// find nothing to repair. Returns how many records there are.
pub(super) fn recovered_records(image: &Path, folder: &Folder) -> Result<u64, Failed> {
    let copy = folder.path("recovered");
    fs::copy(image, &copy)?;
    // What a system does as it starts: the journal and the list of orphans, and no full check. Its
    // status is 1 when it changed something.
    let recovery = tool("e2fsck", &["-p"], &copy, 1)?;
    if !recovery.contains("recovering journal") {
        return Err(format!("it was not killed while mounted: {recovery}").into());
    }
    tool("e2fsck", &["-f", "-n"], &copy, 0)?;
    let records = folder.path("records");
    let dump = format!("dump /records {}", records.display());
    tool("debugfs", &["-R", &dump], &copy, 0)?;
    Ok(intact_records(&fs::read(records)?))
}

/// Runs a tool on an image, and returns what it said. A status greater than `worst` is a failure.
fn tool(name: &str, arguments: &[&str], image: &Path, worst: i32) -> Result<String, Failed> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(assets::file_system_tool(name)?)
        .args(arguments)
        .arg(image)
        .output()?;
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    if status.code().is_none_or(|code| code > worst) {
        return Err(format!("{name} {arguments:?}: {status}\n{said}").into());
    }
    Ok(said)
}
