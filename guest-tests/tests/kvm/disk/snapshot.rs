//! Debian's kernel with two CPUs and a write load is saved, killed, and carried on by another process, again and again.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, Guest, RestoredGuest, complaint};
use libtest_mimic::Failed;
use msr_vmm::AnsweredBy;
use msr_vmm::control_socket::{
    Client, Method, MsrParams, MsrResult, SnapshotParams, SnapshotResult,
};

use super::{ext4, kill};

/// How often the guest is saved and killed unless the environment variable `SNAPSHOTS` says.
const SNAPSHOTS: u64 = 4;
const CONFIG: &str = r#"
    vm.memory = 128
    vm.cpus = 2
    [[msr.device]]
    type = "aperfmperf"
    [[msr.device]]
    type = "rapl"
"#;
/// IA32_TIME_STAMP_COUNTER, IA32_MPERF and IA32_APERF.
const COUNTERS: [u32; 3] = [0x10, 0xe7, 0xe8];
/// A package's energy: AMD's PKG_ENERGY_STAT and Intel's MSR_PKG_ENERGY_STATUS. The guest's CPU is the host's.
const ENERGY: [u32; 2] = [0xc001_029b, 0x611];
/// How long what a paused guest has written may take to reach the file that is its console.
const CONSOLE: Duration = Duration::from_millis(300);

/// What the guest has said without a complaint.
fn without_complaint(said: String) -> Result<String, Failed> {
    match complaint(&said) {
        Some(line) => Err(format!("{line} in:\n{said}").into()),
        None => Ok(said),
    }
}

/// What counts up, as the guest would read it: the counters of both CPUs, and energy.
fn counters(client: &mut Client) -> Result<Vec<(u32, u64)>, Failed> {
    let mut read = |index: u32, vcpu| -> Result<MsrResult, Failed> {
        let params = MsrParams {
            msr: format!("{index:#x}"),
            vcpu,
        };
        Ok(client.ask(&Method::ReadMsr(params))?)
    };
    let mut values = Vec::new();
    for vcpu in 0..2 {
        for index in COUNTERS {
            values.push((index, read(index, vcpu)?.value.ok_or("#GP")?.0));
        }
    }
    for index in ENERGY {
        let result = read(index, 0)?;
        // KVM has an answer of its own to the other vendor's.
        if result.by == AnsweredBy::Device("rapl".to_owned()) {
            values.push((index, result.value.ok_or("#GP")?.0));
        }
    }
    if values.len() == 2 * COUNTERS.len() + 1 {
        Ok(values)
    } else {
        Err(format!("not one counter of energy: {values:x?}").into())
    }
}

pub(super) fn a_guest_is_carried_on_by_another_process() -> Result<(), Failed> {
    let rounds = kill::from_environment("SNAPSHOTS")?.unwrap_or(SNAPSHOTS);
    let folder = Folder::new()?;
    let image = ext4::make(&folder)?;
    let socket = |round: u64| folder.path(&format!("socket{round}"));
    let first = Guest::new(CONFIG, ext4::plan())?
        // Warnings as well.
        .kernel_parameters("loglevel=5")
        .option("--disk", &image)
        .option("--control", socket(0));
    let mut first = first.start()?;
    first.wait_for("fsynced ")?;
    let mut fsynced = ext4::last_number(&first.console(), "fsynced").unwrap_or(0);
    let (mut first, mut guest) = (Some(first), None::<RestoredGuest>);
    for round in 0..rounds {
        thread::sleep(Duration::from_millis(round * 137 % 500));
        let snapshot = folder.path(&format!("snapshot{round}"));
        let mut client = Client::connect(&socket(round))?;
        client.call(&Method::Pause)?;
        let before = counters(&mut client)?;
        thread::sleep(CONSOLE);
        let params = SnapshotParams {
            folder: snapshot.clone(),
        };
        let begin = Instant::now();
        let saved: SnapshotResult = client.ask(&Method::Snapshot(params))?;
        let took = begin.elapsed();
        let said = match (first.take(), guest.take()) {
            (Some(first), _) => first.kill()?,
            (None, Some(restored)) => restored.kill()?,
            (None, None) => return Err("there is no process".into()),
        };
        let said = without_complaint(said)?;
        fsynced = fsynced.max(ext4::last_number(&said, "fsynced").unwrap_or(0));
        let begin = Instant::now();
        let mut restored = RestoredGuest::start(&snapshot, socket(round + 1))?;
        let after = counters(&mut restored.client()?)?;
        if before
            .iter()
            .zip(&after)
            .any(|(before, after)| before > after)
        {
            return Err(format!("{before:x?} became {after:x?}").into());
        }
        let now = restored.wait_for(&format!("more than {fsynced} records"), |said| {
            ext4::last_number(said, "fsynced").filter(|now| *now > fsynced)
        })?;
        println!(
            "snapshot {round}: {} MiB in {took:?}; {fsynced} records fsynced before, {now} {:?} after the start of the \
             next process",
            saved.memory >> 20,
            begin.elapsed()
        );
        fsynced = now;
        fs::remove_dir_all(&snapshot)?;
        guest = Some(restored);
    }
    let said = without_complaint(guest.ok_or("no round")?.kill()?)?;
    let fsynced = ext4::last_number(&said, "fsynced").unwrap_or(fsynced);
    let recovered = ext4::recovered_records(&image, &folder)?;
    if recovered < fsynced {
        return Err(format!("{recovered} of {fsynced} records are there").into());
    }
    println!(
        "{rounds} processes, {fsynced} records fsynced, {recovered} there, the file system checks clean"
    );
    Ok(())
}
