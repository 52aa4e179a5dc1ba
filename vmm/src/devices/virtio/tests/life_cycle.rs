use std::fs;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;
use virtio_queue::DescriptorChain;

use super::driver::*;
use crate::devices::virtio::block::{Block, DiskConfig};
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::{DriverLog, QueueHandler, Served, VirtioDevice};
use crate::memory::GuestMemoryMmap;

const LEN: u64 = 1 << 20;

/// A device whose requests take until it is stopped, or until they may end.
#[derive(Clone, Default)]
struct Slow {
    begun: Arc<AtomicUsize>,
    may_end: Arc<AtomicBool>,
}

impl VirtioDevice for Slow {
    fn device_type(&self) -> u32 {
        4
    }

    fn name(&self) -> &str {
        "slow"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn handler(&mut self, _features: u64, _complaints: DriverLog) -> Box<dyn QueueHandler> {
        Box::new(self.clone())
    }
}

impl QueueHandler for Slow {
    fn serve(
        &mut self,
        _queue: usize,
        _chain: DescriptorChain<&GuestMemoryMmap>,
        stop: &AtomicBool,
    ) -> Served {
        self.begun.fetch_add(1, Ordering::Release);
        while !self.may_end.load(Ordering::Acquire) {
            if stop.load(Ordering::Acquire) {
                return Served::Abandoned;
            }
            std::thread::yield_now();
        }
        Served::Done(1)
    }
}

fn with_a_request_begun() -> (Driver, Slow) {
    let slow = Slow::default();
    let mut driver = Driver::started(Box::new(slow.clone()));
    driver.put_chain(&[(DATA, 16, true)]);
    driver.offer(0);
    driver.kick();
    wait_until("the request to begin", || {
        slow.begun.load(Ordering::Acquire) == 1
    });
    (driver, slow)
}

#[test]
fn a_reset_abandons_the_request_that_is_in_flight() {
    let (mut driver, slow) = with_a_request_begun();
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.take_used(), None);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    slow.may_end.store(true, Ordering::Release);
    driver.start(!0);
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 1);
    assert_eq!(slow.begun.load(Ordering::Acquire), 2);
}

#[test]
fn a_request_abandoned_by_a_pause_is_served_after_it() {
    let (mut driver, slow) = with_a_request_begun();
    driver.device.pause().unwrap();
    slow.may_end.store(true, Ordering::Release);
    assert_eq!(driver.take_used(), None);
    driver.device.resume();
    assert_eq!(driver.wait_used(), 1);
    assert_eq!(driver.take_used(), None);
}

#[test]
fn dropping_a_device_ends_its_thread() {
    let (driver, slow) = with_a_request_begun();
    drop(driver);
    // The handler is the thread's, and it went with it.
    assert_eq!(Arc::strong_count(&slow.begun), 1);
}

#[test]
fn requests_made_during_a_pause_wait_for_its_end() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.device.pause().unwrap();
    driver.device.pause().unwrap();
    driver.put_header(VIRTIO_BLK_T_IN, 4);
    driver.put_chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.offer(0);
    driver.kick();
    assert_eq!(driver.take_used(), None);
    driver.device.resume();
    assert_eq!(driver.wait_used(), 513);
    assert_eq!(driver.bytes(DATA, 1), [4]);
    driver.device.resume();
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 5, &[(DATA, 512, true)]), 0);
}

#[test]
fn a_driver_that_starts_during_a_pause_is_served_after_it() {
    let mut driver = Driver::new(Box::new(Entropy::new(None)));
    driver.device.pause().unwrap();
    driver.start(!0);
    driver.put_chain(&[(DATA, 16, true)]);
    driver.offer(0);
    driver.kick();
    assert_eq!(driver.take_used(), None);
    driver.device.resume();
    assert_eq!(driver.wait_used(), 16);
}

#[test]
fn a_load_of_writes_survives_pauses_at_any_time() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    for round in 0..100u64 {
        driver.put_bytes(DATA, &[round as u8; 4096]);
        driver.put_header(VIRTIO_BLK_T_OUT, round * 8);
        driver.put_chain(&[(HEADER, 16, false), (DATA, 4096, false), (STATUS, 1, true)]);
        driver.offer(0);
        driver.kick();
        driver.device.pause().unwrap();
        driver.device.resume();
        assert_eq!(driver.wait_used(), 1);
    }
    let bytes = fs::read(temp.as_path()).unwrap();
    for (round, block) in bytes.chunks(4096).take(100).enumerate() {
        assert_eq!(block, [round as u8; 4096]);
    }
}

#[test]
fn a_flush_that_takes_long_holds_up_neither_pause_nor_reset_nor_drop() {
    let temp = image(LEN);
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let sync = move || {
        begin.send(()).unwrap();
        ended.recv().map_err(|_| ErrorKind::BrokenPipe.into())
    };
    let config = DiskConfig {
        path: temp.as_path().into(),
        readonly: false,
        serial: None,
        rate_limiter: None,
    };
    let disk = Block::with_sync(&config, Box::new(sync));
    let mut driver = Driver::started(Box::new(disk));
    let ask = |driver: &mut Driver| {
        driver.put_header(VIRTIO_BLK_T_FLUSH, 0);
        driver.put_chain(&[(HEADER, 16, false), (STATUS, 1, true)]);
        driver.offer(0);
        driver.kick();
        begun.recv().unwrap();
    };
    ask(&mut driver);
    driver.device.pause().unwrap();
    assert_eq!(driver.take_used(), None);
    driver.device.resume();
    driver.device.pause().unwrap();
    driver.device.resume();
    // The flush under way may have begun before the last write, so another follows it.
    end.send(()).unwrap();
    begun.recv().unwrap();
    end.send(()).unwrap();
    assert_eq!(driver.wait_used(), 1);
    assert_eq!(driver.bytes(STATUS, 1), [0]);
    ask(&mut driver);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.start(!0);
    drop(driver);
    drop(end);
}
