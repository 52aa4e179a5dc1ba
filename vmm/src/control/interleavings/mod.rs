//! Every order in which the threads of vCPUs and of their clients may take the steps of the protocol, or as many as there is time for.
//!
//! The protocol is the file that the product is built from, compiled once more with shuttle's locks. Shuttle runs its threads one
//! at a time, decides at each step which is next, and reports a deadlock: a wake-up or a kick that is lost is one, since a
//! guest here does not come back by itself. The smallest VM is tried in every order; of larger ones, orders are drawn at random, and by
//! probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010), which finds rare orders sooner. `SCHEDULES=`
//! sets how many are drawn in each.

mod kvm;
#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../protocol.rs"]
mod protocol;

use std::panic::catch_unwind;
use std::sync::Arc;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::Ordering;
use shuttle::thread;
use shuttle::{Config, FailurePersistence, Runner};

use kvm::{Kicks, Kvm, Paused, Then, Vcpu, VcpuThread};
use protocol::{Control, VcpuThreads};

/// What the protocol waits with.
mod sync {
    pub(super) use shuttle::sync::mpsc;
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use std::sync::PoisonError;
}

struct Vm {
    threads: VcpuThreads<Vcpu, VcpuThread>,
    paused: Paused,
}

/// What a guest does: how often it leaves KVM_RUN by itself, and what it does then.
type Guest = (usize, Then);

impl Vm {
    fn start(kicks: Kicks, guests: &[Guest]) -> Self {
        let control = Arc::new(Control::new(guests.len()));
        let paused = Paused::default();
        let mut threads = VcpuThreads::new(control.clone());
        for (place, &(exits, then)) in guests.iter().enumerate() {
            threads.push(VcpuThread::start(Vcpu {
                place,
                kvm: Kvm::new(kicks),
                control: control.clone(),
                paused: paused.clone(),
                exits,
                then,
            }));
        }
        Self { threads, paused }
    }

    /// Pauses, does `work`, resumes.
    fn paused(&self, work: impl FnOnce()) {
        self.threads.pause();
        self.paused.fetch_add(1, Ordering::SeqCst);
        work();
        self.paused.fetch_sub(1, Ordering::SeqCst);
        self.threads.resume();
    }

    /// Whether a vCPU did something, which finds it standing still.
    fn on_vcpu(&self, place: usize) -> bool {
        let work = move |vcpu: &mut Vcpu| {
            vcpu.check_still();
            vcpu.place
        };
        let done = self.threads.on_vcpu(place, work);
        assert!(done.is_none_or(|by| by == place));
        done.is_some()
    }
}

/// Clients that do these things at the same time, until all of them are done; then the VM is stopped.
fn clients(vm: Vm, clients: &[fn(&Vm)]) {
    let vm = Arc::new(vm);
    let threads: Vec<_> = clients
        .iter()
        .map(|&client| {
            let vm = vm.clone();
            thread::spawn(move || client(&vm))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let Some(mut vm) = Arc::into_inner(vm) else {
        unreachable!("the clients have ended")
    };
    vm.threads.halt();
    assert!((0..3).all(|place| !vm.on_vcpu(place)));
    // Of a VM that has ended, nothing is waited for.
    vm.threads.pause();
    vm.threads.resume();
}

fn explore(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    Runner::new(scheduler, config).run(body)
}

fn schedules() -> usize {
    std::env::var("SCHEDULES").map_or(2000, |count| count.parse().expect("SCHEDULES is a number"))
}

/// Draws orders in both ways.
fn draw(name: &str, body: impl Fn() + Send + Sync + Clone + 'static) {
    let count = schedules();
    let random = explore(RandomScheduler::new(count), body.clone());
    let pct = explore(PctScheduler::new(3, count), body);
    println!("{name}: {random} orders at random, {pct} by PCT");
}

const GOES_ON: Guest = (0, Then::GoesOn);

#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn one_vcpu_is_stopped_in_every_order() {
    let body = || clients(Vm::start(Kicks::Sound, &[GOES_ON]), &[]);
    let orders = explore(DfsScheduler::new(None, false), body);
    println!("all {orders} orders of a stop");
}

#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn a_pause_always_begins_and_nobody_executes_before_it_ends() {
    draw("a pause", || {
        let vm = Vm::start(Kicks::Sound, &[(2, Then::GoesOn), GOES_ON]);
        vm.paused(|| assert!(vm.on_vcpu(0) && vm.on_vcpu(1)));
        assert!(vm.on_vcpu(1));
        vm.paused(|| ());
        clients(vm, &[]);
    });
}

#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn clients_pause_and_resume_at_the_same_time() {
    draw("three clients", || {
        let vm = Vm::start(Kicks::Sound, &[(2, Then::GoesOn), (1, Then::GoesOn)]);
        let swap_filter: fn(&Vm) = |vm| vm.paused(|| ());
        let snapshot: fn(&Vm) = |vm| vm.paused(|| assert!(vm.on_vcpu(0) && vm.on_vcpu(1)));
        let look: fn(&Vm) = |vm| assert!(vm.on_vcpu(1) && vm.on_vcpu(0));
        clients(vm, &[swap_filter, snapshot, look]);
    });
}

#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn a_stop_ends_every_vcpu_whatever_the_clients_do() {
    draw("a stop", || {
        let vm = Vm::start(Kicks::Sound, &[(2, Then::GoesOn), GOES_ON]);
        let stop: fn(&Vm) = |vm| vm.threads.stop();
        let pause: fn(&Vm) = |vm| {
            // A stop ends the wait as well, so that who pauses may not take the guest to stand still.
            vm.threads.pause();
            vm.on_vcpu(0);
            vm.threads.resume();
        };
        let never_resumes: fn(&Vm) = |vm| vm.threads.pause();
        clients(vm, &[stop, pause, never_resumes]);
    });
}

#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn nobody_waits_for_a_vcpu_that_ends_by_itself() {
    draw("a fault", || {
        let vm = Vm::start(Kicks::Sound, &[(1, Then::Faults), (1, Then::GoesOn)]);
        let pause: fn(&Vm) = |vm| {
            vm.paused(|| {
                vm.on_vcpu(0);
            });
        };
        let look: fn(&Vm) = |vm| {
            vm.on_vcpu(0);
            assert!(vm.on_vcpu(1));
        };
        clients(vm, &[pause, look, pause]);
    });
}

/// As a VM that is restored, which begins with a pause.
#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn a_vcpu_whose_kick_came_before_it_was_kickable_sees_the_pause() {
    draw("a pause at the start", || {
        let vm = Vm::start(Kicks::Sound, &[GOES_ON]);
        vm.paused(|| ());
        clients(vm, &[]);
    });
}

/// The signal alone is lost when it comes between the look at the control and KVM_RUN.
#[test]
#[cfg_attr(miri, ignore = "shuttle switches stacks in assembly")]
fn without_immediate_exit_a_kick_is_lost_and_found_out() {
    let body = || {
        let vm = Vm::start(Kicks::WithoutImmediateExit, &[(1, Then::GoesOn)]);
        vm.paused(|| ());
        clients(vm, &[]);
    };
    let explored = catch_unwind(|| explore(RandomScheduler::new(100_000), body));
    let Err(panic) = explored else {
        panic!("no order of 100,000 loses a kick")
    };
    let text = panic.downcast_ref::<String>().map_or("", String::as_str);
    assert!(text.contains("deadlock"), "{text:?}");
}
