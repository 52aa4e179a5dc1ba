//! `msr-vmm` as a person meets it: wrong input, signals, the terminal.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{End, Folder, Guest, Plan, Step};
use libtest_mimic::{Failed, Trial};

use crate::Test;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 5] = [
        (
            "cli::what_is_wrong_is_said_in_one_error_and_status_2",
            wrong_input,
        ),
        (
            "cli::sigterm_stops_a_guest_that_has_no_power_button_at_once",
            sigterm,
        ),
        ("cli::sigint_stops_a_guest_at_once", sigint),
        ("cli::trace_logs_each_msr_access", trace_log),
        (
            "cli::the_examples_print_errors_as_people_read_them",
            examples,
        ),
    ];
    tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, test))
        .collect()
}

fn run(arguments: &[&str]) -> Result<Output, Failed> {
    Ok(Command::new(assets::msr_vmm()?)
        .arg("run")
        .args(arguments)
        .output()?)
}

fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str()
        .ok_or_else(|| "a path that is not UTF-8".into())
}

fn wrong_input() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let kernel = assets::kernel()?;
    let image = fs::read(kernel.image())?;
    let good = text(kernel.image())?;
    let file = |name: &str, contents: &[u8]| -> Result<String, Failed> {
        Ok(text(&folder.file(name, contents)?)?.to_owned())
    };
    let truncated = file("truncated", &image[..image.len() / 2])?;
    let stub = file("stub", &image[..1000])?;
    let prose = file("prose.txt", b"A kernel this is not.\n")?;
    let empty = file("empty", b"")?;
    let initrd = file("initrd", &vec![0; 80 << 20])?;
    let mistyped = file("mistyped.toml", b"[vm]\ncpus = 1\nmemroy = 64\n")?;
    let broken = file("broken.toml", b"[vm\n")?;
    let wrong_type = file("type.toml", b"[vm]\ncpus = \"many\"\n")?;
    let device = file("device.toml", b"[[msr.device]]\ntype = \"tabel\"\n")?;
    let key = file(
        "key.toml",
        b"[[msr.device]]\ntype = \"scratch\"\nmsr = 1\nresett = 2\n",
    )?;
    let overlap = file(
        "overlap.toml",
        b"[[msr.device]]\ntype = \"scratch\"\nname = \"one\"\nmsr = 1\n\
          [[msr.device]]\ntype = \"scratch\"\nname = \"two\"\nmsr = 1\n",
    )?;
    let contradiction = file(
        "contradiction.toml",
        b"[[msr.device]]\ntype = \"scratch\"\nmsr = 0x400\n\
          [[msr.filter.rule]]\nmsrs = [\"0x3f0-0x40f\"]\nverdict = \"allow\"\n",
    )?;
    let missing = folder.path("missing");
    let missing = text(&missing)?;
    let directory = folder.path("");
    let directory = text(&directory)?;

    // Arguments, and words that the error must have.
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["--kernel"]),
        (&["--kernel", &truncated], &[&truncated]),
        (&["--kernel", &stub], &[&stub]),
        (&["--kernel", &prose], &[&prose]),
        (&["--kernel", &empty], &[&empty]),
        (&["--kernel", missing], &[missing, "No such file"]),
        (&["--kernel", directory], &[directory]),
        (&["--kernel", good, "--memory", "1"], &["memory"]),
        (&["--kernel", good, "--memory", "0"], &["memory"]),
        (&["--kernel", good, "--memory", "lots"], &["lots", "2G"]),
        (
            &["--kernel", good, "--memory", "128", "--initrd", &initrd],
            &[&initrd],
        ),
        (
            &["--kernel", good, "--initrd", missing],
            &[missing, "No such file"],
        ),
        (&["--kernel", good, "--cpus", "0"], &["cpus", "0"]),
        (&["--kernel", good, "--cpus", "100000"], &["cpus", "100000"]),
        (&["--kernel", good, "--cpus", "x"], &["--cpus", "x"]),
        (
            &["--kernel", good, "--cmdline", &"x".repeat(5000)],
            &["command line", "5000"],
        ),
        (&["--config", missing], &[missing, "No such file"]),
        (&["--config", directory], &[directory]),
        (
            &["--config", &mistyped],
            &[
                &format!("{mistyped}:3:1: "),
                "memroy",
                "did you mean `memory`?",
            ],
        ),
        (&["--config", &broken], &[&format!("{broken}:1:")]),
        (
            &["--config", &wrong_type],
            &[
                &format!("{wrong_type}:2:8: "),
                "`cpus`",
                "a whole number from 1 to 128",
            ],
        ),
        (
            &["--config", &device, "--kernel", good],
            &[&device, "tabel", "`table`"],
        ),
        (
            &["--config", &key, "--kernel", good],
            &[&key, "resett", "`reset`"],
        ),
        (
            &["--config", &overlap, "--kernel", good],
            &[&overlap, "`one`", "`two`", "0x1"],
        ),
        (
            &["--config", &contradiction, "--kernel", good],
            &[&contradiction, "0x3f0-0x40f", "`scratch`", "0x400"],
        ),
        (&["--kernal", good], &["--kernal", "--kernel"]),
        (
            &["--kernel", good, "--model", "icelake"],
            &["`icelake`", "icelake-server", "zen3-server"],
        ),
        (
            &["--kernel", good, "--model", missing],
            &[missing, "No such file"],
        ),
    ];
    for (arguments, words) in cases {
        let output = run(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let fail = |what: &str| Failed::from(format!("{arguments:?}: {what}\n{stderr}"));
        if output.status.code() != Some(2) {
            return Err(fail(&output.status.to_string()));
        }
        if stderr.contains("panicked") || stderr.matches("msr-vmm: ").count() > 1 {
            return Err(fail("not one clear error"));
        }
        if let Some(word) = words.iter().find(|word| !stderr.contains(**word)) {
            return Err(fail(&format!("no `{word}` in")));
        }
    }
    println!("{} wrong inputs were refused", cases.len());
    Ok(())
}

/// An error is a sentence, and not the dump of a Rust value.
fn examples() -> Result<(), Failed> {
    // It takes no arguments, and fails where no file can be opened.
    let mut command = Command::new(assets::example("msr_state")?);
    // SAFETY: setrlimit is async-signal-safe and reads one value.
    unsafe {
        command.pre_exec(|| {
            let none = libc::rlimit {
                rlim_cur: 3,
                rlim_max: 3,
            };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &none) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(1) || stderr != "msr_state: Too many open files (os error 24)\n"
    {
        return Err(format!("msr_state: {}\n{stderr}", output.status).into());
    }
    for name in ["smallest", "msr_device"] {
        for (arguments, error) in [
            (&[][..], "no kernel given"),
            (&["/nonexistent/vmlinuz"], "/nonexistent/vmlinuz"),
        ] {
            let output = Command::new(assets::example(name)?)
                .args(arguments)
                .output()?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_one = stderr.starts_with(&format!("{name}: ")) && stderr.lines().count() == 1;
            if output.status.code() != Some(1) || !is_one || !stderr.contains(error) {
                return Err(format!("{name} {arguments:?}: {}\n{stderr}", output.status).into());
            }
        }
    }
    Ok(())
}

/// With `--log trace` an MSR that a device answers is in the log, by name and with its value.
fn trace_log() -> Result<(), Failed> {
    let plan = Plan::new([Step::load_module("msr"), Step::read_msr(0, 0xce)]);
    let config = "[[msr.device]]\ntype = \"table\"\n\
        [[msr.device.register]]\nmsr = \"MSR_PLATFORM_INFO\"\nvalue = \"0x80000f0f81800\"\n";
    for (format, line) in [
        (
            "text",
            "vCPU 0: RDMSR 0xce MSR_PLATFORM_INFO gives 0x80000f0f81800 (table; filter)",
        ),
        (
            "json",
            "\"level\":\"trace\",\"message\":\"vCPU 0: RDMSR 0xce MSR_PLATFORM_INFO gives 0x80000f0f81800",
        ),
    ] {
        let outcome = Guest::new(config, plan.clone())?
            .option("--log", "trace")
            .option("--log-format", format)
            .run()?;
        if outcome.status.code() != Some(0) || !outcome.stderr.contains(line) {
            return Err(format!("{}\n{}", outcome.status, outcome.stderr).into());
        }
    }
    Ok(())
}

fn idle() -> Result<Guest, Failed> {
    Ok(Guest::new(
        "",
        Plan::new([Step::KernelRelease]).ending(End::Idle),
    )?)
}

/// Sends a signal to a guest that idles, and expects it stopped within moments.
fn stopped_by(signal: libc::c_int) -> Result<(), Failed> {
    let mut guest = idle()?.start()?;
    guest.wait_for("@ \"End\"")?;
    let sent = Instant::now();
    let pid = libc::pid_t::try_from(guest.pid())?;
    // SAFETY: the process is this test's own child, which has not been waited for.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let outcome = guest.wait()?;
    let took = sent.elapsed();
    // It ends by itself, in order, and not by the signal's default action.
    if outcome.status.signal().is_some() || outcome.status.code() != Some(1) {
        return Err(format!("{}\n{}", outcome.status, outcome.stderr).into());
    }
    if !outcome.stderr.contains("stopped") {
        return Err(outcome.stderr.into());
    }
    // An emulated CPU is slow, but nowhere near a grace period.
    if took > Duration::from_secs(10) {
        return Err(format!("it took {took:?}").into());
    }
    Ok(())
}

fn sigterm() -> Result<(), Failed> {
    stopped_by(libc::SIGTERM)
}

fn sigint() -> Result<(), Failed> {
    stopped_by(libc::SIGINT)
}
