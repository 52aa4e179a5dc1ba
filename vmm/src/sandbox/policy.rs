//! What the threads of each role may do, as data.

use std::fmt;

use msr_bus::{DeviceConfig, DeviceModel, Syscall};
use syscalls::Sysno;

use super::ioctls::{self, Ioctl};
use crate::config::Config;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Serves the console's input, signals and requests from outside.
    Main,
    /// Executes the guest.
    Vcpu,
    /// Writes the console's output.
    Console,
    /// Serves a disk.
    Block,
    /// Brings what was written to a disk to stable storage.
    Flush,
    /// Serves the source of random numbers.
    Entropy,
    /// Writes a trace.
    Trace,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Main,
        Self::Vcpu,
        Self::Console,
        Self::Block,
        Self::Flush,
        Self::Entropy,
        Self::Trace,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Console => "console",
            Self::Block => "block",
            Self::Flush => "flush",
            Self::Entropy => "entropy",
            Self::Trace => "trace",
        })
    }
}

/// When a system call is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Whatever its arguments are.
    Always,
    /// With one of these requests as its second argument: `ioctl`, `fcntl`.
    Requests(Vec<(&'static str, u64)>),
    /// With this request as its second argument on file descriptor 0: what restores the terminal.
    OnTerminal(&'static str, u64),
    /// With the process itself as its first argument: signals to its own threads.
    OwnProcess,
    /// Without `PROT_EXEC` in its third argument: memory that is to hold data.
    NotExecutable,
}

/// A system call that is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Which.
    pub call: Sysno,
    /// When.
    pub condition: Condition,
}

/// What the threads of one role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadPolicy {
    /// Whose.
    pub role: Role,
    /// The system calls that are let through.
    pub allowed: Vec<Allowed>,
}

impl fmt::Display for ThreadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} threads (seccomp):", self.role)?;
        for Allowed { call, condition } in &self.allowed {
            match condition {
                Condition::Always => writeln!(f, "  {call}")?,
                Condition::Requests(requests) => {
                    let names: Vec<_> = requests.iter().map(|(name, _)| *name).collect();
                    writeln!(f, "  {call}: {}", names.join(", "))?;
                }
                Condition::OnTerminal(name, _) => {
                    writeln!(f, "  {call}: {name} on standard input")?;
                }
                Condition::OwnProcess => writeln!(f, "  {call}: to its own process")?,
                Condition::NotExecutable => writeln!(f, "  {call}: not executable")?,
            }
        }
        Ok(())
    }
}

/// What every thread needs: memory, locks, time, the end of its life and of the process's, and its log.
const EVERY_THREAD: [Sysno; 18] = [
    Sysno::brk,
    Sysno::clock_gettime,
    Sysno::clock_nanosleep,
    Sysno::close,
    Sysno::exit,
    Sysno::exit_group,
    Sysno::futex,
    Sysno::getpid,
    Sysno::getrandom,
    Sysno::gettid,
    Sysno::madvise,
    Sysno::mremap,
    Sysno::munmap,
    Sysno::restart_syscall,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigreturn,
    Sysno::sched_yield,
    Sysno::sigaltstack,
];

/// What the threads of `role` may do in a VM of this configuration.
pub(super) fn of(role: Role, config: &Config, models: &[DeviceModel]) -> ThreadPolicy {
    let mut policy = ThreadPolicy {
        role,
        allowed: Vec::new(),
    };
    policy.calls(EVERY_THREAD);
    policy.on(Sysno::mmap, Condition::NotExecutable);
    policy.on(Sysno::mprotect, Condition::NotExecutable);
    // The standard library's abort(), and kicks of vCPUs and of the console's thread.
    policy.on(Sysno::tgkill, Condition::OwnProcess);
    // The standard library's check of a descriptor that it closes, where it is built with checks.
    policy.on(Sysno::fcntl, Condition::Requests(commands(role)));
    // Logs and eventfds; no file can be opened.
    policy.calls([Sysno::write, Sysno::writev]);
    match role {
        Role::Main => main(&mut policy),
        Role::Vcpu => vcpu(&mut policy, config, models),
        Role::Console | Role::Trace => {}
        Role::Flush => policy.calls([Sysno::fdatasync]),
        Role::Block => {
            worker(&mut policy);
            block(&mut policy, config);
        }
        Role::Entropy => worker(&mut policy),
    }
    if role != Role::Main {
        let (name, request) = ioctls::TCSETS;
        policy.on(Sysno::ioctl, Condition::OnTerminal(name, request));
    }
    policy
}

/// What a role may do with a file descriptor.
fn commands(role: Role) -> Vec<Ioctl> {
    let mut commands = vec![("F_GETFD", libc::F_GETFD as u64)];
    if role == Role::Main {
        commands.extend([
            ("F_GETFL", libc::F_GETFL as u64),
            ("F_SETFL", libc::F_SETFL as u64),
            ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as u64),
        ]);
    }
    commands
}

fn vcpu(policy: &mut ThreadPolicy, config: &Config, models: &[DeviceModel]) {
    let mut requests = vec![ioctls::KVM_RUN];
    if has(config, "forward") && forwards_writes(config) {
        requests.push(ioctls::KVM_SET_MSRS);
    }
    // Also for a snapshot, and for a trace that names its callers.
    requests.extend([ioctls::KVM_GET_MSRS, ioctls::KVM_TRANSLATE]);
    requests.push(ioctls::KVM_IRQ_LINE);
    requests.extend(ioctls::VCPU_FAULT);
    requests.extend(ioctls::VCPU_STATE);
    // Eventfds: those of a device that is reset.
    policy.calls([Sysno::read]);
    if has(config, "passthrough") {
        policy.calls([Sysno::pread64, Sysno::getcpu]);
        if config.msr.devices.iter().any(writes_through) {
            policy.calls([Sysno::pwrite64]);
        }
    }
    for call in of_the_models(config, models) {
        match call.request {
            Some(request) => {
                let request = u64::from(request);
                if !requests.iter().any(|(_, known)| *known == request) {
                    requests.push(("a request of a device model", request));
                }
            }
            None => policy.on_number(call.number),
        }
    }
    policy.on(Sysno::ioctl, Condition::Requests(requests));
}

/// What the configured devices do on vCPU threads, as their models say: all but those two whose configuration tells more.
fn of_the_models<'a>(
    config: &'a Config,
    models: &'a [DeviceModel],
) -> impl Iterator<Item = &'static Syscall> + 'a {
    let devices = config.msr.devices.iter();
    devices
        .filter(|device| !["forward", "passthrough"].contains(&device.model.as_str()))
        .filter_map(|device| models.iter().find(|model| model.name() == device.model))
        .flat_map(DeviceModel::syscalls)
}

/// A thread that waits for a driver.
fn worker(policy: &mut ThreadPolicy) {
    policy.calls([
        Sysno::epoll_ctl,
        Sysno::epoll_pwait,
        Sysno::epoll_wait,
        Sysno::read,
    ]);
}

fn block(policy: &mut ThreadPolicy, config: &Config) {
    policy.calls([Sysno::pread64, Sysno::preadv]);
    if config.vm.disks.iter().any(|disk| !disk.readonly) {
        policy.calls([Sysno::pwrite64, Sysno::pwritev, Sysno::fallocate]);
    }
}

fn main(policy: &mut ThreadPolicy) {
    let mut requests = vec![
        ioctls::KVM_IRQ_LINE,
        ioctls::KVM_X86_SET_MSR_FILTER,
        ioctls::KVM_SET_USER_MEMORY_REGION,
        ioctls::FIONBIO,
    ];
    requests.extend(ioctls::VM_STATE);
    requests.extend(ioctls::TERMINAL);
    policy.on(Sysno::ioctl, Condition::Requests(requests));
    policy.calls([
        Sysno::epoll_create1,
        Sysno::epoll_ctl,
        Sysno::epoll_pwait,
        Sysno::epoll_wait,
        Sysno::eventfd2,
        Sysno::poll,
        Sysno::read,
        Sysno::sched_getaffinity,
    ]);
}

fn has(config: &Config, model: &str) -> bool {
    config
        .msr
        .devices
        .iter()
        .any(|device| device.model == model)
}

/// Whether a `forward` device gives writes to KVM.
fn forwards_writes(config: &Config) -> bool {
    config.msr.devices.iter().any(|device| {
        let write = device.keys.get("write").and_then(toml::Value::as_str);
        device.model == "forward" && write == Some("forward")
    })
}

/// Whether a `passthrough` device has a register that the guest may write.
fn writes_through(device: &DeviceConfig) -> bool {
    if device.model != "passthrough" {
        return false;
    }
    let registers = device.keys.get("register").and_then(toml::Value::as_array);
    registers.is_some_and(|registers| {
        let writable =
            |register: &toml::Value| register.get("write").and_then(toml::Value::as_bool);
        registers
            .iter()
            .any(|register| writable(register) == Some(true))
    })
}

impl ThreadPolicy {
    fn calls(&mut self, calls: impl IntoIterator<Item = Sysno>) {
        for call in calls {
            self.on(call, Condition::Always);
        }
    }

    /// A system call that a device model asks for, unless it is there already.
    fn on_number(&mut self, number: i64) {
        let call = usize::try_from(number).ok().and_then(Sysno::new);
        if let Some(call) = call.filter(|call| self.allowed.iter().all(|a| a.call != *call)) {
            self.on(call, Condition::Always);
        }
    }

    /// What the role needs besides where there is a control socket.
    pub(super) fn serve_control_socket(&mut self) {
        match self.role {
            // The standard library's calls for accepting, reading and writing.
            Role::Main => {
                self.calls([Sysno::accept4, Sysno::recvfrom, Sysno::sendto]);
                // The interrupts that a change of a device's keys makes, here and below.
                self.request(ioctls::KVM_SIGNAL_MSI);
            }
            Role::Vcpu => {
                self.request(ioctls::KVM_NMI);
                // A client's write to an MSR that KVM keeps.
                self.request(ioctls::KVM_SET_MSRS);
            }
            Role::Console | Role::Block | Role::Flush | Role::Entropy | Role::Trace => {}
        }
    }

    /// What the role needs besides where snapshots can be made: the main thread makes and writes the files, and each vCPU's thread saves its
    /// vCPU.
    pub(super) fn save_snapshots(&mut self) {
        match self.role {
            Role::Main => {
                // What is left of a snapshot that failed is removed folder by folder, each an open file.
                self.also(Sysno::fcntl, ("F_SETFD", libc::F_SETFD as u64));
                self.calls([
                    Sysno::fstat,
                    Sysno::fsync,
                    Sysno::ftruncate,
                    Sysno::getcwd,
                    Sysno::getdents64,
                    Sysno::lseek,
                    Sysno::lstat,
                    Sysno::mkdir,
                    Sysno::newfstatat,
                    Sysno::openat,
                    Sysno::pread64,
                    Sysno::pwrite64,
                    Sysno::readlink,
                    Sysno::rename,
                    Sysno::rmdir,
                    Sysno::stat,
                    Sysno::statx,
                    Sysno::sync_file_range,
                    Sysno::unlink,
                    Sysno::unlinkat,
                ]);
            }
            Role::Vcpu => ioctls::VCPU_SAVE
                .into_iter()
                .for_each(|request| self.request(request)),
            Role::Console | Role::Block | Role::Flush | Role::Entropy | Role::Trace => {}
        }
    }

    /// Lets an ioctl through, unless it is already.
    fn request(&mut self, request: Ioctl) {
        self.also(Sysno::ioctl, request);
    }

    /// Lets a call through with one more request as its second argument, unless it is already.
    fn also(&mut self, call: Sysno, request: Ioctl) {
        let requests = self
            .allowed
            .iter_mut()
            .find_map(|allowed| match &mut allowed.condition {
                Condition::Requests(requests) if allowed.call == call => Some(requests),
                _ => None,
            });
        match requests {
            Some(requests) if requests.contains(&request) => {}
            Some(requests) => requests.push(request),
            None => self.on(call, Condition::Requests(vec![request])),
        }
    }

    fn on(&mut self, call: Sysno, condition: Condition) {
        self.allowed.push(Allowed { call, condition });
    }

    /// The requests of `ioctl` that are let through.
    #[cfg(test)]
    pub(super) fn requests(&self) -> Vec<Ioctl> {
        let conditions = self.allowed.iter().map(|allowed| &allowed.condition);
        let requests = conditions.filter_map(|condition| match condition {
            Condition::Requests(requests) => Some(requests.clone()),
            _ => None,
        });
        requests.flatten().collect()
    }
}
