//! Filters that really are entered, by processes of their own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

use vm_device::DevicePio;
use vm_device::bus::PioAddress;

use super::*;
use crate::devices::rtc::Rtc;
use crate::devices::virtio::block::DiskConfig;

fn config(toml: &str) -> Config {
    toml::from_str(toml).unwrap()
}

fn sandbox(toml: &str) -> Sandbox {
    Sandbox::new(&config(toml), DeviceModel::all())
}

/// What a child process wrote to standard error, and how it ended.
struct Ended {
    said: String,
    status: libc::c_int,
}

impl Ended {
    fn code(&self) -> Option<libc::c_int> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }
}

/// Past the test harness, which keeps what `eprintln!` says.
fn say(what: std::fmt::Arguments<'_>) {
    writeln!(io::stderr(), "{what}").unwrap();
}

/// Has a child process do something; it exits with 0 if that returns.
fn in_child(act: impl FnOnce()) -> Ended {
    let mut ends = [0; 2];
    // SAFETY: `pipe` writes two descriptors, and the child does nothing but `act` and system calls; the allocator's locks
    // are the C library's, which it puts in order when it forks.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let child = libc::fork();
        assert!(child >= 0, "{}", io::Error::last_os_error());
        if child == 0 {
            libc::dup2(ends[1], libc::STDERR_FILENO);
            act();
            libc::_exit(0);
        }
        libc::close(ends[1]);
        let mut said = String::new();
        File::from_raw_fd(ends[0])
            .read_to_string(&mut said)
            .unwrap();
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        Ended { said, status }
    }
}

/// One system call that no thread of a role needs. Each role has another, so that the report's name is the role's own.
const FORBIDDEN: [(Role, libc::c_long, &str); 7] = [
    (Role::Main, libc::SYS_ptrace, "ptrace"),
    (Role::Vcpu, libc::SYS_openat, "openat"),
    (Role::Console, libc::SYS_socket, "socket"),
    (Role::Block, libc::SYS_execve, "execve"),
    (Role::Flush, libc::SYS_connect, "connect"),
    (Role::Entropy, libc::SYS_clone3, "clone3"),
    (Role::Trace, libc::SYS_unlink, "unlink"),
];

/// Every register of the clock, of which the date is worked out.
#[test]
fn a_vcpu_thread_reads_the_clock() {
    let ended = in_child(|| {
        report_violations(|| {}).unwrap();
        let filters = sandbox("").thread_filters().unwrap();
        filters.enter(Role::Vcpu);
        let clock = Rtc::new();
        for register in 0..=0x7f {
            let port = PioAddress(crate::layout::RTC);
            clock.pio_write(port, 0, &[register]);
            clock.pio_read(port, 1, &mut [0]);
        }
    });
    assert_eq!((ended.code(), ended.said.as_str()), (Some(0), ""));
}

#[test]
fn a_forbidden_call_of_each_role_ends_the_process_and_is_named() {
    super::filter::probe().expect("the kernel that runs the tests has seccomp");
    assert_eq!(FORBIDDEN.map(|(role, ..)| role), Role::ALL);
    for (role, number, name) in FORBIDDEN {
        let ended = in_child(|| {
            report_violations(|| {}).unwrap();
            let filters = sandbox("").thread_filters().unwrap();
            filters.enter(role);
            // SAFETY: it is not executed; with zeroes for arguments it would fail.
            unsafe { libc::syscall(number, 0, 0, 0, 0) };
        });
        let call = format!("made system call {number} ({name}), which its filter ({role})");
        assert!(ended.said.contains(&call), "{role}: {:?}", ended.said);
        assert_eq!(ended.code(), Some(1), "{role}");
    }
}

#[test]
fn what_each_role_needs_is_let_through() {
    for role in Role::ALL {
        let ended = in_child(|| {
            report_violations(|| {}).unwrap();
            let filters = sandbox("").thread_filters().unwrap();
            filters.enter(role);
            let room = vec![1u8; 1 << 20];
            std::thread::yield_now();
            std::thread::sleep(std::time::Duration::from_millis(1));
            drop(room);
        });
        assert_eq!(ended.code(), Some(0), "{role}: {}", ended.said);
    }
}

#[test]
fn many_threads_can_allocate_at_once() {
    const THREADS: usize = 40;
    let ended = in_child(|| {
        report_violations(|| {}).unwrap();
        let filters = sandbox("").thread_filters().unwrap();
        let all = std::sync::Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    // Each allocates while all others live, so that the allocator gives none an arena that has been left.
                    all.wait();
                    filters.enter(Role::Vcpu);
                    // More than an arena keeps when it is freed, in pieces that are not mapped on their own.
                    let pieces: Vec<_> = (0..8).map(|_| vec![1u8; 100_000]).collect();
                    all.wait();
                    drop(std::hint::black_box(pieces));
                });
            }
        });
    });
    assert_eq!(ended.code(), Some(0), "{}", ended.said);
}

#[test]
fn ioctls_are_told_apart_by_their_request_numbers() {
    let enter = |role, request: u64| {
        in_child(|| {
            report_violations(|| {}).unwrap();
            let filters = sandbox("").thread_filters().unwrap();
            filters.enter(role);
            // SAFETY: there is no such descriptor.
            unsafe { libc::ioctl(-1, request, 0) };
        })
    };
    let (_, set_msrs) = ioctls::KVM_SET_MSRS;
    let (_, run) = ioctls::KVM_RUN;
    assert_eq!(enter(Role::Vcpu, run).code(), Some(0));
    assert_eq!(enter(Role::Vcpu, set_msrs).code(), Some(1));
    assert_eq!(enter(Role::Main, run).code(), Some(1));
    assert_eq!(enter(Role::Block, run).code(), Some(1));
}

#[test]
fn no_role_can_have_executable_memory_or_signal_other_processes() {
    for role in Role::ALL {
        let parent = std::process::id();
        let tries: [(_, Box<dyn Fn()>); 2] = [
            (
                "mmap",
                Box::new(|| {
                    let protection = libc::PROT_READ | libc::PROT_EXEC;
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                    // SAFETY: it is not executed; if it were, the mapping would be new.
                    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
                }),
            ),
            (
                "tgkill",
                Box::new(move || {
                    // SAFETY: signal 0 does nothing.
                    unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, 0) };
                }),
            ),
        ];
        for (name, act) in tries {
            let ended = in_child(|| {
                report_violations(|| {}).unwrap();
                let filters = sandbox("").thread_filters().unwrap();
                filters.enter(role);
                act();
            });
            assert!(ended.said.contains(name), "{role}: {:?}", ended.said);
            assert_eq!(ended.code(), Some(1), "{role} {name}");
        }
    }
}

#[test]
fn what_a_vcpu_may_do_is_what_the_devices_need() {
    let vcpu = |toml: &str| policy::of(Role::Vcpu, &config(toml), DeviceModel::all());
    let may = |policy: &ThreadPolicy, name| policy.allowed.iter().any(|a| a.call.name() == name);
    let plain = vcpu("");
    assert!(!plain.requests().contains(&ioctls::KVM_SET_MSRS));
    assert!(!may(&plain, "pread64") && !may(&plain, "pwrite64") && !may(&plain, "openat"));
    let forward = "[[msr.device]]\ntype = \"forward\"\nmsrs = [\"0x1a0\"]\n";
    assert!(!vcpu(forward).requests().contains(&ioctls::KVM_SET_MSRS));
    let forward = format!("{forward}write = \"forward\"\n");
    assert!(vcpu(&forward).requests().contains(&ioctls::KVM_SET_MSRS));
    let through =
        "[[msr.device]]\ntype = \"passthrough\"\n[[msr.device.register]]\nmsr = \"0x1a0\"\n";
    assert!(may(&vcpu(through), "pread64") && !may(&vcpu(through), "pwrite64"));
    assert!(may(&vcpu(&format!("{through}write = true\n")), "pwrite64"));
}

#[test]
fn only_a_control_socket_lets_clients_be_served_and_msrs_be_written_for_them() {
    let calls = |sandbox: &Sandbox, role| {
        let policies = sandbox.policies().iter();
        let policy = policies.filter(|policy| policy.role == role);
        let allowed = policy.flat_map(|policy| &policy.allowed);
        allowed.map(|a| a.call.name()).collect::<Vec<_>>()
    };
    let may_write_msrs = |sandbox: &Sandbox| {
        let mut policies = sandbox.policies().iter();
        let vcpu = policies.find(|policy| policy.role == Role::Vcpu).unwrap();
        let requests = vcpu.requests().into_iter();
        requests.filter(|r| *r == ioctls::KVM_SET_MSRS).count()
    };
    let without = sandbox("");
    let with = sandbox("").control_socket();
    for call in ["accept4", "recvfrom", "sendto"] {
        assert!(!calls(&without, Role::Main).contains(&call), "{call}");
        assert!(calls(&with, Role::Main).contains(&call), "{call}");
        assert!(!calls(&with, Role::Vcpu).contains(&call), "{call}");
    }
    for call in ["socket", "connect", "bind", "openat", "unlink", "mkdir"] {
        assert!(!calls(&with, Role::Main).contains(&call), "{call}");
    }
    assert_eq!((may_write_msrs(&without), may_write_msrs(&with)), (0, 1));
    let forward = "[[msr.device]]\ntype = \"forward\"\nmsrs = [\"0x1a0\"]\nwrite = \"forward\"\n";
    assert_eq!(may_write_msrs(&sandbox(forward).control_socket()), 1);
}

/// With the calls that the standard library really makes.
#[test]
fn a_client_of_a_control_socket_is_served_in_the_sandbox() {
    use crate::control_socket::{ControlSocket, Error, Handler, Method, Server};
    use event_manager::{EventManager, SubscriberOps};

    struct Nothing;
    impl Handler for Nothing {
        fn call(&mut self, _: Method) -> Result<serde_json::Value, Error> {
            Ok("done".into())
        }
    }

    let path = std::env::temp_dir().join(format!("sandbox.control.{}", std::process::id()));
    let socket = ControlSocket::bind(&path).unwrap().leave_path();
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n")
        .unwrap();
    let ended = in_child(|| {
        report_violations(|| {}).unwrap();
        let filters = sandbox("").control_socket().thread_filters().unwrap();
        filters.enter(Role::Main);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Server::new(socket, Nothing));
        // The client is taken, and then served.
        events.run_with_timeout(10_000).unwrap();
        events.run_with_timeout(10_000).unwrap();
        // With the server the connection is closed.
        drop(events);
    });
    assert_eq!(ended.code(), Some(0), "{}", ended.said);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(
        answer,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"done\"}\n"
    );
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_read_only_disks_thread_cannot_write() {
    let mut config = config("");
    config.vm.disks = vec![DiskConfig {
        path: "d".into(),
        readonly: true,
        serial: None,
        rate_limiter: None,
    }];
    let writes = |config: &Config| {
        let allowed = policy::of(Role::Block, config, DeviceModel::all()).allowed;
        allowed
            .iter()
            .any(|allowed| allowed.call.name() == "pwritev")
    };
    assert!(!writes(&config));
    config.vm.disks[0].readonly = false;
    assert!(writes(&config));
}

#[test]
fn files_that_are_not_named_cannot_be_opened() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let other = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let mut config = config("");
    config.vm.initrd = Some(file.as_path().into());
    let ended = in_child(|| {
        let confinement = Sandbox::new(&config, DeviceModel::all()).confine().unwrap();
        assert_eq!(confinement.missing, Vec::<String>::new());
        File::open(file.as_path()).unwrap();
        let written = File::options().write(true).open(file.as_path());
        let opened = File::open(other.as_path());
        for (what, error) in [
            ("write", written.unwrap_err()),
            ("open", opened.unwrap_err()),
        ] {
            say(format_args!("{what}: {:?}", error.kind()));
        }
        let status = std::fs::read_to_string("/proc/self/status");
        say(format_args!("proc: {:?}", status.unwrap_err().kind()));
    });
    // Panics in the child say why.
    assert_eq!(ended.code(), Some(0), "{}", ended.said);
    assert_eq!(
        ended.said,
        "write: PermissionDenied\nopen: PermissionDenied\nproc: PermissionDenied\n"
    );
}

#[test]
fn a_thread_that_enters_has_no_capabilities() {
    let ended = in_child(|| {
        privileges::drop_capabilities().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let capabilities = status.lines().filter(|line| line.starts_with("Cap"));
        capabilities.for_each(|line| say(format_args!("{line}")));
    });
    assert_eq!(ended.code(), Some(0), "{}", ended.said);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let none = format!("{set}:\t0000000000000000");
        assert!(ended.said.contains(&none), "{}", ended.said);
    }
}

#[test]
fn users_are_two_numbers() {
    let user: User = "65534:100".parse().unwrap();
    assert_eq!((user.uid, user.gid), (65534, 100));
    assert_eq!(user.to_string(), "65534:100");
    for text in ["", "root", "1", "1:", ":1", "-1:1", "1:4294967295"] {
        assert!(text.parse::<User>().is_err(), "{text}");
    }
}

#[test]
fn no_more_files_than_the_limit_can_be_open() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let ended = in_child(|| {
        privileges::limit_resources().unwrap();
        let mut open = Vec::new();
        let error = loop {
            match File::open(file.as_path()) {
                Ok(file) => open.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(open.len() as u64 <= privileges::MOST_FILES);
    });
    assert_eq!(ended.code(), Some(0), "{}", ended.said);
}
