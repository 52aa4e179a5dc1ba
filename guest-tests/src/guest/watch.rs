//! Tells a guest that hangs from one that takes its time, long before a time limit would.
//!
//! A guest that says nothing for [`SILENCE`] is looked at every [`INTERVAL`]: `msr-vmm`, sent SIGUSR1, shows what its
//! vCPUs do. A guest hangs when no vCPU leaves KVM_RUN for the VMM's sake, and
//!
//! - in [`LOOKS`] looks, one executes within a page and no register but RIP changes, or all are so, or have halted with
//!   interrupts off; or
//! - for [`PATIENCE`], one executes with interrupts off, whatever its registers are.
//!
//! A guest that waits for something halts with interrupts on, and one that computes has other registers each time: both
//! may go on. So may Linux early in its boot, when interrupts are off for seconds: under an emulated CPU the search for an
//! MP table alone takes ten. What this leaves out is a guest in which all goes well but for what the test waits for; a
//! limit ends that.

use std::time::{Duration, Instant};

/// How long a guest may say nothing before it is looked at.
const SILENCE: Duration = Duration::from_secs(8);

/// The time from one look to the next.
const INTERVAL: Duration = Duration::from_secs(2);

/// How many looks have to agree.
const LOOKS: usize = 3;

/// How long a vCPU may execute with interrupts off, and get somewhere.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far apart a loop's instructions are at most, in bytes.
const LOOP: u64 = 4096;

/// A vCPU as `msr-vmm` showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Vcpu {
    name: String,
    activity: Activity,
    interrupts_off: bool,
    exits: u64,
    rip: u64,
    /// All but RIP and RFLAGS, as they were shown.
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
                let silent = self.since.elapsed();
                let last = &self.looks[self.looks.len().saturating_sub(LOOKS)..];
                if last.len() == LOOKS && hung(last)
                    || silent > PATIENCE && interrupts_off(&self.looks)
                {
                    return Some((silent, shown.trim_end().to_owned()));
                }
                if last.len() == LOOKS && !interrupts_off(&self.looks) {
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
            registers(line, vcpu);
        }
    }
    vcpus
}

/// A line of registers' names and values; what follows the name `bytes` depends on RIP.
fn registers(line: &str, vcpu: &mut Vcpu) {
    let mut words = line.split_whitespace();
    while let Some(name) = words.next().filter(|name| *name != "bytes") {
        let value = words.next().unwrap_or_default();
        match name {
            "rip" => vcpu.rip = u64::from_str_radix(value, 16).unwrap_or_default(),
            "rflags" => {}
            _ => vcpu.registers += &format!("{name} {value}\n"),
        }
    }
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
        rip: 0,
        registers: String::new(),
    })
}

/// Whether the same vCPUs were seen at each look, and none had left KVM_RUN in between.
fn no_exits(looks: &[Vec<Vcpu>]) -> bool {
    let Some((first, others)) = looks.split_first() else {
        return false;
    };
    let exits = |look: &[Vcpu]| -> Vec<(String, u64)> {
        look.iter().map(|v| (v.name.clone(), v.exits)).collect()
    };
    !first.is_empty() && others.iter().all(|look| exits(look) == exits(first))
}

/// Whether a vCPU executed with interrupts off at every look.
fn interrupts_off(looks: &[Vec<Vcpu>]) -> bool {
    no_exits(looks)
        && (0..looks[0].len()).any(|vcpu| {
            let runs = |v: &Vcpu| v.activity == Activity::Running && v.interrupts_off;
            looks.iter().all(|look| runs(&look[vcpu]))
        })
}

/// Whether the vCPUs, as they were seen at each look, get nowhere.
fn hung(looks: &[Vec<Vcpu>]) -> bool {
    if !no_exits(looks) {
        return false;
    }
    let first = &looks[0];
    let always = |vcpu: usize, holds: &dyn Fn(&Vcpu) -> bool| looks.iter().all(|l| holds(&l[vcpu]));
    let loops = |vcpu: usize| {
        always(vcpu, &|v| {
            v.activity == Activity::Running
                && v.registers == first[vcpu].registers
                && v.rip.abs_diff(first[vcpu].rip) < LOOP
        })
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

    fn shown(state: &str, exits: u64, rip: u64, rax: u64) -> String {
        format!(
            "msr-vmm: vCPU 0: {state}, {exits} exits\n  rip {rip:016x}  rflags 2  rsp 0\n  rax {rax:x}  rbx 1\n  \
             bytes at rip: eb {rip:02x}\n"
        )
    }

    fn looks(texts: [String; 3]) -> Vec<Vec<Vcpu>> {
        texts.iter().map(|text| parse(text)).collect()
    }

    fn verdict(texts: [String; 3]) -> bool {
        hung(&looks(texts))
    }

    #[test]
    fn a_loop_hangs_where_no_register_changes_and_it_is_short() {
        for state in ["running, interrupts off", "running, interrupts on"] {
            let at = |rips: [u64; 3]| rips.map(|rip| shown(state, 5, rip, 0));
            assert!(verdict(at([1, 1, 1])));
            assert!(verdict(at([0x10, 0x12, 0x11])));
            assert!(!verdict(at([0x10, 0x12, 0x4000])));
            assert!(!verdict([0, 0, 1].map(|rax| shown(state, 5, 1, rax))));
        }
    }

    #[test]
    fn interrupts_that_are_always_off_are_noticed_whatever_the_registers_are() {
        let off = |rax: u64| shown("running, interrupts off", 5, 1, rax);
        let on = shown("running, interrupts on", 5, 1, 3);
        assert!(interrupts_off(&looks([off(1), off(2), off(3)])));
        assert!(!interrupts_off(&looks([off(1), off(2), on])));
    }

    #[test]
    fn a_halt_hangs_only_where_no_interrupt_can_end_it() {
        assert!(verdict([1, 1, 1].map(|rip| shown(
            "halted, interrupts off",
            5,
            rip,
            0
        ))));
        assert!(!verdict([1, 1, 1].map(|rip| shown(
            "halted, interrupts on",
            5,
            rip,
            0
        ))));
    }

    #[test]
    fn exits_are_progress() {
        assert!(!verdict([1, 2, 3].map(|exits| shown(
            "running, interrupts off",
            exits,
            1,
            0
        ))));
    }

    #[test]
    fn one_looping_vcpu_hangs_a_guest_whose_others_wait_for_it() {
        let others = "msr-vmm: vCPU 1: halted, interrupts on, 0 exits\n  rip 1\n\
                      msr-vmm: vCPU 2: halted, interrupts off, 0 exits\n  rip 1\n\
                      msr-vmm: vCPU 3: not started, interrupts off, 0 exits\n  rip 1\n";
        let looping = shown("running, interrupts off", 5, 1, 0) + others;
        assert!(verdict([looping.clone(), looping.clone(), looping]));
        let idle = shown("halted, interrupts on", 5, 1, 0) + others;
        assert!(!verdict([idle.clone(), idle.clone(), idle]));
    }

    #[test]
    fn nothing_shown_is_no_verdict() {
        assert!(!verdict(["", "", ""].map(str::to_owned)));
    }
}
