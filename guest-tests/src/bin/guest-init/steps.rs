//! Takes one step of the plan.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Answer, MODULES_PATH, Step, functions_digest};
use guest_tests::init;

use crate::check;
use crate::disk;
use crate::guarded::Guarded;
use crate::msr::{self, Msrs};
use crate::storm;
use crate::traced;

/// The answer to a step; errors are answers too.
pub(crate) fn take(step: &Step) -> Answer {
    attempt(step).unwrap_or_else(|error| match error.raw_os_error() {
        Some(number) => Answer::Errno(number),
        None => Answer::Failed(error.to_string()),
    })
}

fn attempt(step: &Step) -> io::Result<Answer> {
    Ok(match step {
        Step::ReadMsr { cpu, index } => Answer::Value(Msrs::of(*cpu)?.read(*index)?),
        Step::WriteMsr { cpu, index, value } => {
            Msrs::of(*cpu)?.write(*index, *value)?;
            Answer::Done
        }
        Step::ScanMsrs { cpu, first, last } => Answer::Values(Msrs::of(*cpu)?.scan(*first, *last)?),
        Step::ReadMsrOnAll { index, times } => Answer::Values(msr::on_all(|_, msrs| {
            (1..*times).try_for_each(|_| msrs.read(*index).map(drop))?;
            msrs.read(*index)
        })?),
        Step::WriteMsrOnAll { index, first } => {
            msr::on_all(|cpu, msrs| {
                let value = first.wrapping_add(cpu.into());
                msrs.write(*index, value).map(|()| value)
            })?;
            Answer::Done
        }
        Step::WriteMsrAddress {
            cpu,
            index,
            path,
            offset,
        } => write_address(*cpu, *index, &fs::read(path)?, *offset)?,
        Step::Cpuid { cpu, leaf, subleaf } => cpuid(*cpu, *leaf, *subleaf)?,
        Step::LoadModule { name } => {
            for path in fs::read_to_string(format!("{MODULES_PATH}/{name}.order"))?.lines() {
                init::load_module(Path::new(path))?;
            }
            Answer::Done
        }
        Step::ReadFile { path } => text(&fs::read(path)?),
        Step::AwaitChange { path, milliseconds } => {
            await_change(path, Duration::from_millis(*milliseconds))?
        }
        Step::WriteFile { path, text } => {
            fs::write(path, text)?;
            Answer::Done
        }
        Step::ListDirectory { path } => list(path)?,
        Step::Uptime => Answer::Value(init::uptime()?),
        Step::KernelRelease => Answer::Text(release()?),
        Step::AwaitLog { text, milliseconds } => {
            await_log(text, Duration::from_millis(*milliseconds))?;
            Answer::Done
        }
        Step::KernelLog => text(&init::kernel_log()?),
        Step::TracedMsrs => Answer::Text(traced::msrs()?),
        Step::KallsymsDigest => {
            Answer::Text(functions_digest(&fs::read_to_string("/proc/kallsyms")?))
        }
        Step::Execute { argv } => execute(argv, None)?,
        Step::ExecuteIn { root, argv } => execute(argv, Some(root))?,
        Step::Sleep { milliseconds } => {
            thread::sleep(Duration::from_millis(*milliseconds));
            Answer::Done
        }
        Step::Spin { cpu, milliseconds } => spin(*cpu, Duration::from_millis(*milliseconds))?,
        Step::Storm { seed, milliseconds } => {
            storm::storm(*seed, Duration::from_millis(*milliseconds))?
        }
        Step::Mount { kind, at } => {
            init::mount(kind, at)?;
            Answer::Done
        }
        Step::MountDisk { disk, at } => {
            disk::mount(disk, at)?;
            Answer::Done
        }
        Step::ReadBytes { path, count } => {
            let mut bytes = vec![0; *count];
            fs::File::open(path)?.read_exact(&mut bytes)?;
            Answer::Text(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        Step::TimeReads { path, piece, times } => {
            let took = disk::time_reads(path, *piece, *times)?;
            Answer::Value(took.as_nanos() as u64)
        }
        Step::ReadLastBlockUntilError { disk } => return Err(disk::read_last_block(disk)),
        Step::WriteRecords { directory } => return Err(disk::write_records(Path::new(directory))),
        Step::StartChecks { checks } => {
            check::start(checks)?;
            Answer::Done
        }
        Step::Print { text } => {
            println!("{}", text.replace("{release}", &release()?));
            Answer::Done
        }
        Step::ShowMsr {
            index,
            name,
            write,
            answered_by,
        } => show(*index, name, *write, answered_by)?,
    })
}

/// Text for the report; what is not UTF-8 becomes replacement characters.
fn text(bytes: &[u8]) -> Answer {
    Answer::Text(String::from_utf8_lossy(bytes).into_owned())
}

fn release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim_end()
        .to_owned())
}

fn await_change(path: &str, limit: Duration) -> io::Result<Answer> {
    let start = Instant::now();
    let before = fs::read(path)?;
    loop {
        let now = fs::read(path)?;
        if now != before {
            return Ok(text(&now));
        }
        if start.elapsed() > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn await_log(text: &str, limit: Duration) -> io::Result<()> {
    let start = Instant::now();
    while !String::from_utf8_lossy(&init::kernel_log()?).contains(text) {
        if start.elapsed() > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn list(path: &str) -> io::Result<Answer> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(Answer::Text(names.join("\n")))
}

/// Runs on a thread of its own: this one stays where the scheduler wants it.
fn on_cpu<T: Send>(cpu: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(move || msr::pin(cpu).map(|()| work()));
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("panic")))
    })
}

fn cpuid(cpu: u32, leaf: u32, subleaf: u32) -> io::Result<Answer> {
    let leaf = on_cpu(cpu, || msr_kvm::cpuid(leaf, subleaf))?;
    Ok(Answer::Cpuid([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]))
}

fn spin(cpu: u32, time: Duration) -> io::Result<Answer> {
    on_cpu(cpu, || busy(time)).map(|()| Answer::Done)
}

fn busy(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The msr driver executes WRMSR on the CPU that asks, so that the address is one of this process.
fn write_address(cpu: u32, index: u32, bytes: &[u8], offset: u32) -> io::Result<Answer> {
    let memory = Guarded::new(bytes)?;
    let address = memory.address() + u64::from(offset);
    on_cpu(cpu, || Msrs::of(cpu)?.write(index, address))?.map(|()| Answer::Done)
}

/// Runs a program, with another root directory if one is given. The environment is what a shell of root's has.
fn execute(argv: &[String], root: Option<&String>) -> io::Result<Answer> {
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(root) = root.cloned() {
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("TERM", "linux");
        let enter =
            move || std::os::unix::fs::chroot(&root).and_then(|()| env::set_current_dir("/"));
        // SAFETY: the process has no other thread now, so that none can hold a lock that the child's allocations need.
        unsafe { command.pre_exec(enter) };
    }
    let output = command.stdin(Stdio::null()).output()?;
    let status = output.status;
    let signal = || 128 + status.signal().unwrap_or(0);
    Ok(Answer::Exited {
        status: status.code().unwrap_or_else(signal),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn show(index: u32, name: &str, write: Option<u64>, answered_by: &str) -> io::Result<Answer> {
    let access = || {
        let msrs = Msrs::of(0)?;
        if let Some(value) = write {
            msrs.write(index, value)?;
        }
        msrs.read(index)
    };
    let result: io::Result<u64> = access();
    let shown = match &result {
        Ok(value) => format!("{value:#018x}"),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => "EIO (#GP)".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("  {index:#010x}  {name:<20}  {shown:<18}  {answered_by}");
    result.map(Answer::Value)
}
