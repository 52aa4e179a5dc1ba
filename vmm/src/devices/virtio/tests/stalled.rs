//! Devices whose host does not answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::*;
use virtio_queue::DescriptorChain;

use super::driver::*;
use crate::devices::virtio::{DriverLog, QueueHandler, Served, VirtioDevice};
use crate::memory::GuestMemoryMmap;

/// How long is waited for a host that does not answer at all.
const LIMIT: Duration = Duration::from_millis(100);
/// What waits for longer than the limit waits for the host.
const SOON: Duration = Duration::from_secs(5);

/// A device whose requests are done when the host lets them, whatever it is told.
#[derive(Clone)]
struct Stalling {
    begun: Arc<AtomicUsize>,
    answers: Arc<Mutex<Receiver<()>>>,
}

impl VirtioDevice for Stalling {
    fn device_type(&self) -> u32 {
        4
    }

    fn name(&self) -> &str {
        "the device"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn under_way(&self) -> &'static str {
        "a system call"
    }

    fn handler(&mut self, _features: u64, _driver_log: DriverLog) -> Box<dyn QueueHandler> {
        Box::new(self.clone())
    }
}

impl QueueHandler for Stalling {
    fn serve(
        &mut self,
        _queue: usize,
        _chain: DescriptorChain<&GuestMemoryMmap>,
        stop: &AtomicBool,
    ) -> Served {
        self.begun.fetch_add(1, Ordering::Release);
        // Fails once the test is over.
        let _ = self.answers.lock().unwrap().recv();
        if stop.load(Ordering::Acquire) {
            return Served::Abandoned;
        }
        Served::Done(1)
    }
}

/// A device with a request under way, which the host does not answer before it is told to.
fn stalled() -> (Driver, Stalling, Sender<()>) {
    let (host, answers) = channel();
    let device = Stalling {
        begun: Arc::default(),
        answers: Arc::new(Mutex::new(answers)),
    };
    let mut driver = Driver::started(Box::new(device.clone()));
    driver.device.set_stall_limit(LIMIT);
    driver.put_chain(&[(DATA, 16, true)]);
    driver.offer(0);
    driver.kick();
    wait_until("the request to begin", || {
        device.begun.load(Ordering::Acquire) == 1
    });
    (driver, device, host)
}

fn soon() -> Instant {
    Instant::now() + LIMIT
}

#[test]
fn a_pause_that_the_host_holds_up_is_an_error_and_the_device_goes_on() {
    let (mut driver, device, host) = stalled();
    for _ in 0..2 {
        let begin = Instant::now();
        let error = driver.device.pause_until(soon()).unwrap_err();
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
        assert_eq!(
            error.to_string(),
            "the device: the host has not finished a system call for 0.1 s"
        );
    }
    host.send(()).unwrap();
    // Not abandoned, as the stop was taken back; and the next is served as well.
    assert_eq!(driver.wait_used(), 1);
    assert_eq!(device.begun.load(Ordering::Acquire), 1);
    host.send(()).unwrap();
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 1);
    driver.device.pause().unwrap();
    driver.device.resume();
    host.send(()).unwrap();
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 1);
}

#[test]
fn whenever_the_host_answers_a_pause_or_its_withdrawal_no_request_is_lost() {
    for round in 0..200 {
        let (mut driver, _, host) = stalled();
        let answering = thread::spawn(move || {
            thread::sleep(Duration::from_micros(round * 5));
            host.send(()).unwrap();
            host
        });
        let paused = driver
            .device
            .pause_until(Instant::now() + Duration::from_micros(500));
        let host = answering.join().unwrap();
        if paused.is_ok() {
            driver.device.resume();
        }
        // Where the request was abandoned it is asked for again.
        host.send(()).unwrap();
        assert_eq!(driver.wait_used(), 1, "round {round}");
    }
}

#[test]
fn a_reset_that_the_host_holds_up_lets_the_vcpu_go_and_is_done_once_the_host_answers() {
    let (mut driver, device, host) = stalled();
    let begin = Instant::now();
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert!(begin.elapsed() >= LIMIT);
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    // From here on nobody waits.
    driver.device.set_stall_limit(Duration::from_secs(3600));
    for status in [0, ACKNOWLEDGE, 0] {
        driver.write(VIRTIO_MMIO_STATUS, status);
        assert_ne!(driver.status() & NEEDS_RESET, 0);
    }
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.device.pause_until(soon()).unwrap_err();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    host.send(()).unwrap();
    wait_until("the reset", || driver.status() == 0);
    // The request was abandoned.
    assert_eq!(driver.take_used(), None);
    driver.start(!0);
    host.send(()).unwrap();
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 1);
    assert_eq!(device.begun.load(Ordering::Acquire), 2);
}

#[test]
fn a_queue_whose_request_the_host_does_not_finish_stays_in_use() {
    let (mut driver, _, host) = stalled();
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    host.send(()).unwrap();
    assert_eq!(driver.wait_used(), 1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn dropping_a_device_leaves_a_thread_behind_that_the_host_does_not_let_go_of() {
    let (driver, device, host) = stalled();
    let mem = driver.mem.clone();
    let begin = Instant::now();
    drop(driver);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // The thread has what it uses.
    assert!(Arc::strong_count(&mem) > 1);
    host.send(()).unwrap();
    wait_until("the thread's end", || Arc::strong_count(&device.begun) == 1);
    assert_eq!(Arc::strong_count(&mem), 1);
}
