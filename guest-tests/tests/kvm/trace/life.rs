//! Traces of guests whose VMM is killed, and of guests that another process records.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{End, Folder, Guest, Plan, Step};
use libtest_mimic::{Failed, Trial};
use msr_trace::{Answerer, Ending, Kind};

use super::{open, records};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test(
            "trace::a_killed_vmms_trace_reads_up_to_its_last_block",
            killed,
        ),
        Trial::test(
            "trace::another_process_records_a_vm_by_its_pid",
            recorded_by_pid,
        ),
    ]
}

fn killed() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let plan = Plan::new([Step::load_module("msr")]).ending(End::Idle);
    let guest = Guest::new("", plan)?
        .option("--trace", &path)
        .argument("--observe")
        .start()?;
    // In mid-boot: Debian's cloud kernel makes some ninety accesses that are seen before its init.
    let started = Instant::now();
    while open(&path).map_or(0, |trace| trace.len()) < 30 {
        if started.elapsed() > Duration::from_secs(120) {
            return Err(format!("no trace: {}", guest.console()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let console = guest.kill()?;
    println!("the init had been reached: {}", console.contains("\"Up\""));
    let mut trace = open(&path)?;
    assert_ne!(trace.ending(), Ending::Whole);
    assert_eq!(trace.total_lost(), 0);
    let seen = records(&mut trace)?;
    assert_eq!(seen.len() as u64, trace.len());
    let span = seen.last().map_or(0, |last| last.time) - seen.first().map_or(0, |first| first.time);
    println!(
        "{} records over {} ms, {:?}",
        seen.len(),
        span / 1_000_000,
        trace.ending()
    );
    assert!(seen.len() >= 30);
    Ok(())
}

fn recorded_by_pid() -> Result<(), Failed> {
    /// IA32_MISC_ENABLE, which KVM answers.
    const KNOWN: u32 = 0x1a0;
    const TIMES: u32 = 300;
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let steps = [
        Step::load_module("msr"),
        Step::Print {
            text: "recorded from here".to_owned(),
        },
        Step::Sleep { milliseconds: 3000 },
        Step::ReadMsrOnAll {
            index: KNOWN,
            times: TIMES,
        },
    ];
    let mut guest = Guest::new("", Plan::new(steps))?.start()?;
    guest.wait_for("recorded from here")?;
    let recorder = Command::new(assets::msr_vmm()?)
        .args([Path::new("trace"), Path::new("record"), Path::new("--pid")])
        .arg(guest.pid().to_string())
        .args([Path::new("-o"), &path])
        .stderr(Stdio::piped())
        .spawn()?;
    let outcome = guest.wait()?;
    let said = recorder.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    if outcome.status.code() != Some(0) {
        return Err(format!("{}: {}", outcome.status, outcome.stderr).into());
    }
    outcome.report()?;
    let mut trace = open(&path)?;
    assert_eq!(
        (trace.ending(), trace.total_lost()),
        (Ending::Whole, 0),
        "{said}"
    );
    let loops = records(&mut trace)?;
    let loops: Vec<_> = loops
        .iter()
        .filter(|r| r.index == KNOWN && r.kind == Kind::Read && r.answerer == Answerer::Kernel)
        .collect();
    println!("{} reads of {KNOWN:#x}; {}", loops.len(), said.trim());
    assert_eq!(loops.len(), TIMES as usize, "{said}");
    assert!(
        loops
            .iter()
            .all(|r| r.vcpu == 0 && r.rip.is_some() && r.value == loops[0].value)
    );
    Ok(())
}
