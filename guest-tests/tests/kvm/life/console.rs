//! Standard input and output that are closed, full, slow or stuck.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Guest, TinyKernel};
use libtest_mimic::{Failed, Trial};

use super::{echo, kill, listed};

pub(super) fn trials() -> Vec<Trial> {
    listed!("console":
        a_file_as_standard_input_reaches_the_guest_whole,
        a_pipe_as_standard_input_reaches_the_guest_whole,
        a_guest_goes_on_without_standard_input,
        a_guest_goes_on_when_its_output_cannot_be_written,
        a_stuck_reader_of_the_output_does_not_keep_a_signal_from_ending_the_guest,
    )
}

/// No trial of this module takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for the end, and kills what does not end.
fn wait(mut child: Child) -> Result<ExitStatus, Failed> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Err(format!("it did not end within {LIMIT:?}").into())
}

fn expect(status: ExitStatus, expected: i32) -> Result<(), Failed> {
    if status.code() == Some(expected) {
        Ok(())
    } else {
        Err(format!("{status} instead of {expected}").into())
    }
}

/// Much more than the UART's FIFO and what is read at once, and the last byte switches
/// the guest off.
fn long_input() -> Vec<u8> {
    let mut input: Vec<u8> = (0..1000)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    input.push(b'q');
    input
}

/// The echo of [`long_input`], and no more.
fn expect_echo(output: &[u8]) -> Result<(), Failed> {
    let input = long_input();
    let expected = [b"up\n", &input[..input.len() - 1]].concat();
    if output == expected {
        return Ok(());
    }
    let same = output
        .iter()
        .zip(&expected)
        .take_while(|(a, b)| a == b)
        .count();
    Err(format!(
        "{} bytes instead of {}, different from byte {same} on",
        output.len(),
        expected.len()
    )
    .into())
}

fn a_file_as_standard_input_reaches_the_guest_whole() -> Result<(), Failed> {
    let guest = echo()?;
    let input = guest.folder().file("input", long_input())?;
    let output = guest.folder().path("output");
    let child = guest
        .command()?
        .stdin(File::open(input)?)
        .stdout(File::create(&output)?)
        .spawn()?;
    expect(wait(child)?, 0)?;
    expect_echo(&fs::read(output)?)
}

fn a_pipe_as_standard_input_reaches_the_guest_whole() -> Result<(), Failed> {
    let guest = echo()?;
    let output = guest.folder().path("output");
    let (reader, mut writer) = io::pipe()?;
    let child = guest
        .command()?
        .stdin(reader)
        .stdout(File::create(&output)?)
        .spawn()?;
    let writing = thread::spawn(move || io::Write::write_all(&mut writer, &long_input()));
    expect(wait(child)?, 0)?;
    writing.join().map_err(|_| "the writer panicked")??;
    expect_echo(&fs::read(output)?)
}

/// Prints, executes long enough for the event loop to meet whatever it meets, and switches itself off.
fn prints_and_ends() -> Result<Guest, Failed> {
    let mut kernel = TinyKernel::new()?;
    for _ in 0..20 {
        kernel.print("a line of some length, to no end\n")?;
    }
    kernel.print("the end\n")?.power_off()?;
    Ok(Guest::tiny(&mut kernel)?)
}

fn close_on_exec(command: &mut Command, fd: libc::c_int) {
    let close = move || {
        // SAFETY: close takes no pointers; whoever executes next finds the descriptor closed.
        unsafe { libc::close(fd) };
        Ok(())
    };
    // SAFETY: close is async-signal-safe and the closure allocates nothing.
    unsafe { command.pre_exec(close) };
}

fn a_guest_goes_on_without_standard_input() -> Result<(), Failed> {
    let guest = prints_and_ends()?;
    let mut closed = guest.command()?;
    close_on_exec(&mut closed, 0);
    let mut at_its_end = guest.command()?;
    at_its_end.stdin(Stdio::null());
    let mut hung_up = guest.command()?;
    hung_up.stdin(io::pipe()?.0);
    let mut a_directory = guest.command()?;
    a_directory.stdin(File::open("/")?);
    for (what, mut command) in [
        ("closed", closed),
        ("at its end", at_its_end),
        ("hung up", hung_up),
        ("a directory", a_directory),
    ] {
        let output = command.stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.code() != Some(0) || !said.ends_with("the end\n") {
            return Err(format!("{what}: {output:?}").into());
        }
    }
    Ok(())
}

fn a_guest_goes_on_when_its_output_cannot_be_written() -> Result<(), Failed> {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full");
    let guest = prints_and_ends()?;
    let mut full_disk = guest.command()?;
    full_disk.stdout(full()?).stderr(full()?);
    let mut broken_pipe = guest.command()?;
    broken_pipe.stdout(io::pipe()?.1).stderr(io::pipe()?.1);
    let mut closed = guest.command()?;
    close_on_exec(&mut closed, 1);
    closed.stderr(Stdio::null());
    for (what, mut command) in [
        ("full", full_disk),
        ("broken pipe", broken_pipe),
        ("closed", closed),
    ] {
        let child = command
            .arg("--msr-stats")
            .args(["--log", "trace"])
            .stdin(Stdio::null())
            .spawn()?;
        expect(wait(child)?, 0).map_err(|error| format!("{what}: {error:?}"))?;
    }
    Ok(())
}

/// A guest that writes for ever, to a pipe that nobody reads from.
fn stuck(polite: bool) -> Result<(), Failed> {
    let mut kernel = TinyKernel::new()?;
    let guest = Guest::tiny(kernel.chatter(polite)?)?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut reader, writer) = io::pipe()?;
        let mut command = guest.command()?;
        command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::null());
        let child = command.spawn()?;
        drop(command);
        // Whoever has read one byte knows that the guest writes; the pipe and the queue are full soon.
        reader.read_exact(&mut [0])?;
        thread::sleep(Duration::from_millis(500));
        let sent = Instant::now();
        kill(child.id(), signal)?;
        expect(wait(child)?, 1)?;
        if sent.elapsed() > Duration::from_secs(5) {
            return Err(format!("signal {signal} took {:?}", sent.elapsed()).into());
        }
    }
    Ok(())
}

fn a_stuck_reader_of_the_output_does_not_keep_a_signal_from_ending_the_guest() -> Result<(), Failed>
{
    stuck(true)?;
    stuck(false)
}

/// A reader that starts late gets everything that a guest writes whose driver waits for the transmitter.
pub(super) fn slow_reader() -> Result<(), Failed> {
    // More than a pipe and the queue hold together: 64 KiB each.
    const BYTES: usize = 300_000;
    let guest = echo()?;
    let (mut reader, writer) = io::pipe()?;
    let mut input = vec![b'.'; BYTES];
    input.push(b'q');
    let input = guest.folder().file("input", input)?;
    let mut command = guest.command()?;
    command.stdin(File::open(input)?).stdout(writer);
    let child = command.spawn()?;
    drop(command);
    // Until then the pipe and the queue fill.
    thread::sleep(Duration::from_secs(1));
    let mut output = Vec::new();
    reader.read_to_end(&mut output)?;
    expect(wait(child)?, 0)?;
    let dots = output.iter().filter(|byte| **byte == b'.').count();
    if dots == BYTES {
        Ok(())
    } else {
        Err(format!("{dots} bytes of {BYTES}").into())
    }
}
