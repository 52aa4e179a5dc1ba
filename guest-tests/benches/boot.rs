//! How long a boot takes, where its time goes, and what memory `msr-vmm` takes for itself.
//!
//! - Kernels of a few instructions, on the host where its KVM runs micro guests: the VMM's own time, from exec to exit.
//! - Debian's kernel up to its init, with 1 vCPU and 256 MiB, where KVM boots Linux: on the host or in the outer VM.
//!
//! Kernels alternate, so that what else the host does hits all alike. `VERBOSE=1` prints the guest's log as well, whose
//! time stamps show what the kernel waits for.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use guest_tests::guest::{End, Folder, Guest, Plan, Step};
use guest_tests::micro::{KERNEL_ADDRESS, write_kernel};
use guest_tests::{assets, backend, pack};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, ax, dx};
use msr_trace::Trace;
use msr_vmm::{BootEvent, layout};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MEMORY_MIB: &str = "256";
/// The columns' heads of a table that [`Times`] are rows of.
const HEAD: &str = "first KVM_RUN       init   exec-exit";

fn main() -> ExitCode {
    // `cargo bench` says so; anything else only wants to know that it runs.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let passed_on = if bench {
        vec!["--bench".to_owned()]
    } else {
        vec![]
    };
    if !backend::in_outer_vm()
        && msr_kvm::check::probe().can_run_micro_guests()
        && let Err(error) = tiny(if bench { 25 } else { 1 })
    {
        eprintln!("boot: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(status) = backend::run_elsewhere(&passed_on, pack::basics) {
        return status;
    }
    match linux(if bench { 5 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Kernels that say that they run, and switch off.
fn tiny(rounds: usize) -> Outcome<()> {
    let folder = Folder::new()?;
    let tiny = folder.path("tiny");
    write_kernel(&tiny, &power_off(KERNEL_ADDRESS)?)?;
    let vmlinux = folder.file("vmlinux", cut_short(vmlinux()?)?)?;
    let mut kernels = [
        ("a few instructions", tiny, Samples::default()),
        ("Debian's ELF, left at once", vmlinux, Samples::default()),
    ];
    for _ in 0..rounds {
        for (_, kernel, samples) in &mut kernels {
            samples.0.push(run(kernel)?);
        }
    }
    println!("tiny kernels, ms since exec, best / median of {rounds}:");
    println!("  {:<28}{HEAD}", "");
    for (name, _, samples) in &kernels {
        println!("  {name:<28}{}", samples.row());
    }
    println!("where the time of the best went:");
    print!("{}", kernels[0].2.best().table);

    let idle = folder.path("idle");
    write_kernel(&idle, &idle_for_ever(KERNEL_ADDRESS)?)?;
    let child = msr_vmm(&idle)?.stdout(Stdio::piped()).spawn()?;
    let mut child = Killed(child);
    // The kernel writes to its console when it is there.
    let console = child.0.stdout.as_mut().ok_or("no console")?;
    console.read_exact(&mut [0])?;
    println!("{}", OwnMemory::of(child.0.id())?);
    Ok(())
}

/// Debian's kernel, from both kinds of image, unpacked by the VMM and by itself.
fn linux(rounds: usize) -> Outcome<()> {
    let kernel = assets::kernel()?;
    let folder = Folder::new()?;
    let elf = kernel.with_image(folder.file("vmlinux", vmlinux()?)?);
    let config = format!("[vm]\ncpus = 1\nmemory = {MEMORY_MIB}\n");
    let trace = folder.path("trace");
    let trace_argument = trace.to_str().ok_or("a path that is not UTF-8")?;
    const NO_OPTIONS: &[&str] = &[];
    let mut images = [
        ("bzImage", &kernel, NO_OPTIONS, Samples::default()),
        (
            "bzImage, --kaslr",
            &kernel,
            &["--kaslr"],
            Samples::default(),
        ),
        ("ELF", &elf, NO_OPTIONS, Samples::default()),
        (
            "ELF, --trace --observe",
            &elf,
            &["--observe", "--trace", trace_argument],
            Samples::default(),
        ),
    ];
    let verbose = std::env::var_os("VERBOSE").is_some();
    // The log takes longer on the console than the boot.
    let plan = Plan::new(verbose.then_some(Step::KernelLog));
    for _ in 0..rounds {
        for (_, kernel, options, samples) in &mut images {
            let guest = Guest::with_kernel(kernel, &config, plan.clone())?;
            let guest = options.iter().fold(guest, |g, option| g.argument(*option));
            let start = Instant::now();
            let outcome = guest.argument("--boot-timing").run()?;
            let exit = start.elapsed().as_secs_f64() * 1e3;
            if verbose {
                eprintln!("{}", outcome.report()?.text(0).unwrap_or_default());
            }
            samples.0.push(Times::new(outcome.stderr, exit)?);
        }
    }
    println!(
        "Debian's kernel, 1 vCPU, {MEMORY_MIB} MiB, ms since exec, best / median of {rounds}:"
    );
    println!("  {:<28}{HEAD}", "");
    for (name, _, _, samples) in &images {
        println!("  {name:<28}{}", samples.row());
    }
    for (name, _, _, samples) in &images {
        println!("where the time of the best went, {name}:");
        print!("{}", samples.best().table);
    }
    println!("{}", BytesARecord::of(&trace)?);
    let mut guest = Guest::with_kernel(&elf, &config, Plan::new([]).ending(End::Idle))?.start()?;
    guest.wait_for("@ ")?;
    println!("{}", OwnMemory::of(guest.pid())?);
    Ok(())
}

/// The ELF file inside Debian's kernel image.
fn vmlinux() -> Outcome<Vec<u8>> {
    Ok(msr_vmm::boot::unpack(&fs::read(
        assets::kernel()?.image(),
    )?)?)
}

/// The kernel with its first instructions replaced by ones that switch off.
fn cut_short(mut elf: Vec<u8>) -> Outcome<Vec<u8>> {
    // Elf64_Ehdr and Elf64_Phdr; the file was found to be one by those who unpacked it.
    let u64_at = |at: usize| elf[at..at + 8].try_into().map(u64::from_le_bytes);
    let (entry, headers) = (u64_at(24)?, u64_at(32)? as usize);
    let count = usize::from(u16::from_le_bytes(elf[56..58].try_into()?));
    for header in (0..count).map(|number| headers + 56 * number) {
        let (offset, address, size) = (
            u64_at(header + 8)?,
            u64_at(header + 24)?,
            u64_at(header + 32)?,
        );
        if elf[header] == 1 && (address..address + size).contains(&entry) {
            let at = (offset + entry - address) as usize;
            let code = power_off(entry)?;
            elf[at..at + code.len()].copy_from_slice(&code);
            return Ok(elf);
        }
    }
    Err("the kernel's entry point is in none of its segments".into())
}

fn power_off(address: u64) -> Result<Vec<u8>, IcedError> {
    const SLEEP: u16 = (layout::ACPI_S5_SLEEP_TYPE as u16) << 10 | 1 << 13;
    let mut a = CodeAssembler::new(64)?;
    stop_boot_timer(&mut a)?;
    a.mov(dx, i32::from(layout::PM1A_CONTROL))?;
    a.mov(ax, i32::from(SLEEP))?;
    a.out(dx, ax)?;
    halt(&mut a)?;
    a.assemble(address)
}

fn idle_for_ever(address: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(dx, i32::from(layout::COM1))?;
    a.mov(al, i32::from(b'\n'))?;
    a.out(dx, al)?;
    halt(&mut a)?;
    a.assemble(address)
}

fn stop_boot_timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, i32::from(layout::BOOT_TIMER))?;
    a.out(dx, al)
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

fn msr_vmm(kernel: &Path) -> Outcome<Command> {
    let path: PathBuf = assets::msr_vmm()?;
    let mut command = Command::new(path);
    command.args(["run", "--memory", MEMORY_MIB, "--boot-timing", "--kernel"]);
    command.arg(kernel).stdin(Stdio::null());
    Ok(command)
}

fn run(kernel: &Path) -> Outcome<Times> {
    let mut command = msr_vmm(kernel)?;
    let start = Instant::now();
    let output = command.output()?;
    let exit = start.elapsed().as_secs_f64() * 1e3;
    let stderr = String::from_utf8(output.stderr)?;
    if output.status.success() {
        Times::new(stderr, exit)
    } else {
        Err(format!("{}: {stderr}", output.status).into())
    }
}

/// The times of one run, in ms, and the table of `--boot-timing` that they are from.
struct Times {
    first_run: f64,
    init: f64,
    exit: f64,
    table: String,
}

impl Times {
    fn new(stderr: String, exit: f64) -> Outcome<Self> {
        let at = |moment: BootEvent| -> Outcome<f64> {
            let label = moment.label();
            let mut lines = stderr.lines().map(str::trim_start);
            let row = lines.find_map(|line| line.strip_prefix(label));
            let number = row.and_then(|row| row.split_whitespace().next());
            Ok(number
                .ok_or_else(|| format!("no `{label}` in {stderr}"))?
                .parse()?)
        };
        Ok(Self {
            first_run: at(BootEvent::FirstRun)?,
            init: at(BootEvent::Init)?,
            exit,
            table: stderr,
        })
    }
}

/// The runs with one kernel.
#[derive(Default)]
struct Samples(Vec<Times>);

impl Samples {
    fn row(&self) -> String {
        let columns = [
            |times: &Times| times.first_run,
            |times: &Times| times.init,
            |times: &Times| times.exit,
        ];
        let cell = |column: fn(&Times) -> f64| {
            let mut values: Vec<f64> = self.0.iter().map(column).collect();
            values.sort_unstable_by(f64::total_cmp);
            format!("{:.1} / {:.1}", values[0], values[values.len() / 2])
        };
        columns
            .map(|column| format!("{:<16}", cell(column)))
            .concat()
    }

    /// The one whose init ran soonest.
    fn best(&self) -> &Times {
        let best = self.0.iter().min_by(|a, b| a.init.total_cmp(&b.init));
        best.expect("there is at least one round")
    }
}

/// What is resident of a process, without the guest's memory.
struct OwnMemory {
    own_kib: u64,
    /// As much of it is in no file: every process has its own, while all share what is resident of the executable.
    anonymous_kib: u64,
    guest_kib: u64,
}

impl OwnMemory {
    fn of(pid: u32) -> Outcome<Self> {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let values = |field: &'static str| {
            let lines = smaps
                .lines()
                .filter_map(move |line| line.strip_prefix(field));
            lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        };
        // Nothing is nearly as large as the guest's memory.
        let sizes = values("Size:")
            .zip(values("Rss:"))
            .zip(values("Anonymous:"));
        let ((_, guest_kib), guest_anonymous) = sizes.max().ok_or("no mappings")?;
        Ok(Self {
            own_kib: values("Rss:").sum::<u64>() - guest_kib,
            anonymous_kib: values("Anonymous:").sum::<u64>() - guest_anonymous,
            guest_kib,
        })
    }
}

impl std::fmt::Display for OwnMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            own_kib,
            anonymous_kib,
            guest_kib,
        } = self;
        write!(
            f,
            "resident: {own_kib} KiB of msr-vmm itself, {anonymous_kib} KiB without its executable; \
             {guest_kib} KiB of guest memory"
        )
    }
}

/// The goal of a boot's trace.
const BYTES_A_RECORD: f64 = 24.0;

/// How large a trace is.
struct BytesARecord {
    records: u64,
    bytes: f64,
}

impl BytesARecord {
    fn of(path: &Path) -> Outcome<Self> {
        let trace = Trace::open(path)?;
        Ok(Self {
            records: trace.len(),
            bytes: trace.blocks_length() as f64 / trace.len() as f64,
        })
    }
}

impl std::fmt::Display for BytesARecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { records, bytes } = self;
        let verdict = if *bytes <= BYTES_A_RECORD {
            "met"
        } else {
            "missed"
        };
        write!(
            f,
            "the trace: {records} records of {bytes:.1} bytes (goal: at most {BYTES_A_RECORD}, {verdict})"
        )
    }
}

/// A process that does not outlive this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
