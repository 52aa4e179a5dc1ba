//! A Linux guest whose root does its worst on two CPUs, while a client asks, pauses, replaces filters and saves.
//!
//! `HOSTILE_SECONDS=` says how long, and `SEED=` what it does.

use std::fs;
use std::time::{Duration, Instant};

use guest_tests::guest::{Answer, End, Guest, Plan, RESERVED, Step};
use guest_tests::random::Random;
use guest_tests::settings;
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, FilterText, Method, SnapshotParams};
use msr_vmm::snapshot::Snapshot;

use super::control::ensure;
use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("linux_storm": a_root_that_does_its_worst_hurts_nobody_but_itself)
}

/// In seconds, unless `HOSTILE_SECONDS` says.
const SHORT: u64 = 4;
/// The most lines that the VMM may log of it.
const LOG_LIMIT: usize = 200;
/// A register that the storm does not reach, and what it has.
const MARK: u32 = 0x4000_3f00;
const VALUE: u64 = 0x5eed;

const CONFIG: &str = r#"
    vm.cpus = 2
    vm.entropy = true
    [[msr.device]]
    type = "microcode"
    signature = 0x606a6
    [[msr.device]]
    type = "rapl"
    [[msr.device]]
    type = "scratch"
    msr = "0x40003f00"
"#;

const FILTERS: [&str; 2] = [
    "default = \"allow\"",
    "[[rule]]\nmsrs = [\"0x600-0x6ff\", \"0xc0010000-0xc0011fff\"]\naccess = \"rw\"\nverdict = \"deny\"",
];

fn a_root_that_does_its_worst_hurts_nobody_but_itself() -> Result<(), Failed> {
    let seconds = settings::number("HOSTILE_SECONDS")?.unwrap_or(SHORT);
    let seed = settings::seed()?;
    let plan = Plan::new([
        Step::load_module("msr"),
        Step::write_msr(0, MARK, VALUE),
        Step::Storm {
            seed,
            milliseconds: seconds * 1000,
        },
        Step::read_msr(0, MARK),
    ])
    .ending(End::Reboot);
    let guest = Guest::new(CONFIG, plan)?;
    let disk = guest.folder().file("disk", vec![0; 1 << 20])?;
    let socket = guest.folder().path("socket");
    let snapshots = guest.folder().path("snapshots");
    fs::create_dir(&snapshots)?;
    let mut running = guest
        .option("--disk", disk)
        .option("--control", &socket)
        .option("--sandbox", "on")
        .option("--snapshots", &snapshots)
        .kernel_parameters(&format!("memmap={:#x}${:#x}", RESERVED.1, RESERVED.0))
        .limit(Duration::from_secs(240 + 2 * seconds))
        .start()?;
    running.wait_for("@ {\"Answer\":[1,")?;

    let mut client = Client::connect(&socket)?;
    let mut random = Random::new(seed);
    let begin = Instant::now();
    let (mut longest, mut asked, mut saved) = (Duration::ZERO, 0, 0);
    let mut save_at = begin + Duration::from_secs(1);
    // The guest does nothing between the storm's end and its own that could be waited for.
    while !running.console().contains("@ {\"Answer\":[2,") {
        let before = Instant::now();
        let asking = match random.below(4) {
            0 => client
                .call(&Method::Pause)
                .and_then(|_| client.call(&Method::Resume)),
            1 => client.call(&Method::FilterSet(FilterText {
                toml: random.of(&FILTERS).to_owned(),
            })),
            2 => client.call(&Method::Stats),
            _ => client.call(&Method::Status),
        };
        match asking {
            Ok(_) => asked += 1,
            // The guest may end at any moment; what it ended with is looked at below.
            Err(_) if begin.elapsed() > Duration::from_secs(seconds) => break,
            Err(error) => return Err(format!("{error}; {:?}", running.wait()?).into()),
        }
        longest = longest.max(before.elapsed());
        if Instant::now() > save_at && begin.elapsed() < Duration::from_secs(seconds) {
            save_at = Instant::now() + Duration::from_secs(10);
            let folder = snapshots.join("one");
            client.call(&Method::Snapshot(SnapshotParams {
                folder: folder.clone(),
            }))?;
            Snapshot::read(&folder)?;
            fs::remove_dir_all(folder)?;
            saved += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let outcome = running.wait()?;
    ensure(outcome.status.success(), (outcome.status, &outcome.stderr))?;
    let report = outcome.report()?;
    let Some(Answer::Values(counts)) = report.answer(2) else {
        return Err(format!("{:?}", report.answer(2)).into());
    };
    // Not what it was asked of its vCPUs while the guest was silent.
    let log = || outcome.stderr.lines().filter(|line| line.starts_with('['));
    println!(
        "accesses by kind (MSR reads and writes, ports, device memory, queues): {counts:?}; \
         {asked} answers, the longest after {longest:?}; saved {saved} times; {} lines of log",
        log().count()
    );
    ensure(
        counts.len() == 5 && counts.iter().all(|(_, count)| *count > 0),
        counts,
    )?;
    ensure(asked > 0 && saved > 0, (asked, saved))?;
    ensure(report.value(3) == Some(VALUE), report.answer(3))?;
    ensure(log().count() <= LOG_LIMIT, &outcome.stderr)
}
