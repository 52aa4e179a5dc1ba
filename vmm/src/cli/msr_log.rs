//! `--log trace`: a line for each MSR access that reaches userspace.

use msr_bus::{Access, AnsweredBy, MsrEvent, MsrObserver};
use msr_filter::names;

/// Logs each access. It formats text on the vCPU's thread, so it is there only where it was asked for.
pub(crate) struct MsrLog;

impl MsrObserver for MsrLog {
    fn observe(&self, event: &MsrEvent<'_>) {
        log::trace!("{}", line(event));
    }
}

/// An access in words: `vCPU 0: RDMSR 0xce MSR_PLATFORM_INFO gives 0x80000 (table; filter)`.
fn line(event: &MsrEvent<'_>) -> String {
    let index = event.access.index;
    let name = names::name(index).map_or(String::new(), |name| format!(" {name}"));
    let fault = if event.outcome.is_err() {
        "#GP"
    } else {
        "done"
    };
    let what = match (event.kind, event.outcome) {
        (Access::READ, Ok(value)) => format!("RDMSR {index:#x}{name} gives {value:#x}"),
        (Access::READ, Err(_)) => format!("RDMSR {index:#x}{name}: #GP"),
        _ => format!("WRMSR {index:#x}{name} of {:#x}: {fault}", event.written),
    };
    let by = match event.answered_by {
        AnsweredBy::Device(device) => device.name(),
        AnsweredBy::Fallback => "unclaimed",
    };
    let (vcpu, reason) = (event.access.cpu.id(), event.access.reason);
    let injected = event
        .injected
        .map_or(String::new(), |kind| format!("; fault injected: {kind}"));
    format!("{vcpu}: {what} ({by}; {reason}{injected})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use msr_bus::testing::FakeVcpu;
    use msr_bus::{ExitReason, GeneralProtection, MsrAccess};

    #[test]
    fn an_access_is_a_line_with_the_name_the_value_and_who_answered() {
        let cpu = FakeVcpu::default();
        let access = MsrAccess {
            index: 0xce,
            reason: ExitReason::Filter,
            cpu: &cpu,
        };
        let event = |kind, outcome| MsrEvent {
            access: &access,
            kind,
            written: if kind == Access::WRITE { 5 } else { 0 },
            outcome,
            answered_by: AnsweredBy::Fallback,
            injected: None,
        };
        assert_eq!(
            line(&event(Access::READ, Ok(0x1f))),
            "vCPU 0: RDMSR 0xce MSR_PLATFORM_INFO gives 0x1f (unclaimed; filter)"
        );
        assert_eq!(
            line(&event(Access::WRITE, Err(GeneralProtection))),
            "vCPU 0: WRMSR 0xce MSR_PLATFORM_INFO of 0x5: #GP (unclaimed; filter)"
        );
    }
}
