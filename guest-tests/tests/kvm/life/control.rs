//! The control socket of a guest that runs: every command of `msr-vmm ctl`, and clients that behave badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, RunningGuest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_vmm::control_socket::{Client, Method, MsrStat};
use serde_json::Value;

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("control":
        every_command_does_what_it_says,
        the_sandbox_lets_every_command_through_but_those_that_make_files,
        a_filter_is_replaced_under_a_running_guest,
        those_who_wait_learn_how_the_guest_ended,
        clients_that_behave_badly_do_not_hold_up_the_guest,
        a_socket_that_is_served_is_not_taken_over,
    )
}

pub(super) const COUNTER: u32 = 0x3f00;
/// The counter, and a filter that narrows whatever the others allow.
const CONFIG: &str = r#"
    [[msr.device]]
    type = "scratch"
    msr = "0x3f00"
    [[msr.layer]]
    name = "the site's policy"
    [[msr.layer.filter.rule]]
    msrs = ["IA32_STAR"]
    access = "rw"
    verdict = "deny"
"#;
const STAR: &str = "IA32_STAR";
const LSTAR: &str = "IA32_LSTAR";

/// A guest that counts in a scratch register, one more with each round, for ever. Its socket is in `folder`, which outlives
/// it.
fn counting(folder: &Folder) -> Result<Guest, Failed> {
    let mut kernel = TinyKernel::new()?;
    let code = kernel.print("up\n")?;
    let mut again = code.0.create_label();
    code.0.set_label(&mut again)?;
    code.0.mov(ecx, COUNTER)?;
    code.0.rdmsr()?;
    code.0.add(eax, 1)?;
    code.0.wrmsr()?;
    code.0.jmp(again)?;
    let guest = Guest::tiny(&mut kernel)?;
    let config = guest.folder().file("config.toml", CONFIG)?;
    let socket = folder.path("socket");
    Ok(guest.option("--config", config).option("--control", socket))
}

fn start(folder: &Folder) -> Result<(RunningGuest, std::path::PathBuf), Failed> {
    up(counting(folder)?, folder)
}

/// Without the sandbox, for what makes or removes files.
pub(super) fn start_unconfined(
    folder: &Folder,
) -> Result<(RunningGuest, std::path::PathBuf), Failed> {
    up(counting(folder)?.option("--sandbox", "off"), folder)
}

fn up(guest: Guest, folder: &Folder) -> Result<(RunningGuest, std::path::PathBuf), Failed> {
    let mut running = guest.start()?;
    running.wait_for("up")?;
    Ok((running, folder.path("socket")))
}

pub(crate) fn ctl(socket: &Path, arguments: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(assets::msr_vmm()?);
    Ok(command.arg("ctl").arg(socket).args(arguments).output()?)
}

/// What a command prints that succeeds.
pub(crate) fn said(socket: &Path, arguments: &[&str]) -> Result<String, Failed> {
    let output = ctl(socket, arguments)?;
    if !output.status.success() {
        return Err(format!("ctl {arguments:?}: {output:?}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

pub(super) fn json(socket: &Path, arguments: &[&str]) -> Result<Value, Failed> {
    let arguments: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
    Ok(serde_json::from_str(&said(socket, &arguments)?)?)
}

pub(crate) fn ensure(holds: bool, what: impl std::fmt::Debug) -> Result<(), Failed> {
    if holds {
        Ok(())
    } else {
        Err(format!("{what:?}").into())
    }
}

/// The guest's count.
pub(super) fn count(socket: &Path) -> Result<u64, Failed> {
    let answer = json(socket, &["read", "0x3f00"])?;
    let value = answer["value"].as_str().ok_or("no value")?;
    ensure(answer["by"]["device"] == "scratch", &answer)?;
    Ok(u64::from_str_radix(value.trim_start_matches("0x"), 16)?)
}

/// Waits until the guest has counted on, and gives its count.
pub(super) fn progresses(socket: &Path) -> Result<u64, Failed> {
    let before = count(socket)?;
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let now = count(socket)?;
        if now != before {
            return Ok(now);
        }
        ensure(Instant::now() < limit, "the guest does not go on")?;
    }
}

fn every_command_does_what_it_says() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start_unconfined(&folder)?;
    steer(&running, &socket)?;
    said(&socket, &["stop"])?;
    let outcome = running.wait()?;
    ensure(outcome.status.code() == Some(1), outcome.status)?;
    ensure(!socket.exists(), "the socket stays")
}

fn the_sandbox_lets_every_command_through_but_those_that_make_files() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let socket = folder.path("socket");
    let filter = folder.file("filter.toml", "default = \"allow\"")?;
    let snapshot = folder.path("snapshot");
    let (running, _) = start(&folder)?;
    steer(&running, &socket)?;
    said(
        &socket,
        &["filter", "set", filter.to_str().ok_or("no UTF-8")?],
    )?;
    // KVM's own register, by KVM_SET_MSRS, which is the vCPU thread's for the sake of clients alone.
    said(&socket, &["write", LSTAR, "0x1234"])?;
    let lstar = json(&socket, &["read", LSTAR])?;
    ensure(
        lstar["by"] == "kernel" && lstar["value"] == "0x1234",
        &lstar,
    )?;
    let snapshot = snapshot.to_str().ok_or("no UTF-8")?;
    for arguments in [&["snapshot", snapshot][..], &["trace", "start", snapshot]] {
        let refused = ctl(&socket, arguments)?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure(
            refused.status.code() == Some(1)
                && words.contains("the sandbox lets the VMM make no files"),
            &words,
        )?;
    }
    progresses(&socket)?;
    let mut waiting = UnixStream::connect(&socket)?;
    waiting.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wait\"}\n")?;
    said(&socket, &["stop"])?;
    let outcome = running.wait()?;
    ensure(
        outcome.status.code() == Some(1) && !outcome.stderr.contains("system call"),
        &outcome.stderr,
    )?;
    let mut answer = String::new();
    waiting.read_to_string(&mut answer)?;
    let answer: Value = serde_json::from_str(&answer)?;
    ensure(answer["result"]["reason"] == "stopped", &answer)?;
    // It may not remove its socket; the next one replaces it.
    ensure(socket.exists(), "the socket is gone")?;
    let mut next = Guest::tiny(TinyKernel::new()?.print("up\n")?.spin()?)?
        .option("--control", &socket)
        .start()?;
    next.wait_for("up")?;
    said(&socket, &["stop"])?;
    next.wait()?;
    Ok(())
}

/// Asks for everything but the end and a snapshot.
fn steer(running: &RunningGuest, socket: &Path) -> Result<(), Failed> {
    let status = json(socket, &["status"])?;
    ensure(
        status["state"] == "running" && status["vcpus"] == 1,
        &status,
    )?;
    ensure(status["pid"] == running.pid(), &status)?;
    ensure(
        said(socket, &["status"])?.contains("state         running"),
        "status",
    )?;
    progresses(socket)?;

    // Paused, it stands still, and yet its MSRs can be read and written.
    ensure(said(socket, &["pause"])? == "paused\n", "pause")?;
    ensure(said(socket, &["pause"])? == "paused\n", "second pause")?;
    let still = count(socket)?;
    ensure(count(socket)? == still, "it counts on while paused")?;
    said(socket, &["write", "0x3f00", "0x1000000"])?;
    ensure(count(socket)? == 0x100_0000, "the value written")?;
    ensure(said(socket, &["resume"])? == "running\n", "resume")?;
    progresses(socket)?;

    // KVM's own, the default's, and nobody's.
    let tsc = json(socket, &["read", "IA32_TIME_STAMP_COUNTER"])?;
    ensure(tsc["by"] == "kernel" && tsc["value"].is_string(), &tsc)?;
    let output = ctl(socket, &["read", "0x12345678"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure(output.status.code() == Some(1), output.status)?;
    ensure(text.contains("#GP") && text.contains("default"), &text)?;
    for wrong in [
        &["read", "0x600-0x601"][..],
        &["read", "NO_SUCH_MSR"],
        &["read", "0x10", "--vcpu", "1"],
        &["device", "show", "thermal"],
    ] {
        let output = ctl(socket, wrong)?;
        ensure(output.status.code() == Some(2), (wrong, output))?;
    }

    let stats: Vec<MsrStat> = serde_json::from_value(json(socket, &["stats"])?)?;
    let counter = stats.iter().find(|stat| stat.index == COUNTER);
    ensure(
        counter.is_some_and(|stat| stat.reads > 10 && stat.writes > 10),
        &stats,
    )?;
    ensure(
        said(socket, &["device", "list"])?.contains("scratch          0x3f00"),
        "devices",
    )?;
    let state = json(socket, &["device", "show", "scratch"])?;
    ensure(state["state"]["version"].is_u64(), &state)?;
    let rules = said(socket, &["filter", "show"])?;
    ensure(rules.starts_with("deny   rw  0x3f00"), &rules)?;

    ensure(
        said(socket, &["power-button"])? == "running\n",
        "power button",
    )
}

fn a_filter_is_replaced_under_a_running_guest() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start(&folder)?;
    let before = json(&socket, &["read", LSTAR])?;
    ensure(before["by"] == "kernel", &before)?;
    ensure(is_gp(&socket, STAR)?, "the layer is not in force")?;
    let filter = folder.path("filter.toml");
    let rule = |msr: &str, verdict: &str| {
        let keys = format!("msrs = [\"{msr}\"]\naccess = \"rw\"\nverdict = \"{verdict}\"\n");
        format!("[[rule]]\n{keys}")
    };
    std::fs::write(&filter, rule(LSTAR, "deny") + &rule(STAR, "allow"))?;
    let path = filter.to_str().ok_or("no UTF-8")?;
    said(&socket, &["filter", "set", path])?;
    ensure(is_gp(&socket, LSTAR)?, "the new filter is not in force")?;
    // A layer narrows the new rules as it did the old, and is shown with them.
    ensure(
        is_gp(&socket, STAR)?,
        "the new filter has widened the layer",
    )?;
    let rules = said(&socket, &["filter", "show"])?;
    let shown = |msr: &str, source: &str| {
        let mut lines = rules.lines();
        lines.any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[..3] == ["deny", "rw", msr] && words[3..].join(" ") == source
        })
    };
    for (msr, source) in [
        ("0x3f00", "the claim of device `scratch`"),
        ("0xc0000081", "the site's policy, rule 1"),
        ("0xc0000082", "rule 1"),
    ] {
        ensure(shown(msr, source), (msr, source, &rules))?;
    }
    progresses(&socket)?;
    // A rule that takes a device's MSR from it is refused, and the old filter stays.
    std::fs::write(&filter, rule("0x3f00", "allow"))?;
    let output = ctl(&socket, &["filter", "set", path])?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(
        !output.status.success() && words.contains("scratch"),
        &words,
    )?;
    ensure(
        output.status.code() == Some(2) && is_gp(&socket, LSTAR)?,
        "the old filter is gone",
    )?;
    running.kill()?;
    Ok(())
}

/// Whether a read is #GP by the default.
fn is_gp(socket: &Path, msr: &str) -> Result<bool, Failed> {
    let output = ctl(socket, &["--json", "read", msr])?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(output.status.code() == Some(1) && answer["by"] == "default")
}

fn those_who_wait_learn_how_the_guest_ended() -> Result<(), Failed> {
    let mut kernel = TinyKernel::new()?;
    let guest = Guest::tiny(kernel.print("up\n")?.echo()?)?.typed_to();
    let socket = guest.folder().path("socket");
    let mut running = guest.option("--control", &socket).start()?;
    running.wait_for("up")?;
    let mut command = Command::new(assets::msr_vmm()?);
    let waiting = command.arg("ctl").arg(&socket).arg("wait");
    let waiting = waiting.stdout(std::process::Stdio::piped()).spawn()?;
    // Its connection and the listening socket.
    let limit = Instant::now() + Duration::from_secs(20);
    let path = socket.to_str().ok_or("no UTF-8")?;
    while std::fs::read_to_string("/proc/net/unix")?
        .matches(path)
        .count()
        < 2
    {
        ensure(Instant::now() < limit, "ctl does not connect")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    // Served after what ctl has sent, if that is there: it writes as soon as it is connected.
    std::thread::sleep(Duration::from_millis(200));
    Client::connect(&socket)?.call(&Method::Status)?;
    running.enter("q")?;
    let output = waiting.wait_with_output()?;
    ensure(
        output.status.success() && output.stdout == b"power-off\n",
        &output,
    )?;
    ensure(running.wait()?.status.success(), "the guest's own status")
}

fn clients_that_behave_badly_do_not_hold_up_the_guest() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start(&folder)?;
    let memory = || -> Result<u64, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.ok_or("no RssAnon")?.parse()?)
    };
    let before = memory()?;
    let mut kept = Vec::new();
    for _ in 0..64 {
        let mut half = UnixStream::connect(&socket)?;
        half.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"met")?;
        kept.push(half);
    }
    let halfway = progresses(&socket)?;
    // What they have begun they may end, all at once, and each is answered.
    for half in &mut kept {
        half.write_all(b"hod\":\"status\"}\n")?;
    }
    for half in &kept {
        let mut answer = String::new();
        BufReader::new(half).read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer)?;
        ensure(answer["result"]["state"] == "running", &answer)?;
    }
    let answered = progresses(&socket)?;
    let mut deaf = UnixStream::connect(&socket)?;
    deaf.set_nonblocking(true)?;
    let stats = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stats\"}\n";
    // Until the kernel's buffers are full.
    while deaf.write(stats).is_ok() {}
    let unread = progresses(&socket)?;
    let mut long = UnixStream::connect(&socket)?;
    // The VMM closes it before all of that is there.
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    let mut noise = UnixStream::connect(&socket)?;
    let _ = noise.write_all(&[0xff; 4096].map(|byte: u8| byte ^ 0x5a));
    let noisy = progresses(&socket)?;
    drop(kept);
    for _ in 0..1000 {
        Client::connect(&socket)?.call(&Method::Status)?;
    }
    let thousand = progresses(&socket)?;
    println!(
        "control: the guest has counted to {halfway} with 64 half requests, {answered} once they were answered, {unread} with \
         a client that does not read, {noisy} after a line of 1 MiB and noise, {thousand} after 1,000 clients in turn"
    );
    let after = memory()?;
    println!("control: anonymous memory {before} KiB before, {after} KiB after");
    // 67 clients of at most one line and one answer each.
    ensure(after < before + 67 * 80, (before, after))?;
    running.kill()?;
    Ok(())
}

fn a_socket_that_is_served_is_not_taken_over() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let (running, socket) = start(&folder)?;
    let outcome = Guest::tiny(TinyKernel::new()?.spin()?)?
        .option("--control", &socket)
        .run()?;
    ensure(outcome.status.code() == Some(2), outcome.status)?;
    ensure(
        outcome.stderr.contains("another VMM serves"),
        &outcome.stderr,
    )?;
    progresses(&socket)?;
    // Killed, it leaves its socket behind, which the next one replaces.
    let left = folder.path("left");
    drop(std::os::unix::net::UnixListener::bind(&left)?);
    let mut next = Guest::tiny(TinyKernel::new()?.print("up\n")?.spin()?)?
        .option("--control", &left)
        .start()?;
    next.wait_for("up")?;
    said(&left, &["stop"])?;
    next.wait()?;
    running.kill()?;
    Ok(())
}
