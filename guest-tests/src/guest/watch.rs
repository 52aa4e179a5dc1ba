//! Tells a guest that hangs from one that takes its time, long before a time limit would.
//!
//! A guest that says nothing for [`SILENCE`] is looked at: `msr-vmm`, sent SIGUSR1, shows what its vCPUs do. A guest
//! hangs when no vCPU leaves KVM_RUN for the VMM's sake between [`LOOKS`] looks, and
//!
//! - one of them executes with interrupts off, or always with the same registers, or
//! - all of them are so, or have halted with interrupts off.
//!
//! A guest that waits for something halts with interrupts on, and one that computes has other registers each time: both
//! may go on. What this leaves out is a guest in which all goes well but for what the test waits for; a limit ends that.

use std::time::{Duration, Instant};

/// How long a guest may say nothing before it is looked at.
const SILENCE: Duration = Duration::from_secs(8);

/// The time from one look to the next.
const INTERVAL: Duration = Duration::from_secs(2);

/// How many looks have to agree.
const LOOKS: usize = 3;

/// A vCPU as `msr-vmm` showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Vcpu {
    name: String,
    activity: Activity,
    interrupts_off: bool,
    exits: u64,
    registers: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Running,
    Halted,
    Other,
}

/// Watches one guest.
#[derive(Debug)]
pub(super) struct Watch {
    /// Characters on the console when it last grew.
    console: usize,
    /// Since when nothing happened that begins the watch anew.
    since: Instant,
    /// When SIGUSR1 was sent last, and how long standard error was then.
    asked: Option<(Instant, usize)>,
    looks: Vec<Vec<Vcpu>>,
}

impl Watch {
    /// Begins now.
    pub(super) fn new() -> Self {
        Self {
            console: 0,
            since: Instant::now(),
            asked: None,
            looks: Vec::new(),
        }
    }

    /// Since when the guest is silent and what its vCPUs were last seen to do, where it hangs. To be called again and again, with the length of the
    /// console's text, what `msr-vmm` has said so far, and what sends it SIGUSR1.
    pub(super) fn hangs(
        &mut self,
        console: usize,
        stderr: &str,
        ask: impl FnOnce(),
    ) -> Option<(Duration, String)> {
        if console != self.console {
            *self = Self::new();
            self.console = console;
        }
        match self.asked {
            None if self.since.elapsed() < SILENCE => return None,
            None => {}
            Some((at, _)) if at.elapsed() < INTERVAL => return None,
            Some((_, from)) => {
                let shown = stderr.get(from..).unwrap_or_default();
                self.looks.push(parse(shown));
                if self.looks.len() == LOOKS {
                    if hung(&self.looks) {
                        return Some((self.since.elapsed(), shown.trim_end().to_owned()));
                    }
                    // It waits or computes: nothing more of it for a while.
                    *self = Self::new();
                    self.console = console;
                    return None;
                }
            }
        }
        self.asked = Some((Instant::now(), stderr.len()));
        ask();
        None
    }
}

/// Reads what `msr-vmm` shows: for each vCPU a line that says what it does, and lines of registers, indented.
fn parse(shown: &str) -> Vec<Vcpu> {
    let mut vcpus: Vec<Vcpu> = Vec::new();
    for line in shown.lines() {
        if let Some(vcpu) = line.strip_prefix("msr-vmm: ").and_then(heading) {
            vcpus.push(vcpu);
        } else if let (Some(vcpu), true) = (vcpus.last_mut(), line.starts_with("  ")) {
            vcpu.registers += line;
            vcpu.registers.push('\n');
        }
    }
    vcpus
}

/// `vCPU 0: running, interrupts off, 12 exits`
fn heading(line: &str) -> Option<Vcpu> {
    let (name, rest) = line.split_once(": ")?;
    let [activity, interrupts, exits]: [&str; 3] =
        rest.split(", ").collect::<Vec<_>>().try_into().ok()?;
    Some(Vcpu {
        name: name.to_owned(),
        activity: match activity {
            "running" => Activity::Running,
            "halted" => Activity::Halted,
            _ => Activity::Other,
        },
        interrupts_off: interrupts == "interrupts off",
        exits: exits.strip_suffix(" exits")?.parse().ok()?,
        registers: String::new(),
    })
}

/// Whether the vCPUs, as they were seen at each look, get nowhere.
fn hung(looks: &[Vec<Vcpu>]) -> bool {
    let Some((first, others)) = looks.split_first() else {
        return false;
    };
    let same_vcpus = |look: &Vec<Vcpu>| {
        look.len() == first.len()
            && look
                .iter()
                .zip(first)
                .all(|(a, b)| (&a.name, a.exits) == (&b.name, b.exits))
    };
    if first.is_empty() || !others.iter().all(same_vcpus) {
        return false;
    }
    let always = |vcpu: usize, holds: &dyn Fn(&Vcpu) -> bool| looks.iter().all(|l| holds(&l[vcpu]));
    let loops = |vcpu: usize| {
        always(vcpu, &|v| v.activity == Activity::Running)
            && (always(vcpu, &|v| v.interrupts_off)
                || always(vcpu, &|v| v.registers == first[vcpu].registers))
    };
    let dead = |vcpu: usize| {
        always(vcpu, &|v| {
            v.activity == Activity::Halted && v.interrupts_off
        })
    };
    // One that was never started neither hangs nor gets on.
    let mut started = (0..first.len())
        .filter(|vcpu| !always(*vcpu, &|v| v.activity == Activity::Other))
        .peekable();
    started.peek().is_some()
        && (started.clone().any(loops) || started.all(|vcpu| loops(vcpu) || dead(vcpu)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(state: &str, exits: u64, rip: u64) -> String {
        format!(
            "msr-vmm: vCPU 0: {state}, {exits} exits\n  rip {rip:016x}\n  bytes at rip: eb fe\n"
        )
    }

    fn verdict(looks: [String; 3]) -> bool {
        hung(&looks.map(|text| parse(&text)))
    }

    #[test]
    fn a_loop_with_interrupts_off_hangs_wherever_it_is() {
        assert!(verdict([1, 2, 3].map(|rip| shown(
            "running, interrupts off",
            5,
            rip
        ))));
    }

    #[test]
    fn a_loop_with_interrupts_on_hangs_where_no_register_changes() {
        assert!(verdict([1, 1, 1].map(|rip| shown(
            "running, interrupts on",
            5,
            rip
        ))));
        assert!(!verdict([1, 1, 2].map(|rip| shown(
            "running, interrupts on",
            5,
            rip
        ))));
    }

    #[test]
    fn a_halt_hangs_only_where_no_interrupt_can_end_it() {
        assert!(verdict([1, 1, 1].map(|rip| shown(
            "halted, interrupts off",
            5,
            rip
        ))));
        assert!(!verdict([1, 1, 1].map(|rip| shown(
            "halted, interrupts on",
            5,
            rip
        ))));
    }

    #[test]
    fn exits_are_progress() {
        assert!(!verdict([1, 2, 3].map(|exits| shown(
            "running, interrupts off",
            exits,
            1
        ))));
    }

    #[test]
    fn one_looping_vcpu_hangs_a_guest_whose_others_wait_for_it() {
        let others = "msr-vmm: vCPU 1: halted, interrupts on, 0 exits\n  rip 1\n\
                      msr-vmm: vCPU 2: halted, interrupts off, 0 exits\n  rip 1\n\
                      msr-vmm: vCPU 3: not started, interrupts off, 0 exits\n  rip 1\n";
        let looping = shown("running, interrupts off", 5, 1) + others;
        assert!(verdict([looping.clone(), looping.clone(), looping]));
        let idle = shown("halted, interrupts on", 5, 1) + others;
        assert!(!verdict([idle.clone(), idle.clone(), idle]));
    }

    #[test]
    fn nothing_shown_is_no_verdict() {
        assert!(!verdict(["", "", ""].map(str::to_owned)));
    }
}
