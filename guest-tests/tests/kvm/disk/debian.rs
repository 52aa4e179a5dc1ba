//! A Debian system on a disk, typed to on its console.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_tests::assets;
use guest_tests::backend;
use guest_tests::guest::{BootError, Folder, Guest, Outcome, RunningGuest};
use libtest_mimic::Failed;

const PROMPT: &str = "guest:~#";

pub(super) fn keeps_what_was_written() -> Result<(), Failed> {
    let (folder, disk) = disk()?;
    let readonly = folder.file("readonly", [7; 4096])?;
    let mut guest = boot(&disk, &readonly)?;
    log_in(&mut guest)?;
    run(
        &mut guest,
        "mount | grep ' / '",
        "/dev/vda on / type ext4 (rw",
    )?;
    run(&mut guest, "cat /sys/block/vda/serial", "the-disk")?;
    run(
        &mut guest,
        "dd if=/dev/zero of=/dev/vdb count=1 conv=fsync; echo dd-$?",
        "dd-1",
    )?;
    run(
        &mut guest,
        "seq 100000 >numbers; sync; echo sync-$?",
        "sync-0",
    )?;
    power_off(guest)?;
    if std::fs::read(&readonly)? != [7; 4096] {
        return Err("the read-only disk was written".into());
    }

    let mut guest = boot(&disk, &readonly)?;
    log_in(&mut guest)?;
    // Of what seq wrote.
    run(
        &mut guest,
        "md5sum numbers",
        "dea9193b768319cbb4ff1a137ac03113",
    )?;
    power_off(guest)?;
    Ok(())
}

/// A disk that may be written to: in the outer VM the one there is, elsewhere a copy.
fn disk() -> Result<(Folder, PathBuf), Failed> {
    let folder = Folder::new()?;
    let image = assets::rootfs()?;
    if backend::in_outer_vm() {
        return Ok((folder, image));
    }
    let copy = folder.path("disk");
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([&image, &copy])
        .status()?;
    if !status.success() {
        return Err(format!("cp: {status}").into());
    }
    Ok((folder, copy))
}

fn boot(disk: &Path, readonly: &Path) -> Result<RunningGuest, Failed> {
    let guest = Guest::with_root_disk(&assets::kernel()?)?
        .option("--disk", format!("{},serial=the-disk", disk.display()))
        .option("--disk", format!("{},ro", readonly.display()))
        .option("--memory", "512");
    Ok(guest.start()?)
}

fn log_in(guest: &mut RunningGuest) -> Result<(), BootError> {
    guest.wait_for("guest login: ")?;
    guest.enter("root")?;
    guest.wait_for("Password: ")?;
    guest.enter("root")?;
    guest.wait_for(PROMPT)
}

fn run(guest: &mut RunningGuest, command: &str, expected: &str) -> Result<(), BootError> {
    guest.enter(command)?;
    guest.wait_for(expected)
}

fn power_off(mut guest: RunningGuest) -> Result<Outcome, Failed> {
    guest.enter("poweroff")?;
    let outcome = guest.wait()?;
    if outcome.status.code() != Some(0) {
        return Err(format!("{}: {}", outcome.status, outcome.console).into());
    }
    Ok(outcome)
}
