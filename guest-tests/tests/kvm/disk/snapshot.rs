//! Debian's kernel with two CPUs, a write load, changing memory, counters and microcode updates is saved, killed, and carried on
//! by another process, again and again.
//!
//! The guest itself finds what is wrong (`guest_tests::guest::Check`): processes on each CPU and between both compare memory with
//! checksums, clocks and counters with what they read before, and the microcode revision with what they loaded last. What is
//! compared here is what no process of the guest can know: counters from one process of the VMM to the next, and what is on the disk.

use std::ffi::OsStr;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Check, Folder, Guest, Plan, RestoredGuest, Step, complaint};
use guest_tests::settings;
use libtest_mimic::Failed;
use msr_vmm::AnsweredBy;
use msr_vmm::control_socket::{
    Client, Method, MsrParams, MsrResult, SnapshotParams, SnapshotResult,
};

use super::ext4;

/// How often the guest is saved and killed unless the environment variable `SNAPSHOTS` says.
const SNAPSHOTS: u64 = 4;
/// Microcode in Intel's way, so that it does not depend on the host's CPU. The addresses of updates are a process's own: with SMAP
/// nothing the kernel does may read there.
const CONFIG: &str = r#"
    vm.memory = 128
    vm.cpus = 2
    cpu.hide = ["smap"]
    [[msr.device]]
    type = "aperfmperf"
    [[msr.device]]
    type = "rapl"
    [[msr.device]]
    type = "microcode"
    vendor = "intel"
    signature = 0x606a6
    revision = 0x100
"#;
/// CPUID.1:EAX of the processor that updates are for.
const SIGNATURE: u32 = 0x606a6;
/// IA32_TIME_STAMP_COUNTER, IA32_MPERF and IA32_APERF.
const COUNTERS: [u32; 3] = [0x10, 0xe7, 0xe8];
/// A package's energy: AMD's PKG_ENERGY_STAT and Intel's MSR_PKG_ENERGY_STATUS. The guest's CPU is the host's. 32 bits of 15.3 uJ
/// last for 42 minutes of 26 W.
const ENERGY: [u32; 2] = [0xc001_029b, 0x611];
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
/// How long what a paused guest has written may take to reach the file that is its console.
const CONSOLE: Duration = Duration::from_millis(300);
/// How long a line that has begun may take to be complete.
const WHOLE_LINES: Duration = Duration::from_secs(10);
/// The longest that a process has the guest, in ms, once the guest was seen to go on.
const LONGEST: u64 = 500;

fn checks() -> Vec<Check> {
    let on = |cpu| Check::Cpus {
        cpus: vec![cpu],
        counters: COUNTERS.to_vec(),
        any_counters: ENERGY.to_vec(),
        microcode: Some(SIGNATURE),
    };
    let to_and_fro = Check::Cpus {
        cpus: vec![0, 1],
        counters: Vec::new(),
        any_counters: Vec::new(),
        microcode: None,
    };
    vec![Check::KernelLog, on(0), on(1), to_and_fro]
}

fn plan() -> Plan {
    let mut steps = vec![
        Step::load_module("msr"),
        Step::StartChecks { checks: checks() },
    ];
    steps.extend(ext4::plan().steps);
    Plan::new(steps)
}

/// How far the guest is: its records, and the passes of each process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    fsynced: u64,
    passes: Vec<u64>,
}

impl Progress {
    /// Nothing until there is a line of each.
    fn of(said: &str) -> Option<Self> {
        let cpus = checks();
        let cpus = cpus.iter().filter(|c| **c != Check::KernelLog);
        let passes =
            cpus.map(|check| ext4::last_number(said, &format!("checked {}", check.label())));
        Some(Self {
            fsynced: ext4::last_number(said, "fsynced")?,
            passes: passes.collect::<Option<_>>()?,
        })
    }

    fn is_beyond(&self, other: &Self) -> bool {
        self.fsynced > other.fsynced && self.passes.iter().zip(&other.passes).all(|(a, b)| a > b)
    }

    /// The later of both, for each.
    fn or_later(self, other: Option<Self>) -> Self {
        let Some(other) = other else {
            return self;
        };
        let passes = self.passes.iter().zip(&other.passes);
        Self {
            fsynced: self.fsynced.max(other.fsynced),
            passes: passes.map(|(a, b)| *a.max(b)).collect(),
        }
    }
}

/// What the guest has said without a complaint of its kernel or its processes.
fn without_complaint(said: &str) -> Result<(), Failed> {
    let wrong = said.lines().find(|line| line.starts_with("wrong: "));
    let refused = said.lines().find(|line| {
        line.starts_with("@ ") && !line.contains("\"Done\"") && !line.contains("\"Up\"")
    });
    match wrong.or(refused).or(complaint(said)) {
        Some(line) => Err(format!("{line} in:\n{said}").into()),
        None => Ok(()),
    }
}

/// What counts up, as the guest would read it: the counters and the microcode revision of both CPUs, and energy.
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
        for index in COUNTERS.into_iter().chain([IA32_BIOS_SIGN_ID]) {
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
    if values.len() == 2 * (COUNTERS.len() + 1) + 1 {
        Ok(values)
    } else {
        Err(format!("not one counter of energy: {values:x?}").into())
    }
}

/// The lowest microcode revision of both CPUs.
fn revision(counters: &[(u32, u64)]) -> Result<u64, Failed> {
    let revisions = counters
        .iter()
        .filter(|(index, _)| *index == IA32_BIOS_SIGN_ID);
    let lowest = revisions.map(|(_, value)| value >> 32).min();
    Ok(lowest.ok_or("no microcode revision")?)
}

/// The process that has the guest.
enum Process {
    First(Box<guest_tests::guest::RunningGuest>),
    Restored(RestoredGuest),
}

impl Process {
    fn kill(self) -> Result<String, Failed> {
        Ok(match self {
            Self::First(first) => first.kill()?,
            Self::Restored(restored) => restored.kill()?,
        })
    }
}

pub(super) fn a_guest_is_carried_on_by_another_process() -> Result<(), Failed> {
    let rounds = settings::number("SNAPSHOTS")?.unwrap_or(SNAPSHOTS);
    let seed = settings::seed()?;
    let folder = Folder::new()?;
    let image = ext4::make(&folder)?;
    let snapshots = folder.path("snapshots");
    fs::create_dir(&snapshots)?;
    let sandbox = [OsStr::new("--snapshots"), snapshots.as_os_str()];
    let off = [OsStr::new("--sandbox=off")];
    let socket = |round: u64| folder.path(&format!("socket{round}"));
    let first = Guest::new(CONFIG, plan())?
        .option("--disk", &image)
        .option("--control", socket(0))
        .option("--snapshots", &snapshots);
    let mut first = first.start()?;
    for expected in ["checked 0 ", "checked 1 ", "checked 0+1 ", "fsynced "] {
        first.wait_for(expected)?;
    }
    let first_seen = Instant::now();
    // The last line may not be complete yet.
    let mut progress = loop {
        without_complaint(&first.console())?;
        match Progress::of(&first.console()) {
            Some(progress) => break progress,
            None if first_seen.elapsed() > WHOLE_LINES => return Err(first.console().into()),
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut process = Process::First(Box::new(first));
    let begin_of_all = Instant::now();
    let (mut first_revision, mut last_revision) = (None, 0);
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        // Knuth's multiplicative hash: the same moments for the same seed.
        let moment = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        thread::sleep(Duration::from_millis(moment % LONGEST));
        let snapshot = snapshots.join(round.to_string());
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
        let said = process.kill()?;
        without_complaint(&said)?;
        progress = progress.or_later(Progress::of(&said));
        let begin = Instant::now();
        // Every other process is in the sandbox.
        let options = if round % 2 == 0 { &off[..] } else { &sandbox };
        let mut restored = RestoredGuest::with_options(&snapshot, socket(round + 1), options)?;
        let after = counters(&mut restored.client()?)?;
        if before
            .iter()
            .zip(&after)
            .any(|(before, after)| before > after)
        {
            return Err(format!("{before:x?} became {after:x?}").into());
        }
        first_revision.get_or_insert(revision(&before)?);
        last_revision = revision(&after)?;
        let now = restored.wait_for(&format!("more than {progress:?}"), |said| {
            let complains = without_complaint(said).is_err();
            let beyond = Progress::of(said).filter(|now| now.is_beyond(&progress));
            // With a complaint there is nothing more to wait for.
            beyond.or_else(|| complains.then(|| progress.clone()))
        })?;
        without_complaint(&restored.said()?)?;
        longest = longest.max(begin.elapsed());
        println!(
            "snapshot {round}: {} MiB in {took:?}; {} records fsynced before, {} {:?} after the start of the next process; \
             microcode {last_revision:#x}",
            saved.memory >> 20,
            progress.fsynced,
            now.fsynced,
            begin.elapsed()
        );
        progress = now;
        fs::remove_dir_all(&snapshot)?;
        process = Process::Restored(restored);
    }
    let said = process.kill()?;
    without_complaint(&said)?;
    let Progress { fsynced, passes } = progress.or_later(Progress::of(&said));
    let recovered = ext4::recovered_records(&image, &folder)?;
    if recovered < fsynced {
        return Err(format!("{recovered} of {fsynced} records are there").into());
    }
    let first_revision = first_revision.ok_or("no round")?;
    if rounds > 2 && last_revision <= first_revision {
        return Err(format!("no microcode update in between: {last_revision:#x}").into());
    }
    println!(
        "{rounds} processes in {:.0?}, {fsynced} records fsynced, {recovered} there, the file system checks clean; \
         {passes:?} passes of the guest's own checks; microcode {first_revision:#x} to {last_revision:#x}; \
         at most {longest:?} until everything goes on",
        begin_of_all.elapsed()
    );
    Ok(())
}
