//! Devices whose guests may use them only so fast.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::tempfile::TempFile;

use super::driver::*;
use crate::devices::virtio::block::{Block, DiskConfig};
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::rate_limiter::{MAX_REFILL_TIME, RateLimiterConfig, TokenBucketConfig};

const LEN: u64 = 1 << 20;

fn bucket(size: u64, refill_time: u64) -> Option<TokenBucketConfig> {
    Some(TokenBucketConfig {
        size,
        refill_time,
        one_time_burst: 0,
    })
}

fn limited(temp: &TempFile, limit: RateLimiterConfig) -> Box<Block> {
    let config = DiskConfig {
        rate_limiter: Some(limit),
        ..config(temp, false)
    };
    Box::new(Block::open(&config).unwrap())
}

/// A disk with operations for so many requests, and then none for a day.
fn with_operations(temp: &TempFile, operations: u64) -> Box<Block> {
    let limit = RateLimiterConfig {
        bandwidth: None,
        ops: bucket(operations, MAX_REFILL_TIME),
    };
    limited(temp, limit)
}

/// Asks for a sector and does not wait for it.
fn ask(driver: &mut Driver, sector: u64) {
    driver.put_header(VIRTIO_BLK_T_IN, sector);
    driver.put_chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.offer(0);
    driver.kick();
}

/// Waits as long as a request takes that does not wait, many times over.
fn let_it_be_served() {
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn a_limited_disk_takes_its_time_and_serves_everything() {
    const SIZE: u64 = 8192;
    const REFILL: u64 = 100;
    let temp = image(LEN);
    let limit = RateLimiterConfig {
        bandwidth: bucket(SIZE, REFILL),
        ops: None,
    };
    let mut driver = Driver::started(limited(&temp, limit));
    let begin = Instant::now();
    for block in 0..8 {
        let data = [(DATA, 4096, true)];
        assert_eq!(driver.block(VIRTIO_BLK_T_IN, block * 8, &data), 0);
        assert_eq!(driver.bytes(DATA, 1), [block as u8 * 8]);
    }
    // What the bucket has at once, and the rest at its rate.
    let least = Duration::from_millis((8 * 4096 - SIZE) * REFILL / SIZE);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
}

#[test]
fn a_request_for_more_bytes_than_the_bucket_holds_goes_through() {
    let temp = image(LEN);
    let limit = RateLimiterConfig {
        bandwidth: bucket(512, 10),
        ops: None,
    };
    let mut driver = Driver::started(limited(&temp, limit));
    driver.put_bytes(DATA, &[0xa5; 0x8000]);
    let begin = Instant::now();
    for sector in [0, 64] {
        let data = [(DATA, 0x8000, false)];
        assert_eq!(driver.block(VIRTIO_BLK_T_OUT, sector, &data), 0);
    }
    // The second waits until the first is paid for: 64 sectors less the one that was there, and one more.
    let least = Duration::from_millis(640);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    let bytes = std::fs::read(temp.as_path()).unwrap();
    assert_eq!(bytes[..0x1_0000], [0xa5; 0x1_0000]);
}

#[test]
fn every_kind_of_request_is_an_operation_and_each_range_of_a_discard() {
    let temp = image(LEN);
    let mut driver = Driver::started(with_operations(&temp, 7));
    assert_eq!(driver.block(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
    assert_eq!(
        driver.block(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]),
        VIRTIO_BLK_S_OK as u8
    );
    // Beyond the end of the disk.
    let beyond = driver.block(VIRTIO_BLK_T_IN, LEN, &[(DATA, 512, true)]);
    assert_eq!(beyond, VIRTIO_BLK_S_IOERR as u8);
    let mut ranges = [0; 48];
    for (number, range) in ranges.chunks_mut(16).enumerate() {
        (range[0], range[8]) = (number as u8, 1);
    }
    driver.put_bytes(DATA, &ranges);
    let data = [(DATA, 48, false)];
    assert_eq!(driver.block(VIRTIO_BLK_T_DISCARD, 0, &data), 0);
    assert_eq!(
        driver.block(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]),
        0,
        "the seventh operation"
    );
    ask(&mut driver, 4);
    let_it_be_served();
    assert_eq!(driver.take_used(), None);
}

#[test]
fn a_request_that_waits_holds_up_neither_pause_nor_reset_nor_drop() {
    const SOON: Duration = Duration::from_secs(5);
    let temp = image(LEN);
    let mut driver = Driver::started(with_operations(&temp, 1));
    ask(&mut driver, 1);
    assert_eq!(driver.wait_used(), 513);
    ask(&mut driver, 2);
    let_it_be_served();
    let begin = Instant::now();
    for _ in 0..3 {
        driver.device.pause().unwrap();
        assert_eq!(driver.take_used(), None);
        driver.device.resume();
        driver.kick();
    }
    // Neither a pause nor a reset brings an operation.
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.start(!0);
    ask(&mut driver, 3);
    let_it_be_served();
    assert_eq!(driver.take_used(), None);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    drop(driver);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn a_restored_disk_serves_the_request_that_waited_and_has_full_buckets() {
    let temp = image(LEN);
    let mut driver = Driver::started(with_operations(&temp, 1));
    ask(&mut driver, 1);
    assert_eq!(driver.wait_used(), 513);
    ask(&mut driver, 2);
    driver.device.pause().unwrap();
    assert_eq!(driver.take_used(), None);
    let state = driver.device.save();
    driver.replace(|| with_operations(&temp, 2));
    driver.device.restore(&state).unwrap();
    driver.device.resume();
    assert_eq!(driver.wait_used(), 513);
    assert_eq!(driver.bytes(DATA, 1), [2]);
    ask(&mut driver, 3);
    assert_eq!(driver.wait_used(), 513);
}

#[test]
fn random_numbers_are_limited_by_bytes_and_by_requests() {
    let limit = RateLimiterConfig {
        bandwidth: bucket(64, 100),
        ops: None,
    };
    let mut driver = Driver::started(Box::new(Entropy::new(Some(&limit))));
    let begin = Instant::now();
    for _ in 0..4 {
        assert_eq!(driver.serve(&[(DATA, 64, true)]), 64);
    }
    let least = Duration::from_millis(300);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    let limit = RateLimiterConfig {
        bandwidth: None,
        ops: bucket(1, MAX_REFILL_TIME),
    };
    let mut driver = Driver::started(Box::new(Entropy::new(Some(&limit))));
    assert_eq!(driver.serve(&[(DATA, 0x2_0000, true)]), 64 << 10);
    driver.offer(0);
    driver.kick();
    let_it_be_served();
    assert_eq!(driver.take_used(), None);
}
