//! What a VMM does while its system calls fail.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::failures::{End, Point, Tracee};
use guest_tests::guest::{BlockRequest, Folder, Guest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::Failed;
use msr_bus::VcpuId;
use msr_vmm::Vm;
use msr_vmm::config::Config;
use serde_json::json;

use super::verdict::{self, Verdict};
use crate::client::{self, Answers, Request};

/// How long a VMM may take that has nothing to wait for.
const LIMIT: Duration = Duration::from_secs(15);

/// A life of a VMM.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    start: fn() -> Result<Prepared, Failed>,
    /// What a client asks of it meanwhile.
    requests: fn(&Path) -> Vec<Request>,
    /// What it is like that went well.
    pub(super) console: &'static str,
    pub(super) status: i32,
}

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "run",
        start: run,
        requests: |_| Vec::new(),
        console: "up\n",
        status: 0,
    },
    Scenario {
        name: "disk",
        start: disk,
        requests: |_| Vec::new(),
        console: "0000",
        status: 0,
    },
    Scenario {
        name: "control",
        start: control,
        requests: steer,
        console: "up\n",
        status: 1,
    },
    Scenario {
        name: "snapshot",
        start: control,
        requests: save,
        console: "up\n",
        status: 1,
    },
    Scenario {
        name: "restore",
        start: restore,
        requests: |_| Vec::new(),
        console: "on\n",
        status: 0,
    },
];

/// A VMM that is to be started, with the files that its life has.
struct Prepared {
    command: Command,
    folder: Files,
}

/// The folder where nothing may be left.
enum Files {
    Of(Guest),
    Own(Folder),
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Of(guest) => guest.folder().path(name),
            Self::Own(folder) => folder.path(name),
        }
    }

    fn names(&self) -> io::Result<BTreeSet<String>> {
        fs::read_dir(self.path(""))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }
}

/// What came of one life.
pub(super) struct Ran {
    pub(super) verdict: Verdict,
    pub(super) points: Vec<Point>,
    /// How many system calls there were.
    pub(super) calls: usize,
    /// Whether the point was reached.
    pub(super) failed: bool,
    pub(super) stderr: String,
}

/// What is looked at to tell how it went.
pub(super) struct Seen {
    pub(super) end: End,
    pub(super) took: Duration,
    pub(super) console: String,
    pub(super) stderr: String,
    pub(super) answers: Answers,
    /// Files that were not there before.
    pub(super) left: Vec<String>,
    pub(super) snapshot: PathBuf,
    pub(super) disk: PathBuf,
}

const CONFIG: &str = "vm.entropy = true\n[[msr.device]]\ntype = \"scratch\"\nmsr = \"0x3f00\"\n";
/// What the disk's first sector has.
pub(super) const MARK: [u8; 512] = [0xa5; 512];

fn prepared(guest: Guest) -> Result<Prepared, Failed> {
    let config = guest.folder().file("config.toml", CONFIG)?;
    let guest = guest.option("--config", config);
    Ok(Prepared {
        command: guest.command()?,
        folder: Files::Of(guest),
    })
}

fn run() -> Result<Prepared, Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel.0.mov(ecx, 0x3f00)?;
    kernel.0.rdmsr()?;
    kernel.0.wrmsr()?;
    prepared(Guest::tiny(kernel.print("up\n")?.power_off()?)?)
}

fn with_disk(guest: Guest) -> Result<Guest, Failed> {
    let mut contents = vec![0; 1 << 16];
    contents[..MARK.len()].copy_from_slice(&MARK);
    let disk = guest.folder().file("disk", contents)?;
    Ok(guest.option("--disk", disk))
}

fn disk() -> Result<Prepared, Failed> {
    let mut kernel = TinyKernel::new()?;
    kernel
        .start_block()?
        .block(1, BlockRequest::Read, 0)?
        .block(2, BlockRequest::Write, 1)?
        .block(3, BlockRequest::Flush, 0)?
        .block(4, BlockRequest::Read, 1)?
        .power_off()?;
    prepared(with_disk(Guest::tiny(&mut kernel)?)?)
}

/// A guest without end, which exits no more once it is up.
fn control() -> Result<Prepared, Failed> {
    let mut kernel = TinyKernel::new()?;
    let guest = with_disk(Guest::tiny(kernel.print("up\n")?.spin()?)?)?;
    let socket = guest.folder().path("socket");
    let folder = guest.folder().path("");
    prepared(
        guest
            .option("--control", socket)
            .option("--snapshots", folder),
    )
}

fn steer(_: &Path) -> Vec<Request> {
    vec![
        ("status", json!({})),
        ("pause", json!({})),
        ("read-msr", json!({ "msr": "0x3f00" })),
        ("write-msr", json!({ "msr": "0x3f00", "value": 5 })),
        ("resume", json!({})),
        ("filter-set", json!({ "toml": "default = \"allow\"" })),
        ("stats", json!({})),
        ("device-list", json!({})),
        ("stop", json!({})),
    ]
}

fn save(folder: &Path) -> Vec<Request> {
    vec![
        ("pause", json!({})),
        ("snapshot", json!({ "folder": folder })),
        ("stop", json!({})),
    ]
}

/// A VM that was saved while it waited for what it now finds.
fn saved() -> Result<&'static Path, Failed> {
    static SAVED: OnceLock<Result<(Folder, PathBuf), String>> = OnceLock::new();
    let make = || -> Result<(Folder, PathBuf), Failed> {
        let mut kernel = TinyKernel::new()?;
        let mut again = kernel.0.create_label();
        kernel.0.set_label(&mut again)?;
        kernel.0.mov(ecx, 0x3f00)?;
        kernel.0.rdmsr()?;
        kernel.0.test(eax, eax)?;
        kernel.0.jz(again)?;
        kernel.print("on\n")?.power_off()?;
        let folder = Folder::new()?;
        let disk = folder.file("disk", [0; 1 << 16])?;
        let disk =
            format!("vm.memory = 32\n{CONFIG}[[vm.disk]]\npath = {disk:?}\nreadonly = true\n");
        let mut config: Config = toml::from_str(&disk)?;
        config.vm.kernel = Some(folder.file("kernel", kernel.elf()?)?);
        let vm = Vm::builder(config).build()?.start()?;
        let snapshot = folder.path("snapshot");
        vm.pause()?;
        vm.write_msr(VcpuId(0), 0x3f00, 1)?;
        vm.snapshot(&snapshot)?;
        vm.stop();
        vm.wait();
        Ok((folder, snapshot))
    };
    let saved = SAVED.get_or_init(|| make().map_err(|error| format!("{error:?}")));
    saved
        .as_ref()
        .map(|(_, snapshot)| &**snapshot)
        .map_err(|error| error.as_str().into())
}

fn restore() -> Result<Prepared, Failed> {
    let mut command = Command::new(assets::msr_vmm()?);
    command.arg("restore").arg(saved()?);
    Ok(Prepared {
        command,
        folder: Files::Own(Folder::new()?),
    })
}

/// Reads a pipe to its end, and sets `up` after the first line.
fn collect(mut pipe: io::PipeReader, up: Arc<AtomicBool>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        // What there is counts.
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            bytes.extend_from_slice(&piece[..length]);
            if bytes.contains(&b'\n') {
                up.store(true, Ordering::Release);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits until `up` or `ended`, for a while: output can be lost.
fn wait_for(up: &AtomicBool, ended: &AtomicBool) {
    let begin = Instant::now();
    while !up.load(Ordering::Acquire)
        && !ended.load(Ordering::Acquire)
        && begin.elapsed() < Duration::from_secs(1)
    {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lives through a scenario, with one failure or none.
pub(super) fn attempt(scenario: &Scenario, point: Option<&Point>) -> Result<Ran, Failed> {
    let Prepared {
        mut command,
        folder,
    } = (scenario.start)()?;
    let before = folder.names()?;
    let (console, stdout) = io::pipe()?;
    let (said, stderr) = io::pipe()?;
    let (input, _typing) = io::pipe()?;
    command.stdout(stdout).stderr(stderr);
    let socket = folder.path("socket");
    let snapshot = folder.path("snapshot");
    let requests = (scenario.requests)(&snapshot);
    if requests.is_empty() {
        command.stdin(Stdio::null());
    } else {
        command.stdin(input);
    }
    let tracee = Tracee::start(command)?;
    let up = Arc::new(AtomicBool::new(false));
    let (console, said) = (collect(console, up.clone()), collect(said, Arc::default()));
    let handle = tracee.handle()?;
    let ended = AtomicBool::new(false);
    let (traced, answers) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            wait_for(&up, &ended);
            let answers = client::ask(&socket, &requests, &ended);
            let begin = Instant::now();
            let unstopped = !requests.is_empty() && !answers.has("stop");
            while unstopped && !ended.load(Ordering::Acquire) {
                // As a person would; the second time without the guest being asked.
                handle.kill(libc::SIGTERM);
                thread::sleep(Duration::from_millis(500));
                if begin.elapsed() > LIMIT {
                    break;
                }
            }
            answers
        });
        let traced = tracee.run(point, LIMIT);
        ended.store(true, Ordering::Release);
        (traced, client.join().expect("the client does not panic"))
    });
    let traced = traced?;
    // The sandbox keeps the process from removing its socket.
    let own = ["snapshot", "socket"];
    let allowed = |name: &String| !before.contains(name) && !own.contains(&name.as_str());
    let seen = Seen {
        end: traced.end,
        took: traced.took,
        console: console.join().unwrap_or_default(),
        stderr: said.join().unwrap_or_default(),
        answers,
        left: folder.names()?.into_iter().filter(allowed).collect(),
        snapshot,
        disk: folder.path("disk"),
    };
    Ok(Ran {
        verdict: verdict::of(scenario, point, &seen),
        points: traced.points(),
        calls: traced.calls.len(),
        failed: traced.failed,
        stderr: seen.stderr,
    })
}
