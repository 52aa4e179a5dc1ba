//! Debian's kernel is saved, killed and carried on by another process while it boots, again and again, at random moments.

use std::fs;
use std::thread;
use std::time::Duration;

use guest_tests::guest::{Folder, Guest, Plan, RestoredGuest, RunningGuest, Step, complaint};
use guest_tests::settings;
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, Method, SnapshotParams};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("snapshot_boot": debian_boots_from_process_to_process)
}

/// Two CPUs, and counters that must not run backwards from process to process.
const CONFIG: &str = r#"
    vm.cpus = 2
    vm.memory = 192
    [[msr.device]]
    type = "aperfmperf"
"#;
const MPERF: u32 = 0xe7;
/// How many snapshots there are at the least unless the environment variable `SNAPSHOTS` says.
const SNAPSHOTS: u64 = 5;
/// How many of them are of one boot at the most. The last process has the guest until its end.
const MOST_OF_A_BOOT: u64 = 8;
/// The longest that another process has it, in ms.
const LONGEST: u64 = 250;

/// Moments that look random, and are the same for the same seed.
struct Moments(u64);

impl Moments {
    fn new() -> Result<Self, Failed> {
        Ok(Self(settings::seed()?))
    }

    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_add(1);
        let random = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Duration::from_millis(random % LONGEST)
    }
}

fn debian_boots_from_process_to_process() -> Result<(), Failed> {
    let snapshots = settings::number("SNAPSHOTS")?.unwrap_or(SNAPSHOTS);
    let mut moments = Moments::new()?;
    let (mut boots, mut done) = (0, 0);
    while done < snapshots {
        done += boot(&mut moments, MOST_OF_A_BOOT.min(snapshots - done))?;
        boots += 1;
    }
    println!("{done} snapshots in {boots} boots of two CPUs");
    Ok(())
}

/// The process that has the guest.
enum Process {
    First(Box<RunningGuest>),
    Restored(RestoredGuest),
}

/// Boots the guest through processes, each for a moment, until its init runs or there have been `most` snapshots. Gives how many there
/// were.
fn boot(moments: &mut Moments, most: u64) -> Result<u64, Failed> {
    let folder = Folder::new()?;
    let plan = Plan::new([
        Step::load_module("msr"),
        Step::read_msr(0, MPERF),
        Step::read_msr(1, MPERF),
        Step::KernelLog,
    ]);
    let socket = |round: u64| folder.path(&format!("{round}.socket"));
    let first = Guest::new(CONFIG, plan)?
        .option("--control", socket(0))
        .option("--snapshots", folder.path(""));
    let mut process = Process::First(Box::new(first.start()?));
    let mut console = String::new();
    let mut round = 0;
    while round < most {
        let client = match &mut process {
            Process::First(_) => connected(&socket(0)),
            Process::Restored(restored) => Ok(restored.client()?),
        };
        let mut client = client?;
        thread::sleep(moments.next());
        // A guest that is this far is left to its end: what is saved here is a boot.
        let said = match &process {
            Process::First(first) => first.console(),
            Process::Restored(restored) => restored.said()?,
        };
        if said.contains("@ ") {
            break;
        }
        let snapshot = folder.path(&format!("{round}.snapshot"));
        let params = SnapshotParams {
            folder: snapshot.clone(),
        };
        // A guest that has ended meanwhile is judged by its end.
        if client.call(&Method::Pause).is_err() || client.call(&Method::Snapshot(params)).is_err() {
            break;
        }
        console += &match process {
            Process::First(first) => first.kill()?,
            Process::Restored(restored) => restored.kill()?,
        };
        round += 1;
        let mut restored = RestoredGuest::start(&snapshot, socket(round))?;
        // It answers once it has what it needs of the snapshot.
        restored.client()?.call(&Method::Status)?;
        fs::remove_dir_all(&snapshot)?;
        process = Process::Restored(restored);
    }
    match process {
        Process::First(first) => {
            let outcome = first.wait()?;
            console += &outcome.console;
            if !outcome.status.success() {
                return Err(format!("{}: {console}", outcome.status).into());
            }
        }
        Process::Restored(restored) => {
            let (status, said) = restored.wait()?;
            console += &said;
            if !status.success() {
                return Err(format!("{status}: {console}").into());
            }
        }
    }
    // What was written between a pause and the kill may be lost, and the answers may be among it, but for the last.
    if !console.contains("@ {\"Answer\":[3,") {
        return Err(format!("the guest did not get to its end: {console}").into());
    }
    // The answer is one line, with the log's line ends escaped.
    let log = console.replace("\\n", "\n");
    match complaint(&log) {
        Some(line) => Err(line.into()),
        None => Ok(round),
    }
}

/// A client of the first process, which has just been started.
fn connected(socket: &std::path::Path) -> Result<Client, Failed> {
    for _ in 0..4000 {
        if let Ok(client) = Client::connect(socket) {
            return Ok(client);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(Client::connect(socket)?)
}
