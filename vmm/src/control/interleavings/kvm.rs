//! A vCPU, KVM and the kernel's signals, as far as kicks matter.
//!
//! - A signal that is sent to a thread is delivered some time later, by a thread of its own here.
//! - Outside the kernel its handler runs at once, between two instructions, and sets `immediate_exit`, once the vCPU is kickable.
//! - KVM_RUN completes the exit that is under way and looks at `immediate_exit` before it enters the guest (Linux, `arch/x86/kvm/x86.c`,
//!   `kvm_arch_vcpu_ioctl_run`); from then on it looks for a pending signal alone. The handler runs when it returns.
//! - A guest leaves KVM_RUN by itself as often as the test says, and then never again: it waits for a signal for ever.

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::{self, JoinHandle};

use super::protocol::{Control, Execute, Thread};

/// What is wrong with the kicks, for tests that the checks find it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kicks {
    /// As they should be.
    Sound,
    /// The handler sets nothing.
    WithoutImmediateExit,
}

/// What the guest does once its exits are used up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes on for ever.
    GoesOn,
    /// It ends with a fault.
    Faults,
}

#[derive(Default)]
struct State {
    kickable: bool,
    in_kernel: bool,
    /// A signal is pending; outside the kernel none is for long.
    signal: bool,
    immediate_exit: bool,
    /// There is an exit that the next KVM_RUN completes.
    exit: bool,
}

/// What the thread of a vCPU, KVM, and senders of signals share.
pub(super) struct Kvm {
    state: Mutex<State>,
    signalled: Condvar,
    kicks: Kicks,
}

enum Exit {
    Guest,
    Interrupted,
    Fault,
}

impl Kvm {
    pub(super) fn new(kicks: Kicks) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            signalled: Condvar::new(),
            kicks,
        })
    }

    fn handler(&self, state: &mut State) {
        state.signal = false;
        state.immediate_exit |= state.kickable && self.kicks == Kicks::Sound;
    }

    /// A signal reaches the thread.
    fn deliver(&self) {
        let mut state = self.state.lock().unwrap();
        if state.in_kernel {
            state.signal = true;
            self.signalled.notify_all();
        } else {
            self.handler(&mut state);
        }
    }
}

/// How many pauses are in force that have been waited for: guests stand still.
pub(super) type Paused = Arc<AtomicUsize>;

pub(super) struct Vcpu {
    pub(super) place: usize,
    pub(super) kvm: Arc<Kvm>,
    pub(super) control: Arc<Control<Vcpu>>,
    pub(super) paused: Paused,
    /// How often the guest leaves KVM_RUN by itself.
    pub(super) exits: usize,
    pub(super) then: Then,
}

impl Vcpu {
    /// As `crate::vcpu::Vcpu::run`.
    fn run(mut self) {
        self.kvm.state.lock().unwrap().kickable = true;
        let control = self.control.clone();
        let _fault = control.run(self.place, &mut self);
        self.kvm.state.lock().unwrap().kickable = false;
    }

    /// KVM_RUN.
    fn kvm_run(&mut self) -> Exit {
        let kvm = self.kvm.clone();
        let mut state = kvm.state.lock().unwrap();
        state.in_kernel = true;
        state.exit = false;
        let mut entered = !state.immediate_exit;
        let exit = loop {
            if state.signal || !entered {
                break Exit::Interrupted;
            }
            entered = true;
            // The guest executes, and the kernel holds no lock meanwhile.
            drop(state);
            thread::yield_now();
            let paused = self.paused.load(Ordering::SeqCst);
            assert_eq!(paused, 0, "vCPU {} executes while paused", self.place);
            state = kvm.state.lock().unwrap();
            if self.exits > 0 {
                self.exits -= 1;
                state.exit = true;
                break Exit::Guest;
            }
            if self.then == Then::Faults {
                break Exit::Fault;
            }
            while !state.signal {
                state = kvm.signalled.wait(state).unwrap();
            }
        };
        state.in_kernel = false;
        if state.signal {
            kvm.handler(&mut state);
        }
        exit
    }

    /// What a task finds: nothing of the guest is under way.
    pub(super) fn check_still(&self) {
        let state = self.kvm.state.lock().unwrap();
        assert!(!state.exit, "vCPU {} has an exit pending", self.place);
        assert!(!state.in_kernel);
    }
}

impl Execute for Vcpu {
    type Fault = ();

    fn execute(&mut self) -> Result<(), ()> {
        loop {
            match self.kvm_run() {
                Exit::Guest => thread::yield_now(),
                Exit::Interrupted => return Ok(()),
                Exit::Fault => return Err(()),
            }
        }
    }

    fn forget_kicks(&mut self) {
        self.kvm.state.lock().unwrap().immediate_exit = false;
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.control.leave(self.place);
    }
}

pub(super) struct VcpuThread {
    kvm: Arc<Kvm>,
    thread: JoinHandle<()>,
}

impl VcpuThread {
    pub(super) fn start(vcpu: Vcpu) -> Self {
        let kvm = vcpu.kvm.clone();
        let thread = thread::spawn(move || vcpu.run());
        Self { kvm, thread }
    }
}

impl Thread for VcpuThread {
    fn kick(&self) {
        let kvm = self.kvm.clone();
        thread::spawn(move || kvm.deliver());
    }

    fn join(self) {
        self.thread.join().unwrap();
    }
}
