use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::driver::*;

/// The process's log, of which each test looks at the lines about its own disk.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(format!("{}: {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn a_driver_cannot_fill_the_log_however_often_it_resets_the_device() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Warn);
    let temp = image(64 << 10);
    let mut driver = Driver::new(disk(&temp));
    for _ in 0..100 {
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.start(!0);
        // A request beyond the end, then a ring that claims more than there is room for.
        assert_eq!(driver.block(0, u64::MAX, &[(DATA, 512, true)]), 1);
        driver
            .mem
            .write_obj(u16::MAX, GuestAddress(AVAILABLE + 2))
            .unwrap();
        driver.kick();
        driver.device.pause().unwrap();
        driver.device.resume();
        // A head beyond the table.
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.start(!0);
        driver.offer(u16::MAX);
        driver.kick();
        driver.device.pause().unwrap();
        driver.device.resume();
        // Rings that are nowhere.
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.negotiate(!0);
        for register in [VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_USED_HIGH] {
            driver.write(register, u32::MAX);
        }
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
    }
    let path = temp.as_path().display().to_string();
    let lines = LINES.0.lock().unwrap_or_else(PoisonError::into_inner);
    let ours: Vec<&String> = lines.iter().filter(|line| line.contains(&path)).collect();
    // The queues' own library would tell each time, and of no device.
    let theirs = lines.iter().find(|line| line.starts_with("virtio_queue"));
    assert_eq!(theirs, None);
    assert_eq!(ours.len(), 10, "{ours:#?}");
    assert!(ours[9].ends_with("more of that is not reported"));
}
