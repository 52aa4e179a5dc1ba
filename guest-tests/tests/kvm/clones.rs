//! VMs of one snapshot are told that they are clones, and reseed their random numbers. Debian 13's cloud kernel has the driver of the
//! generation identifier built in; Debian 12's has none.

use guest_tests::assets;
use guest_tests::guest::{Answer, Folder, Guest, Line, Plan, RestoredGuest, Step, complaint};
use guest_tests::kernel::Release;
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, Method, SnapshotParams};

/// This module's tests, which are run with those of other Linux guests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        format!(
            "linux::{}::clones_of_a_snapshot_reseed_their_random_numbers",
            Release::Trixie
        ),
        clones_reseed,
    )]
}

const CLONES: usize = 3;
/// What Linux says when it has reseeded (drivers/char/random.c).
const RESEEDED: &str = "crng reseeded due to virtual machine fork";
const WAITS: &str = "waits to be cloned";
/// How many random bytes a clone tells.
const COUNT: usize = 32;

fn plan() -> Plan {
    Plan::new([
        Step::Print {
            text: WAITS.to_owned(),
        },
        Step::AwaitLog {
            text: RESEEDED.to_owned(),
            milliseconds: 60_000,
        },
        Step::ReadBytes {
            path: "/dev/urandom".to_owned(),
            count: COUNT,
        },
        Step::KernelLog,
    ])
}

fn clones_reseed() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let kernel = assets::cloud_kernel(Release::Trixie)?;
    let guest = Guest::with_kernel(&kernel, "vm.memory = 128\nvm.cpus = 2", plan())?;
    let guest = guest.option("--control", folder.path("socket"));
    let mut first = guest.option("--snapshots", folder.path("")).start()?;
    first.wait_for(WAITS)?;
    let mut client = Client::connect(&folder.path("socket"))?;
    client.call(&Method::Pause)?;
    let snapshot = folder.path("snapshot");
    client.call(&Method::Snapshot(SnapshotParams {
        folder: snapshot.clone(),
    }))?;
    let said = first.kill()?;
    if said.contains(RESEEDED) {
        return Err(format!("it was no clone: {said}").into());
    }
    let mut numbers: Vec<String> = Vec::new();
    for clone in 0..CLONES {
        let socket = folder.path(&format!("socket{clone}"));
        let (status, said) = RestoredGuest::start(&snapshot, socket)?.wait()?;
        let answers = answers(&said);
        let [Answer::Done, Answer::Text(random), Answer::Text(log)] = &answers[..] else {
            return Err(format!("{status}: {answers:?}\n{said}").into());
        };
        if !status.success() || random.len() != 2 * COUNT || numbers.contains(random) {
            return Err(format!("{status}: {random} after {numbers:?}").into());
        }
        if let Some(line) = complaint(log) {
            return Err(format!("{line} in:\n{log}").into());
        }
        let line = log.lines().find(|line| line.contains(RESEEDED));
        println!("clone {clone}: {}; {random}", line.unwrap_or_default());
        numbers.push(random.clone());
    }
    Ok(())
}

/// The answers that a restored guest gives, after those of before it was saved.
fn answers(said: &str) -> Vec<Answer> {
    let lines = said.lines().filter_map(|line| {
        let json = line.trim_end().strip_prefix("@ ")?;
        match serde_json::from_str(json) {
            Ok(Line::Answer(1.., answer)) => Some(answer),
            _ => None,
        }
    });
    lines.collect()
}
