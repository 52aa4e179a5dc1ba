//! `make demo`: boots Debian's kernel under msr-vmm with `resources/demo.toml`; the guest shows
//! MSRs next to who answered them. Runs in the outer VM where the host's KVM cannot boot Linux.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use guest_tests::assets;
use guest_tests::backend;
use guest_tests::guest::{Guest, Plan, Step};
use guest_tests::pack;

const CONFIG: &str = include_str!("../../../resources/demo.toml");

fn main() -> ExitCode {
    if let Some(status) = backend::run_elsewhere(&[], pack::basics) {
        return status;
    }
    match boot() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A row of the guest's table: index, name, what to write first, and who answers.
type Row = (u32, &'static str, Option<u64>, &'static str);

const ROWS: &[Row] = &[
    (0x17, "IA32_PLATFORM_ID", None, "userspace: table"),
    (0xce, "MSR_PLATFORM_INFO", None, "userspace: table"),
    (
        0xc001_1f00,
        "(scratch register)",
        Some(0x1234_5678_9abc_def0),
        "userspace: scratch",
    ),
    (0x1b, "IA32_APIC_BASE", None, "the kernel: KVM"),
    (0x3fff, "(reserved)", None, "default: #GP"),
];

fn plan() -> Plan {
    let print = |text: &str| Step::Print {
        text: text.to_owned(),
    };
    let rows = ROWS
        .iter()
        .map(|&(index, name, write, answered_by)| Step::ShowMsr {
            index,
            name: name.to_owned(),
            write,
            answered_by: answered_by.to_owned(),
        });
    let before = [
        Step::LoadModule {
            name: "msr".to_owned(),
        },
        print("\nLinux {release} reads through /dev/cpu/0/msr:\n"),
        print("  MSR         name                  value               answered by"),
    ];
    Plan::new(before.into_iter().chain(rows).chain([print("")])).read_by_people()
}

fn boot() -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    let kernel = assets::kernel()?;
    eprintln!("demo: booting {} under msr-vmm", kernel.version());
    let guest = Guest::with_kernel(&kernel, CONFIG, plan())?;
    let outcome = guest.argument("--msr-stats").shown().run()?;
    // A newcomer reads what the kernel says, and a machine by the book gives it nothing to say.
    if let Some(line) = outcome.console.lines().find(|line| line.contains("Fatal")) {
        return Err(format!("the guest's kernel says: {line}").into());
    }
    let status = outcome.status;
    eprintln!(
        "demo: guest ended, {:.1} s ({status})",
        started.elapsed().as_secs_f32()
    );
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
