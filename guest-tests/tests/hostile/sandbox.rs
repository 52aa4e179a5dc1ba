//! The sandbox of VMs that run: what a thread of each role may not do ends them, and what is wrong with the host is told in the
//! words that it is told in without.

use std::io::{self, Read};
use std::process::Stdio;
use std::time::Duration;

use guest_tests::failures::{End, Instead, Tracee};
use guest_tests::guest::{BlockRequest, Folder, Guest, TinyKernel};
use libtest_mimic::{Failed, Trial};
use syscalls::Sysno;

/// How long a VM may take to end.
const LIMIT: Duration = Duration::from_secs(15);

/// A thread of each role, with the role.
const THREADS: [(&str, &str); 7] = [
    ("msr-vmm", "main"),
    ("vcpu0", "vcpu"),
    ("console", "console"),
    ("virtio-0", "block"),
    ("flush", "flush"),
    ("virtio-1", "entropy"),
    ("msr-trace", "trace"),
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test(
            "sandbox::a_forbidden_call_of_any_thread_ends_the_vm_and_is_named",
            a_forbidden_call_of_any_thread_ends_the_vm_and_is_named,
        ),
        Trial::test(
            "sandbox::what_the_host_lacks_is_told_in_the_same_words",
            what_the_host_lacks_is_told_in_the_same_words,
        ),
    ]
}

fn a_forbidden_call_of_any_thread_ends_the_vm_and_is_named() -> Result<(), Failed> {
    for (thread, role) in THREADS {
        let mut kernel = TinyKernel::new()?;
        kernel
            .print("up\n")?
            .start_block()?
            .block(1, BlockRequest::Write, 1)?
            .block(2, BlockRequest::Flush, 0)?
            .spin()?;
        let guest = Guest::tiny(&mut kernel)?;
        let disk = guest.folder().file("disk", [0; 1 << 16])?;
        let trace = guest.folder().path("trace");
        let config = guest.folder().file("config.toml", "vm.entropy = true\n")?;
        let guest = guest
            .option("--config", config)
            .option("--disk", disk)
            .option("--trace", trace);
        let (mut said, stderr) = io::pipe()?;
        let mut command = guest.command()?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr);
        let instead = Instead {
            thread,
            call: Sysno::socket,
        };
        let traced = Tracee::start(command)?.run_with(&instead, LIMIT)?;
        let mut words = String::new();
        said.read_to_string(&mut words)?;
        let violation = format!(
            "sandbox violation: thread {thread} made system call 41 (socket), which its filter ({role})"
        );
        if !traced.failed || traced.end != End::Exited(1) || !words.contains(&violation) {
            let (made, end) = (traced.failed, traced.end);
            return Err(format!("{thread}: made {made}, {end:?}: {words}").into());
        }
    }
    Ok(())
}

fn what_the_host_lacks_is_told_in_the_same_words() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let nothing = folder.path("nothing");
    let directory = folder.path("");
    let no_disk = folder.file("no-disk.toml", format!("[[vm.disk]]\npath = {nothing:?}\n"))?;
    let no_sensor = folder.file(
        "no-sensor.toml",
        format!("[[msr.device]]\ntype = \"thermal\"\nsource = \"hwmon\"\nhwmon = {nothing:?}\n"),
    )?;
    let no_host_cpu = folder.file(
        "no-host-cpu.toml",
        "vm.cpus = 4\n[[msr.device]]\ntype = \"passthrough\"\n[[msr.device.register]]\nmsr = \"0x1a0\"\ncpu = 4095\n",
    )?;
    for (option, value) in [
        ("--initrd", &nothing),
        ("--initrd", &directory),
        ("--config", &no_disk),
        ("--config", &no_sensor),
        ("--config", &no_host_cpu),
    ] {
        let said = |sandbox: &str| -> Result<String, Failed> {
            let guest = Guest::tiny(TinyKernel::new()?.power_off()?)?
                .option("--sandbox", sandbox)
                .option("--log", "error")
                .option(option, value);
            let outcome = guest.run()?;
            if outcome.status.success() {
                return Err(format!("{option} {value:?} is taken: {}", outcome.stderr).into());
            }
            Ok(outcome.stderr)
        };
        let (on, off) = (said("on")?, said("off")?);
        println!("{}", on.trim_end());
        if on != off || on.lines().count() != 1 {
            return Err(format!("{on:?} in the sandbox, {off:?} without").into());
        }
    }
    Ok(())
}
