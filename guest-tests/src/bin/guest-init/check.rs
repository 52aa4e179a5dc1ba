//! Processes beside the init that check memory, registers, clocks and counters for as long as the machine lives: see [`Check`].

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::process::{self, Command};
use std::time::{Duration, Instant, SystemTime};

use guest_tests::guest::{CHECK_ARGUMENT, Check, INTEL_HEADER, IntelUpdate};
use msr_bus::SplitMix64;

use crate::msr::{self, Msrs};

/// A process's memory, in pages, and how many of them it changes in a pass. After as many passes as there are pages in a pass all
/// are looked at.
const PAGES: usize = 768;
const CHANGED: usize = 16;
const WORDS: usize = 512;
/// How often a process tells how far it is.
const TELL: Duration = Duration::from_millis(250);
/// How often one loads microcode.
const UPDATE: Duration = Duration::from_secs(1);

const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;

/// Starts a process for each.
pub(crate) fn start(checks: &[Check]) -> io::Result<()> {
    for check in checks {
        let json = serde_json::to_string(check).map_err(io::Error::other)?;
        Command::new("/init")
            .arg(CHECK_ARGUMENT)
            .arg(json)
            .spawn()?;
    }
    Ok(())
}

/// What such a process does.
pub(crate) fn main() -> ! {
    let mut arguments = env::args().skip(1);
    let check = match (arguments.next().as_deref(), arguments.next()) {
        (Some(CHECK_ARGUMENT), Some(json)) => serde_json::from_str(&json),
        other => {
            println!("wrong: a process was started with {other:?}");
            process::exit(2);
        }
    };
    let wrong: Result<(), Wrong> = check.map_err(Wrong::of).and_then(|check: Check| {
        let label = check.label();
        match check {
            Check::KernelLog => kernel_log().map_err(Wrong::of),
            Check::Cpus {
                cpus,
                counters,
                any_counters,
                microcode,
            } => cpus_forever(&label, &cpus, &counters, &any_counters, microcode)
                .map_err(|wrong| Wrong(format!("on CPU {label}: {wrong}"))),
        }
    });
    if let Err(wrong) = wrong {
        println!("wrong: {wrong}");
    }
    process::exit(1);
}

/// What is not as it must be.
struct Wrong(String);

impl Wrong {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn cpus_forever(
    label: &str,
    cpus: &[u32],
    counters: &[u32],
    any_counters: &[u32],
    microcode: Option<u32>,
) -> Result<(), Wrong> {
    let first = *cpus.first().ok_or_else(|| Wrong::of("no CPU"))?;
    msr::pin(first).map_err(Wrong::of)?;
    let mut counters = Counters::new(first, counters, any_counters)?;
    let mut microcode = match microcode {
        Some(signature) => Some(Microcode::new(first, signature)?),
        None => None,
    };
    let mut memory = Memory::new(u64::from(first) + cpus.len() as u64);
    let mut clocks = Clocks::new();
    let mut registers = Registers::default();
    let mut told = Instant::now();
    for pass in 0_usize.. {
        msr::pin(cpus[pass % cpus.len()]).map_err(Wrong::of)?;
        memory.pass()?;
        registers.pass(pass as u64)?;
        clocks.pass()?;
        counters.pass()?;
        if let Some(microcode) = &mut microcode {
            microcode.pass()?;
        }
        if pass % CHANGED == 0 {
            memory.check_all()?;
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            println!("checked {label} {pass}");
        }
    }
    Ok(())
}

/// Memory that changes all the time, with a checksum of each page.
struct Memory {
    words: Vec<u64>,
    sums: Vec<u64>,
    random: SplitMix64,
}

impl Memory {
    fn new(seed: u64) -> Self {
        let mut memory = Self {
            words: vec![0; PAGES * WORDS],
            sums: vec![0; PAGES],
            random: SplitMix64(seed),
        };
        for page in 0..PAGES {
            memory.change(page);
        }
        memory
    }

    fn page(&self, page: usize) -> &[u64] {
        &self.words[page * WORDS..][..WORDS]
    }

    fn change(&mut self, page: usize) {
        let mut value = self.random.next();
        for word in &mut self.words[page * WORDS..][..WORDS] {
            value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            *word = value;
        }
        self.sums[page] = sum(self.page(page));
    }

    fn check(&self, page: usize) -> Result<(), Wrong> {
        let (found, expected) = (sum(self.page(page)), self.sums[page]);
        if found == expected {
            return Ok(());
        }
        Err(Wrong(format!(
            "page {page} has the checksum {found:#x} and should have {expected:#x}"
        )))
    }

    fn pass(&mut self) -> Result<(), Wrong> {
        for _ in 0..CHANGED {
            let page = self.random.next() as usize % PAGES;
            self.check(page)?;
            self.change(page);
        }
        Ok(())
    }

    fn check_all(&self) -> Result<(), Wrong> {
        (0..PAGES).try_for_each(|page| self.check(page))
    }
}

/// Depends on each word and its place (FNV-1a's way, by words).
fn sum(page: &[u64]) -> u64 {
    page.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| {
        (sum ^ word).wrapping_mul(0x100_0000_01b3)
    })
}

/// Sums in floating point that are known to be exact.
#[derive(Default)]
struct Registers {
    sums: [f64; 4],
}

impl Registers {
    fn pass(&mut self, pass: u64) -> Result<(), Wrong> {
        const STEPS: u64 = 256;
        let mut sums = self.sums;
        for step in 0..STEPS {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum += (step + lane as u64) as f64;
            }
        }
        self.sums = sums;
        let passes = pass + 1;
        for (lane, sum) in (0..).zip(sums) {
            // Exact below 2^53.
            let expected = (passes * (STEPS * (STEPS - 1) / 2 + STEPS * lane)) as f64;
            if sum != expected {
                return Err(Wrong(format!(
                    "the sum {lane} is {sum}, and should be {expected}"
                )));
            }
        }
        Ok(())
    }
}

/// The clocks that every process sees.
struct Clocks {
    tsc: u64,
    monotonic: Instant,
    realtime: SystemTime,
    source: String,
}

impl Clocks {
    fn new() -> Self {
        Self {
            tsc: tsc(),
            monotonic: Instant::now(),
            realtime: SystemTime::now(),
            source: clocksource(),
        }
    }

    fn pass(&mut self) -> Result<(), Wrong> {
        let now = Self::new();
        for (what, forwards) in [
            (
                format!("the TSC, from {:#x} to {:#x}", self.tsc, now.tsc),
                now.tsc >= self.tsc,
            ),
            (
                format!(
                    "CLOCK_MONOTONIC, from {:?} to {:?}",
                    self.monotonic, now.monotonic
                ),
                now.monotonic >= self.monotonic,
            ),
            (
                format!(
                    "CLOCK_REALTIME, from {:?} to {:?}",
                    self.realtime, now.realtime
                ),
                now.realtime >= self.realtime,
            ),
        ] {
            if !forwards {
                return Err(Wrong(format!("{what} runs backwards")));
            }
        }
        if now.source != self.source {
            let what = format!("the clocksource {} became {}", self.source, now.source);
            return Err(Wrong(what));
        }
        *self = now;
        Ok(())
    }
}

fn clocksource() -> String {
    const FILE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let read = std::fs::read_to_string(FILE);
    read.unwrap_or_else(|error| error.to_string())
        .trim()
        .to_owned()
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has both instructions, and Linux lets processes execute them.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// MSRs that count up.
struct Counters {
    msrs: Option<Msrs>,
    values: Vec<(u32, u64)>,
}

impl Counters {
    fn new(cpu: u32, indices: &[u32], any: &[u32]) -> Result<Self, Wrong> {
        if indices.is_empty() {
            return Ok(Self {
                msrs: None,
                values: Vec::new(),
            });
        }
        let msrs = Msrs::of(cpu).map_err(Wrong::of)?;
        let mut values: Vec<_> = indices.iter().map(|index| (*index, 0)).collect();
        let count = |index: &u32| Some((*index, msrs.read(*index).ok()?));
        values.extend(any.iter().filter_map(count).filter(|(_, value)| *value > 0));
        if !any.is_empty() && values.len() == indices.len() {
            return Err(Wrong(format!("none of the MSRs {any:x?} counts")));
        }
        Ok(Self {
            msrs: Some(msrs),
            values,
        })
    }

    fn pass(&mut self) -> Result<(), Wrong> {
        let Some(msrs) = &self.msrs else {
            return Ok(());
        };
        for (index, value) in &mut self.values {
            let now = msrs
                .read(*index)
                .map_err(|error| Wrong(format!("MSR {index:#x}: {error}")))?;
            if now < *value {
                return Err(Wrong(format!(
                    "MSR {index:#x} went from {value:#x} to {now:#x}"
                )));
            }
            *value = now;
        }
        Ok(())
    }
}

/// A CPU's microcode, updated again and again.
struct Microcode {
    msrs: Msrs,
    signature: u32,
    revision: u32,
    updated: Instant,
}

impl Microcode {
    fn new(cpu: u32, signature: u32) -> Result<Self, Wrong> {
        let msrs = Msrs::of(cpu).map_err(Wrong::of)?;
        let revision = msrs.read(IA32_BIOS_SIGN_ID).map_err(Wrong::of)?;
        Ok(Self {
            msrs,
            signature,
            revision: (revision >> 32) as u32,
            updated: Instant::now(),
        })
    }

    fn pass(&mut self) -> Result<(), Wrong> {
        if self.updated.elapsed() > UPDATE {
            self.updated = Instant::now();
            self.revision += 1;
            let update = IntelUpdate {
                revision: self.revision,
                signature: self.signature,
                flags: 1,
            };
            // The loader is given the address of what comes after the header. WRMSR is executed on the CPU that this process is on.
            let bytes = update.bytes();
            let address = bytes.as_ptr().addr() as u64 + u64::from(INTEL_HEADER);
            let written = self.msrs.write(IA32_BIOS_UPDT_TRIG, address);
            written.map_err(|error| Wrong(format!("the microcode update: {error}")))?;
        }
        let found = self.msrs.read(IA32_BIOS_SIGN_ID).map_err(Wrong::of)?;
        if found == u64::from(self.revision) << 32 {
            return Ok(());
        }
        let revision = self.revision;
        Err(Wrong(format!(
            "the microcode revision is {found:#x}, and {revision:#x} was loaded last"
        )))
    }
}

/// Follows the kernel's log (Documentation/ABI/testing/dev-kmsg): a record a read.
fn kernel_log() -> io::Result<()> {
    const WARNING: u32 = 4;
    let mut log = OpenOptions::new().read(true).open("/dev/kmsg")?;
    let mut record = [0; 8192];
    loop {
        let length = match log.read(&mut record) {
            Ok(length) => length,
            // Records that were overwritten before they were read.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => return Err(error),
        };
        let record = String::from_utf8_lossy(&record[..length]);
        let Some((head, text)) = record.split_once(';') else {
            continue;
        };
        let priority = head.split(',').next().and_then(|text| text.parse().ok());
        let level = priority.unwrap_or(0_u32) & 7;
        // What Linux says of a TSC that it no longer trusts is no warning.
        if level <= WARNING || text.contains("unstable") {
            let text = text.lines().next().unwrap_or_default();
            println!("kernel: {text}");
        }
    }
}
