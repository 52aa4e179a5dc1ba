//! How the endings of an outer VM are told apart: each of these boots one that runs this executable.

use std::process::ExitCode;
use std::time::Duration;

use guest_tests::assets;
use guest_tests::nested::outer::{OuterError, OuterVm};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, marker, ending] = arguments.as_slice()
        && marker == "--end-as"
    {
        return end_as(ending);
    }
    let trials = vec![
        Trial::test("exit_statuses_come_back", exit_statuses_come_back),
        Trial::test(
            "a_signal_is_told_from_a_status",
            a_signal_is_told_from_a_status,
        ),
        Trial::test("a_kernel_panic_is_an_error", a_kernel_panic_is_an_error),
        Trial::test("a_hang_ends_at_the_limit", a_hang_ends_at_the_limit),
        Trial::test(
            "a_missing_program_is_an_error",
            a_missing_program_is_an_error,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What this executable does in the outer VM.
fn end_as(ending: &str) -> ExitCode {
    println!("ending as {ending}");
    match ending {
        "panic" => panic!("asked for"),
        "signal" => std::process::abort(),
        "kernel-panic" => {
            std::fs::write("/proc/sysrq-trigger", "c").expect("root may crash the kernel");
            ExitCode::SUCCESS
        }
        "hang" => loop {
            std::thread::park();
        },
        status => ExitCode::from(status.parse::<u8>().expect("a status")),
    }
}

fn run(program: &str, ending: &str) -> Result<Result<u8, OuterError>, Failed> {
    let mut vm = OuterVm::new([program, "--end-as", ending]);
    vm.without_kvm()
        .file("/bin/outer-vm-test", std::env::current_exe()?);
    if ending == "hang" {
        vm.limit(Duration::from_secs(15));
    }
    Ok(vm.run(&assets::kernel()?))
}

fn ending(ending: &str) -> Result<Result<u8, OuterError>, Failed> {
    run("/bin/outer-vm-test", ending)
}

fn exit_statuses_come_back() -> Result<(), Failed> {
    for (as_asked, expected) in [("0", 0), ("1", 1), ("255", 255), ("panic", 101)] {
        let status = ending(as_asked)??;
        if status != expected {
            return Err(format!("{status} for {as_asked}").into());
        }
    }
    Ok(())
}

fn a_signal_is_told_from_a_status() -> Result<(), Failed> {
    match ending("signal")?? {
        134 => Ok(()),
        status => Err(format!("{status} for SIGABRT").into()),
    }
}

fn a_kernel_panic_is_an_error() -> Result<(), Failed> {
    match ending("kernel-panic")? {
        Err(OuterError::NoStatus { console, .. }) if console.contains("Kernel panic") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn a_hang_ends_at_the_limit() -> Result<(), Failed> {
    match ending("hang")? {
        Err(OuterError::TimedOut { .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn a_missing_program_is_an_error() -> Result<(), Failed> {
    match run("/bin/no-such-program", "0")? {
        Err(OuterError::Init(text)) if text.contains("/bin/no-such-program") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
