//! The policies as seccomp filters, and threads that enter them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::policy::{Condition, Role, ThreadPolicy};
use super::{SandboxError, privileges, violation};

/// What the threads of a VM enter before they first do something for the guest. Without filters, which is the default,
/// entering does nothing.
#[derive(Clone, Default)]
pub struct ThreadFilters(Option<Arc<Compiled>>);

impl fmt::Debug for ThreadFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.as_ref().map_or("none", |_| "for each role");
        f.debug_tuple("ThreadFilters").field(&name).finish()
    }
}

struct Compiled {
    programs: Vec<(Role, BpfProgram)>,
    /// Whether the kernel takes filters.
    seccomp: bool,
}

impl ThreadFilters {
    pub(super) fn new(policies: &[ThreadPolicy]) -> Result<Self, SandboxError> {
        privileges::keep_allocator_from_files();
        let programs = policies.iter().map(|policy| {
            let program = compile(policy).map_err(|error| SandboxError::Filter {
                role: policy.role,
                message: error.to_string(),
            })?;
            Ok((policy.role, program))
        });
        Ok(Self(Some(Arc::new(Compiled {
            programs: programs.collect::<Result<_, _>>()?,
            seccomp: probe().is_ok(),
        }))))
    }

    /// Takes the calling thread's capabilities, and confines it to what its role may do, for the rest of its life.
    ///
    /// Where the kernel refuses that, the process ends with status 1 and a line on standard error, as after a violation:
    /// a thread that was to be confined does nothing for the guest unconfined.
    pub fn enter(&self, role: Role) {
        let Some(compiled) = &self.0 else {
            return;
        };
        let refused = |what: &str, error: &dyn fmt::Display| -> ! {
            violation::end(format_args!(
                "msr-vmm: sandbox: {role} thread: {what}: {error}; --sandbox=off runs the guest without it"
            ))
        };
        if let Err(error) = privileges::drop_capabilities() {
            refused("cannot drop the capabilities", &error);
        }
        if !compiled.seccomp {
            return;
        }
        violation::name_thread(role);
        let programs = compiled.programs.iter();
        for (_, program) in programs.filter(|(of, _)| *of == role) {
            if let Err(error) = seccompiler::apply_filter(program) {
                refused("cannot set the system-call filter", &error);
            }
        }
    }
}

/// Whether the kernel has seccomp with the action that reports a violation.
pub(super) fn probe() -> Result<(), Errno> {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads four bytes at the pointer, which `action` has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    Errno::result(result).map(drop)
}

fn compile(policy: &ThreadPolicy) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in &policy.allowed {
        let rules = rules.entry(allowed.call.id().into()).or_default();
        rules.extend(rules_of(&allowed.condition)?);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    filter.try_into()
}

/// A call without rules is let through whatever its arguments are.
fn rules_of(condition: &Condition) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // Requests are 32 bits wide: the kernel looks at no more of them either.
    let equal = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let rule = |conditions| SeccompRule::new(conditions);
    match condition {
        Condition::Always => Ok(Vec::new()),
        Condition::Requests(requests) => requests
            .iter()
            .map(|(_, request)| rule(vec![equal(1, *request)?]))
            .collect(),
        Condition::OnTerminal(_, request) => {
            Ok(vec![rule(vec![equal(0, 0)?, equal(1, *request)?])?])
        }
        Condition::OwnProcess => Ok(vec![rule(vec![equal(0, std::process::id().into())?])?]),
        Condition::NotExecutable => {
            let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
            let not = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
            Ok(vec![rule(vec![not])?])
        }
    }
}
