use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::kick::{accept_kicks, install_kick_handler};
use super::protocol::{Command, Control, Thread};

/// Threads that count, as vCPUs execute, and look at the control all the time.
fn counting(
    control: &Arc<Control<usize>>,
    vcpu: usize,
    count: &Arc<AtomicUsize>,
) -> thread::JoinHandle<()> {
    let (control, count) = (control.clone(), count.clone());
    thread::spawn(move || {
        loop {
            match control.checkpoint(vcpu) {
                Command::Run => drop(count.fetch_add(1, Ordering::Relaxed)),
                Command::Do(task) => task(&mut vcpu.clone()),
                Command::Stop => break,
            }
        }
        control.leave(vcpu);
    })
}

#[test]
fn a_task_is_done_by_its_vcpu_paused_or_not_and_dropped_by_one_that_has_ended() {
    let control = Arc::new(Control::new(2));
    let count = Arc::new(AtomicUsize::new(0));
    let threads = [0, 1].map(|vcpu| counting(&control, vcpu, &count));
    let ask = |vcpu: usize| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let task = move |vcpu: &mut usize| sender.send(*vcpu).unwrap();
        control.submit(vcpu, Box::new(task));
        receiver.recv().ok()
    };
    assert_eq!([ask(0), ask(1), ask(2)], [Some(0), Some(1), None]);
    control.begin_pause();
    control.wait_parked();
    let paused_at = count.load(Ordering::Relaxed);
    assert_eq!([ask(1), ask(0)], [Some(1), Some(0)]);
    assert_eq!(count.load(Ordering::Relaxed), paused_at);
    control.wait_parked();
    control.stop();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!([ask(0), ask(1)], [None, None]);
}

#[test]
fn nobody_runs_until_every_pause_is_over() {
    let control = Arc::new(Control::new(2));
    let count = Arc::new(AtomicUsize::new(0));
    control.begin_pause();
    let threads = [0, 1].map(|vcpu| counting(&control, vcpu, &count));
    control.wait_parked();
    for _ in 0..1000 {
        // A second pause within the first, as the filter's replacement in a paused VM is.
        control.begin_pause();
        control.wait_parked();
        control.end_pause();
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
    control.end_pause();
    while count.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    control.begin_pause();
    control.wait_parked();
    let paused_at = count.load(Ordering::Relaxed);
    thread::yield_now();
    assert_eq!(count.load(Ordering::Relaxed), paused_at);
    control.stop();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_pause_waits_for_no_vcpu_that_has_ended_nor_for_one_that_ends() {
    let control = Arc::new(Control::<()>::new(1));
    control.leave(0);
    control.begin_pause();
    control.wait_parked();
    let control = Arc::new(Control::<()>::new(1));
    control.begin_pause();
    let waiting = {
        let control = control.clone();
        thread::spawn(move || control.wait_parked())
    };
    control.stop();
    waiting.join().unwrap();
    assert!(matches!(control.checkpoint(0), Command::Stop));
}

#[test]
fn a_kick_waits_for_a_place_in_a_full_queue_of_signals() {
    fn limit(places: libc::rlim_t) -> libc::rlim_t {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both read and write this struct alone.
        unsafe { libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit) };
        let before = limit.rlim_cur;
        limit.rlim_cur = places;
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit) };
        before
    }
    const FULL: Duration = Duration::from_millis(50);
    install_kick_handler().unwrap();
    let waiting = thread::spawn(|| {
        accept_kicks();
        thread::park_timeout(Duration::from_secs(60));
    });
    // Other tests' kicks wait as well.
    let before = limit(0);
    let emptied = thread::spawn(move || {
        thread::sleep(FULL);
        limit(before);
    });
    let begin = Instant::now();
    waiting.kick();
    let took = begin.elapsed();
    emptied.join().unwrap();
    assert!(took >= FULL / 2, "{took:?}");
    waiting.thread().unpark();
    waiting.join().unwrap();
}
