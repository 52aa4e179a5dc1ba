//! Debian's kernel is saved, killed and carried on by another process while it boots, again and again.

use std::thread;
use std::time::Duration;

use guest_tests::guest::{Folder, Guest, Plan, RestoredGuest, Step, complaint};
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
/// How long each process has the guest, in ms: until its kernel has come a little further. Together they are less than any
/// boot takes.
const MOMENTS: [u64; 5] = [40, 80, 60, 120, 90];
fn debian_boots_from_process_to_process() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let plan = Plan::new([
        Step::load_module("msr"),
        Step::read_msr(0, MPERF),
        Step::read_msr(1, MPERF),
        Step::KernelLog,
    ]);
    let socket = |round: usize| folder.path(&format!("{round}.socket"));
    let first = Guest::new(CONFIG, plan)?.option("--control", socket(0));
    let mut first = Some(first.start()?);
    let mut guest: Option<RestoredGuest> = None;
    for (round, moment) in MOMENTS.into_iter().enumerate() {
        let mut client = match &mut guest {
            Some(guest) => guest.client()?,
            None => connected(&socket(0))?,
        };
        thread::sleep(Duration::from_millis(moment));
        client.call(&Method::Pause)?;
        let snapshot = folder.path(&format!("{round}.snapshot"));
        let params = SnapshotParams {
            folder: snapshot.clone(),
        };
        client.call(&Method::Snapshot(params))?;
        let said = match (first.take(), guest.take()) {
            (Some(first), _) => first.kill()?,
            (None, Some(guest)) => guest.kill()?,
            (None, None) => return Err("there is no process".into()),
        };
        if said.contains("@ ") {
            return Err(format!("it had booted before the snapshot: {said}").into());
        }
        guest = Some(RestoredGuest::start(&snapshot, socket(round + 1))?);
    }
    let (status, said) = guest.ok_or("no process")?.wait()?;
    if !status.success() || !said.contains("@ {\"Answer\":[3,") {
        return Err(format!("{status}: {said}").into());
    }
    // The answer is one line, with the log's line ends escaped.
    let log = said.replace("\\n", "\n");
    match complaint(&log) {
        Some(line) => Err(line.into()),
        None => Ok(()),
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
