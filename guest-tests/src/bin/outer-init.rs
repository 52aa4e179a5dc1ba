//! PID 1 of the outer VM: loads KVM, runs the job that the host left in the initramfs, reports how
//! it ended, and has QEMU exit. Works without a shell and without a disk.

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::init::{self, Ended};
use guest_tests::nested::control::{
    CONTROL_PORT, EXIT_PORT, Event, HEARTBEAT, JOB_PATH, Job, OUTPUT_TTY,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

fn main() {
    // Without the ports there is no way to tell the host. The panic of PID 1 panics the kernel, and
    // the host shows the console.
    let ports = Ports::open().expect("I/O ports for PID 1");
    let event = match run(&ports) {
        Ok(Ended::Exited(status)) => Event::Exited(status),
        Ok(Ended::Signalled(signal)) => Event::Signalled(signal),
        Err(error) => Event::Failed(error.to_string()),
    };
    ports.send(&event);
    ports.exit();
}

fn run(ports: &Ports) -> Result<Ended, Box<dyn Error>> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tracefs", "/sys/kernel/tracing"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(at)?;
        init::mount(kind, at).map_err(|error| format!("cannot mount {kind} on {at}: {error}"))?;
    }
    ports.send(&Event::Up);
    let job: Job = serde_json::from_slice(&fs::read(JOB_PATH)?)?;
    let idle_limit = job.idle_limit;
    // A thread inherits the permission for the ports.
    thread::spawn(move || send_signs_of_life(&Ports(()), idle_limit));

    for module in &job.modules {
        init::load_module(Path::new(module))
            .map_err(|error| format!("cannot load {module}: {error}"))?;
    }
    let output = fs::OpenOptions::new().write(true).open(OUTPUT_TTY)?;
    set_raw(&output)?;
    // Kept until the job has ended.
    let _idle = idle_vcpus(&job).map_err(|error| format!("KVM makes no VM: {error}"))?;
    bring_up_cpus().map_err(|error| format!("cannot bring up the other CPUs: {error}"))?;
    ports.send(&Event::Ready);

    let (program, arguments) = job.argv.split_first().ok_or("the job names no program")?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(job.env)
        .current_dir(&job.cwd)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let ended = init::wait_for(child.id())?;
    init::drain(&output);
    Ok(ended)
}

/// Says every [`HEARTBEAT`] that the kernel and this process live, and ends the VM where nothing else works for so long.
fn send_signs_of_life(ports: &Ports, idle_limit: Duration) {
    let mut watch = CpuWatch::new();
    loop {
        thread::sleep(HEARTBEAT);
        ports.send(&Event::Alive);
        let idle = watch.idle();
        if idle < idle_limit {
            continue;
        }
        ports.send(&Event::Stuck(idle.as_secs()));
        // Time for the host to ask QEMU for the CPUs as they are: what follows wakes them.
        thread::sleep(HOST_LOOKS);
        show_tasks();
        ports.exit();
    }
}

/// How long the host takes to look at the CPUs.
const HOST_LOOKS: Duration = Duration::from_secs(8);

/// Has the kernel print the stacks of all its tasks to the console.
fn show_tasks() {
    for (file, text) in [
        ("/proc/sys/kernel/printk", "8"),
        ("/proc/sysrq-trigger", "w"),
        ("/proc/sysrq-trigger", "t"),
        ("/proc/sysrq-trigger", "l"),
    ] {
        // A kernel without SysRq prints nothing, and the host shows the registers alone.
        let _ = fs::write(file, text);
    }
}

/// How long the CPUs have had next to no work.
struct CpuWatch {
    since: Instant,
    busy: u64,
}

impl CpuWatch {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            busy: busy_ticks(),
        }
    }

    /// For how long.
    fn idle(&mut self) -> Duration {
        // The signs of life cost one tick in hundreds.
        const TICKS_PER_SECOND: u64 = 100;
        const BUSY_SHARE: u64 = 20;
        let idle = self.since.elapsed();
        let busy = busy_ticks();
        if busy - self.busy > (idle.as_secs() + 1) * TICKS_PER_SECOND / BUSY_SHARE {
            *self = Self::new();
            return Duration::ZERO;
        }
        idle
    }
}

/// How many hundredths of a second all CPUs together have worked, by `/proc/stat` (proc(5)).
fn busy_ticks() -> u64 {
    const IDLE: usize = 3;
    const IO_WAIT: usize = 4;
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    let ticks = all.split_ascii_whitespace().skip(1);
    ticks
        .enumerate()
        .filter(|&(column, _)| column != IDLE && column != IO_WAIT)
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum()
}

/// vCPUs that never run, with and without a local APIC, and their VMs: for as long as they exist, KVM's
/// static keys stay as they are.
///
/// The first VM, the first vCPU without a local APIC and the first with a disabled one switch keys on, and the
/// last ones to go switch them off. Each switch patches code that other CPUs execute at that moment, such as the
/// scheduler's, and QEMU 7.2's multi-threaded TCG now and then leaves a CPU at the breakpoint of such a patch
/// for good (`asm_exc_int3` in `__schedule`, and an RCU stall). For the same reason the kernel boots on one CPU:
/// while it patches itself there is no other to stumble.
fn idle_vcpus(job: &Job) -> Result<Vec<(VmFd, VcpuFd)>, kvm_ioctls::Error> {
    if job.modules.is_empty() {
        return Ok(Vec::new());
    }
    let kvm = Kvm::new()?;
    let make = |local_apic: bool| {
        let vm = kvm.create_vm()?;
        if local_apic {
            vm.create_irq_chip()?;
        }
        let vcpu = vm.create_vcpu(0)?;
        Ok((vm, vcpu))
    };
    [false, true].into_iter().map(make).collect()
}

/// Brings up the CPUs that the kernel left down.
fn bring_up_cpus() -> io::Result<()> {
    const CPUS: &str = "/sys/devices/system/cpu";
    // There is no such file of the first CPU, which is up.
    for number in 1.. {
        let online = Path::new(CPUS).join(format!("cpu{number}/online"));
        if !online.exists() {
            break;
        }
        fs::write(online, "1")?;
    }
    Ok(())
}

/// Has the serial line carry bytes as they are.
fn set_raw(tty: &fs::File) -> io::Result<()> {
    // SAFETY: termios is plain integers, for which zero is a value.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and settings a valid place for the result.
    if unsafe { libc::tcgetattr(tty.as_raw_fd(), &raw mut settings) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: settings is an initialised termios.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    // The driver paces its draining by the rate; the emulated UART sends at once.
    settings.c_cflag = (settings.c_cflag & !libc::CBAUD) | libc::B115200;
    // SAFETY: the descriptor is open and settings an initialised termios.
    if unsafe { libc::tcsetattr(tty.as_raw_fd(), libc::TCSANOW, &raw const settings) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// QEMU's debug devices.
struct Ports(());

impl Ports {
    fn open() -> io::Result<Self> {
        for (port, count) in [(CONTROL_PORT, 1), (EXIT_PORT, 4)] {
            // SAFETY: ioperm changes this thread's I/O permissions only.
            if unsafe { libc::ioperm(port.into(), count, 1) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(()))
    }

    fn send(&self, event: &Event) {
        static WHOLE_LINES: Mutex<()> = Mutex::new(());
        let _whole = WHOLE_LINES.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in format!("{event}\n").into_bytes() {
            // SAFETY: `open` gave this thread the port, whose device takes any byte.
            unsafe {
                std::arch::asm!("out dx, al", in("dx") CONTROL_PORT, in("al") byte, options(nomem, nostack, preserves_flags));
            }
        }
    }

    fn exit(&self) -> ! {
        // The written value becomes QEMU's own status, which nobody asks: it has too few bits.
        // SAFETY: `open` gave this thread the port; the write ends the machine.
        unsafe {
            std::arch::asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") 0, options(nomem, nostack));
        }
        unreachable!("QEMU has no isa-debug-exit at {EXIT_PORT:#x}");
    }
}
