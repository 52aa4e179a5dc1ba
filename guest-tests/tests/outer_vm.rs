//! How the endings of an outer VM are told apart: each of these boots one that runs this
//! executable.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Folder, TINY_ADDRESS, TinyKernel};
use guest_tests::guest::{digest, functions_digest};
use guest_tests::init;
use guest_tests::kernel::{Flavour, Release};
use guest_tests::nested::error::OuterError;
use guest_tests::nested::outer::OuterVm;
use libtest_mimic::{Arguments, Failed, Trial};
use msr_trace::symbols::Symbols;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [_, "--end-as", ending] => return end_as(ending),
        [_, "--compare-kallsyms", image] => return compare_kallsyms(image),
        [_, "--boot-to-hang"] => {
            // The parent ends this process long before the limit does.
            let _ = ending("hang");
            return ExitCode::FAILURE;
        }
        _ => {}
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
            "an_outer_vm_that_hangs_is_told_with_its_registers",
            a_hanging_outer_vm_is_told,
        ),
        Trial::test(
            "a_program_that_waits_for_ever_is_told_with_what_it_waits_for",
            a_program_that_waits_is_told,
        ),
        Trial::test(
            "the_demo_tells_a_guest_that_hangs_within_20_seconds",
            the_demo_tells_a_hang,
        ),
        Trial::test(
            "a_missing_program_is_an_error",
            a_missing_program_is_an_error,
        ),
        Trial::test(
            "symbols_of_the_image_are_those_of_a_kernel_that_moved_itself",
            symbols_of_a_moved_kernel,
        ),
        Trial::test("no_qemu_outlives_its_parent", no_qemu_outlives_its_parent),
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
        "hang" | "wait" => loop {
            std::thread::park();
        },
        "starve" => starve(),
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
    if ending == "starve" {
        vm.silence(Duration::from_secs(6));
    }
    if ending == "wait" {
        vm.idle_limit(IDLE_LIMIT);
    }
    Ok(vm.run(&assets::outer_kernel()?))
}

fn ending(ending: &str) -> Result<Result<u8, OuterError>, Failed> {
    run("/bin/outer-vm-test", ending)
}

/// Where the kernel's image, unpacked, and its msr module are in the outer VM.
const IMAGE: &str = "/vmlinux";
const MSR_MODULE: &str = "/msr.ko";

/// Boots each kernel with KASLR, and compares there.
fn symbols_of_a_moved_kernel() -> Result<(), Failed> {
    for release in [Release::Bookworm, Release::Trixie] {
        for flavour in [Flavour::Cloud, Flavour::Full] {
            let kernel = assets::kernel_of(release, flavour)?;
            let image = std::fs::read(kernel.image())?;
            let module = kernel.modules(&["msr"])?.pop().ok_or("no module msr")?;
            println!("{}", kernel.version());
            let mut vm = OuterVm::new(["/bin/outer-vm-test", "--compare-kallsyms", IMAGE]);
            vm.without_kvm()
                .with_kaslr()
                .file("/bin/outer-vm-test", std::env::current_exe()?)
                .contents(IMAGE, msr_vmm::boot::unpack(&image)?)
                .contents(MSR_MODULE, module.elf);
            let status = vm.run(&kernel)?;
            if status != 0 {
                return Err(format!("{}: status {status}", kernel.version()).into());
            }
        }
    }
    Ok(())
}

/// Compares the tables in this kernel's image, moved as IA32_LSTAR says, with its own /proc/kallsyms.
fn compare_kallsyms(image: &str) -> ExitCode {
    const LSTAR: u64 = 0xc000_0082;
    let compare = || -> Result<String, Failed> {
        init::load_module(Path::new(MSR_MODULE))?;
        let mut lstar = [0; 8];
        std::fs::File::open("/dev/cpu/0/msr")?.read_exact_at(&mut lstar, LSTAR)?;
        let mut symbols = Symbols::load(&std::fs::read(image)?)?;
        if !symbols.set_lstar(u64::from_le_bytes(lstar)) {
            return Err(format!("LSTAR {lstar:x?} is not entry_SYSCALL_64").into());
        }
        let slide = symbols.slide();
        let ours = digest(
            symbols
                .functions()
                .iter()
                .map(|s| (s.address + slide, &*s.name)),
        );
        let theirs = functions_digest(&std::fs::read_to_string("/proc/kallsyms")?);
        let text = format!("moved by {slide:#x}: {ours}; /proc/kallsyms: {theirs}");
        if ours == theirs {
            Ok(text)
        } else {
            Err(text.into())
        }
    };
    match compare() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", error.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

fn exit_statuses_come_back() -> Result<(), Failed> {
    for (as_asked, expected) in [("1", 1), ("255", 255), ("panic", 101)] {
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

/// Lets nothing else run, the init's heartbeat included: real-time threads on both CPUs that never yield.
fn starve() -> ExitCode {
    std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").expect("root may");
    let spin = || {
        let highest = libc::sched_param { sched_priority: 99 };
        // SAFETY: the parameter is valid; 0 is this thread.
        let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const highest) };
        assert_eq!(done, 0, "root may");
        loop {
            std::hint::spin_loop();
        }
    };
    std::thread::spawn(spin);
    spin()
}

fn a_hanging_outer_vm_is_told() -> Result<(), Failed> {
    match ending("starve")? {
        Err(OuterError::Silent { registers, .. })
            if registers.contains("RIP=") && registers.contains("CPU#1") =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

/// How long a program may be idle that is expected to wait for ever.
const IDLE_LIMIT: Duration = Duration::from_secs(6);

fn a_program_that_waits_is_told() -> Result<(), Failed> {
    match ending("wait")? {
        Err(OuterError::Stuck {
            seconds,
            registers,
            console,
        }) if seconds >= IDLE_LIMIT.as_secs()
            && registers.contains("CPU#1")
            // The program's main thread, and the system call in which it waits.
            && console.contains("task:outer-vm-test")
            && console.contains("futex_wait") =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn the_demo_tells_a_hang() -> Result<(), Failed> {
    const LIMIT: Duration = Duration::from_secs(20);
    let folder = Folder::new()?;
    let kernel = folder.file("kernel", TinyKernel::new()?.hang()?.elf()?)?;
    let mut demo = Command::new(assets::executable("demo")?)
        .env("KERNEL", kernel)
        .env("MODULES", assets::kernel()?.modules_directory())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    // What it says of the guest comes from the outer VM, by standard output, or is its own.
    let stdout = demo.stdout.take().ok_or("stdout is piped")?;
    let mut said = String::new();
    let mut booted = None;
    let mut told = None;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if line.starts_with("demo: booting") {
            booted = Some(Instant::now());
        } else if line.contains("the guest hangs") {
            told = booted.map(|booted| booted.elapsed());
        }
        said += &format!("{line}\n");
    }
    let status = demo.wait()?;
    let rip = format!("rip {:016x}", TINY_ADDRESS + 1);
    if status.code() == Some(1)
        && told.is_some_and(|time| time < LIMIT)
        && said.contains("vCPU 0: running, interrupts off")
        && said.contains(&rip)
    {
        return Ok(());
    }
    Err(format!("{status}, told after {told:?}\n{said}").into())
}

fn a_missing_program_is_an_error() -> Result<(), Failed> {
    match run("/bin/no-such-program", "0")? {
        Err(OuterError::Init(text)) if text.contains("/bin/no-such-program") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn no_qemu_outlives_its_parent() -> Result<(), Failed> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut parent = Command::new(std::env::current_exe()?)
            .arg("--boot-to-hang")
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = parent.stderr.take().ok_or("stderr is piped")?;
        // Kept open: a process that cannot say anything ends by itself.
        let mut said = BufReader::new(stderr).lines();
        said.next().ok_or("no sign of the outer VM")??;
        let qemu = wait_for("QEMU's start", || child_of(parent.id()))?;
        // SAFETY: kill takes no pointers; the process is our child and not yet waited for.
        unsafe { libc::kill(parent.id().cast_signed(), signal) };
        parent.wait()?;
        wait_for("QEMU's end", || (!runs(qemu)).then_some(()))?;
    }
    Ok(())
}

/// The QEMU that a process has started.
fn child_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let child = children.ok()?.split_whitespace().next()?.parse().ok()?;
    // Between fork and exec it is not QEMU yet. Its name may be that of the dynamic loader that runs it.
    let arguments = std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
    arguments.contains("-nodefaults").then_some(child)
}

/// Whether a process is there and more than a zombie that nobody has waited for.
fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok()
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T, Failed> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if let Some(value) = ready() {
            return Ok(value);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("no sign of {what}").into())
}
