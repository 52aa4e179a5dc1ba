//! One guest from its start to its end, with a client beside it.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::Guest;
use guest_tests::random::Random;
use libtest_mimic::Failed;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::long::{self, Ending};
use crate::client::Connection;

/// When the VMM's memory is looked at first: a minute, or half of its life.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// How often the VM is saved.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// How long a VMM may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How many vCPUs there are.
const CPUS: usize = 2;

/// What every VM has.
const BASE: &str = r#"
cpu = { vendor = "GenuineIntel", family = 6, model = 106 }
vm.entropy = true
vm.prefault = true
[[msr.device]]
type = "microcode"
signature = 0x606a6
[[msr.device]]
type = "rapl"
[[msr.device]]
type = "scratch"
msr = "0x3f00"
"#;
/// What some have besides: devices that ask the host or KVM for something, and limits of their disk and random numbers.
const MORE: &str = r#"
[[msr.device]]
type = "aperfmperf"
[[msr.device]]
type = "thermal"
[[msr.device]]
type = "ppin"
ppin = ["0x1234"]
[[msr.device]]
type = "platform"
base_mhz = 2000
[[msr.device]]
type = "forward"
msrs = ["0xc0000081-0xc0000084", "0x174-0x176"]
write = "forward"
[vm.entropy_rate_limiter]
bandwidth = { size = 65536, refill_time = 10 }
"#;
/// What the disk of those has.
const LIMITS: &str = r#"
[vm.disk.rate_limiter]
bandwidth = { size = 1048576, refill_time = 10 }
ops = { size = 100, refill_time = 10 }
"#;

const FILTERS: [&str; 4] = [
    "default = \"allow\"",
    "default = \"deny\"\n[[rule]]\nmsrs = [\"0x200-0x5ff\"]\naccess = \"r\"\nverdict = \"allow\"",
    // It contradicts the microcode's claim of 0x17, so it is refused.
    "default = \"deny\"\n[[rule]]\nmsrs = [\"0-0x1fff\"]\naccess = \"r\"\nverdict = \"allow\"",
    "[[rule]]\nmsrs = [\"0xc0000000-0xc0001fff\"]\naccess = \"rw\"\nverdict = \"deny\"",
];

/// A guest that has started.
pub(super) struct Life {
    seed: u64,
    guest: Guest,
    vmm: Child,
    /// None where the guest had ended before a client could connect.
    connection: Option<Connection>,
    tick: Duration,
    random: Random,
}

/// What was seen of it.
#[derive(Default)]
pub(super) struct Lived {
    pub(super) times: Vec<(&'static str, Took)>,
    /// What a client was refused, in words.
    pub(super) refused: Vec<String>,
    pub(super) log_lines: usize,
    pub(super) lived: Duration,
    /// What is resident of the VMM at the first look and at the last, in KiB.
    pub(super) memory: (u64, u64),
    /// MSR accesses that came to the VMM.
    pub(super) msr_exits: u64,
    /// Exits of each vCPU of a guest that did not end itself.
    pub(super) exits: Vec<u64>,
    pub(super) ended_itself: bool,
    /// In order, or with which status and what last words.
    pub(super) end: String,
}

/// How long an answer took, and how long the VMM's threads waited for a CPU meanwhile, all together.
#[derive(Clone, Copy)]
pub(super) struct Took {
    pub(super) time: Duration,
    pub(super) waited: Duration,
}

impl Life {
    pub(super) fn new(seed: u64, ending: Ending, tick: Duration) -> Result<Self, Failed> {
        let mut random = Random::new(seed);
        let guest = Guest::tiny(&mut long::kernel(&mut random, ending)?)?;
        let disk = guest.folder().file("disk", vec![0; 1 << 20])?;
        let (more, limits) = random.of(&[("", ""), (MORE, LIMITS)]);
        let disk = format!("[[vm.disk]]\npath = '{}'\n", disk.display());
        let config = [BASE, more, &disk, limits].concat();
        let config = guest.folder().file("config.toml", config)?;
        let socket = guest.folder().path("socket");
        let snapshots = guest.folder().path("snapshots");
        fs::create_dir(&snapshots)?;
        let guest = guest
            .option("--cpus", CPUS.to_string())
            .option("--config", config)
            .option("--control", &socket)
            .option("--sandbox", "on")
            .option("--snapshots", snapshots);
        let mut command = guest.command()?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(guest.folder().path("log"))?);
        let vmm = command.spawn()?;
        let mut life = Self {
            seed,
            guest,
            vmm,
            connection: None,
            tick,
            random,
        };
        match Connection::open(&socket, &AtomicBool::new(false)) {
            Ok(connection) => life.connection = Some(connection),
            Err(what) => {
                life.must_have_ended(&what)?;
            }
        }
        Ok(life)
    }

    /// Lives until then, or until the guest ends by itself, and sees that the VMM ends in order.
    pub(super) fn live(mut self, until: Instant) -> Result<Lived, Failed> {
        let begin = Instant::now();
        let time = until.saturating_duration_since(begin);
        let first_look = begin + FIRST_LOOK.min(time / 2);
        let mut save_at = begin + SAVE_EVERY.min(time / 2);
        let mut lived = Lived::default();
        let mut first = None;
        let mut next = begin;
        let mut ended = None;
        while ended.is_none() && Instant::now() < until {
            next += self.tick;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            ended = self.tick(&mut lived)?;
            let now = Instant::now();
            lived.memory.1 = self.memory().unwrap_or(lived.memory.1);
            if now >= first_look {
                first.get_or_insert(lived.memory.1);
            }
            if ended.is_none() && now >= save_at {
                save_at = now + SAVE_EVERY;
                ended = self.save(&mut lived)?;
                // The next question does not wait for this.
                next = Instant::now();
            }
        }
        lived.lived = begin.elapsed();
        lived.memory.0 = first.unwrap_or(lived.memory.1);
        lived.ended_itself = ended.is_some();
        lived.log_lines = self.log()?.lines().count();
        let status = match ended {
            Some(status) => status,
            None => {
                lived.exits = self.exits()?;
                // Whatever the answer, the VMM is to end.
                let _ = self.call("stop", json!({}), &mut lived)?;
                self.must_have_ended("stop")?
            }
        };
        let log = self.log()?;
        let in_order = matches!(status.code(), Some(0 | 1));
        if !in_order || log.contains("panicked") || log.contains("sandbox violation") {
            return Err(format!("SEED={}: {status}\n{log}", self.seed).into());
        }
        lived.end = match status.code() {
            Some(0) => "in order".to_owned(),
            _ => format!("{status}: {}", last_words(&log)),
        };
        Ok(lived)
    }

    /// Asks how the VM is, and does one more thing that a client can do. Says whether the VMM has ended.
    fn tick(&mut self, lived: &mut Lived) -> Result<Option<ExitStatus>, Failed> {
        match self.call("status", json!({}), lived)? {
            Ok(status) => lived.msr_exits = status["msr_exits"].as_u64().unwrap_or(lived.msr_exits),
            Err(ended) => return Ok(Some(ended)),
        }
        let method = self.random.of(&[
            "pause",
            "pause",
            "filter-set",
            "read-msr",
            "write-msr",
            "stats",
        ]);
        let params = match method {
            "filter-set" => json!({ "toml": self.random.of(&FILTERS) }),
            "read-msr" => {
                json!({ "msr": self.random.msr().to_string(), "vcpu": self.random.below(2) })
            }
            "write-msr" => json!({ "msr": "0x3f00", "value": 1 }),
            _ => json!({}),
        };
        let done = self.call(method, params, lived)?;
        if method == "pause" && done.is_ok() {
            return Ok(self.call("resume", json!({}), lived)?.err());
        }
        Ok(done.err())
    }

    /// The answer to a request, or how the VMM ended instead. A refusal is an answer.
    fn call(
        &mut self,
        method: &'static str,
        params: Value,
        lived: &mut Lived,
    ) -> Result<Result<Value, ExitStatus>, Failed> {
        let waited = self.waited();
        let begin = Instant::now();
        let answer = match &mut self.connection {
            Some(connection) => connection.call(method, &params),
            None => Err("there is no connection".into()),
        };
        match answer {
            Ok(Ok(value)) => {
                let time = begin.elapsed();
                let waited = self.waited().saturating_sub(waited);
                lived.times.push((method, Took { time, waited }));
                Ok(Ok(value))
            }
            Ok(Err(words)) => {
                lived.refused.push(format!("{method}: {words}"));
                Ok(Ok(Value::Null))
            }
            Err(what) => self.must_have_ended(&format!("{method}: {what}")).map(Err),
        }
    }

    fn save(&mut self, lived: &mut Lived) -> Result<Option<ExitStatus>, Failed> {
        let folder = self.guest.folder().path("snapshots/one");
        match self.call("snapshot", json!({ "folder": folder }), lived)? {
            Ok(Value::Null) => {}
            Ok(_) => {
                msr_vmm::snapshot::Snapshot::read(&folder)?;
                fs::remove_dir_all(folder)?;
            }
            Err(ended) => return Ok(Some(ended)),
        }
        Ok(None)
    }

    /// How often each vCPU has left KVM_RUN, as the VMM says when it is sent SIGUSR1.
    fn exits(&self) -> Result<Vec<u64>, Failed> {
        let pid = Pid::from_raw(self.vmm.id().cast_signed());
        signal::kill(pid, Signal::SIGUSR1)?;
        let limit = Instant::now() + END_LIMIT;
        loop {
            let log = self.log()?;
            let exits = log.lines().filter_map(|line| {
                let exits = line.strip_suffix(" exits")?.rsplit(' ').next()?;
                exits.parse().ok()
            });
            let exits: Vec<u64> = exits.collect();
            if exits.len() == CPUS {
                return Ok(exits);
            }
            if Instant::now() > limit {
                return Err(format!("SEED={}: {exits:?}\n{log}", self.seed).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the VMM has said.
    fn log(&self) -> Result<String, Failed> {
        let log = fs::read(self.guest.folder().path("log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// How the VMM ended, which it must within [`END_LIMIT`].
    fn must_have_ended(&mut self, after: &str) -> Result<ExitStatus, Failed> {
        let limit = Instant::now() + END_LIMIT;
        loop {
            if let Some(status) = self.vmm.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > limit {
                let seed = self.seed;
                return Err(format!("SEED={seed}: after {after} the VMM goes on").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// How long the VMM's threads have waited for a CPU so far, all together (Documentation/scheduler/sched-stats.rst).
    fn waited(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.vmm.id()));
        let waited = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Duration::from_nanos(waited.sum())
    }

    /// What is resident of the VMM, in KiB.
    fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.vmm.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

/// Why it ended, as the VMM says it.
fn last_words(log: &str) -> &str {
    let stopped = log.lines().rev().find(|line| line.contains(" stopped: "));
    stopped.or(log.lines().last()).unwrap_or_default()
}

impl Drop for Life {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
