use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::driver::*;
use crate::devices::virtio::entropy::Entropy;

const VERSION_1: u64 = 1 << 32;
const STEPS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

fn driver() -> Driver {
    Driver::new(Box::new(Entropy::new(None)))
}

#[test]
fn identification_registers_say_what_is_there() {
    let driver = driver();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.features() & VERSION_1, VERSION_1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn registers_take_aligned_words_only() {
    let driver = driver();
    let read = |offset, len: usize| {
        let mut data = vec![0xaa; len];
        driver.device.mmio_read(MmioAddress(0), offset, &mut data);
        data
    };
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4), (0, 0), (0xffe, 4)] {
        assert_eq!(read(offset, len), vec![0; len], "{len} bytes at {offset}");
    }
    for data in [&[1u8][..], &[1; 8], &[]] {
        let status = u64::from(VIRTIO_MMIO_STATUS);
        driver.device.mmio_write(MmioAddress(0), status, data);
    }
    assert_eq!(driver.status(), 0);
}

#[test]
fn negotiation_accepts_a_subset_of_the_offer_with_version_1() {
    let driver = driver();
    driver.negotiate(VERSION_1);
    assert_eq!(driver.status(), STEPS);
}

#[test]
fn features_ok_does_not_stick_without_version_1_or_with_features_not_offered() {
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX, VERSION_1 | 1, !0] {
        let driver = driver();
        driver.negotiate(features);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_accepted() {
    let mut driver = driver();
    driver.negotiate(VERSION_1);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.start(!0);
    assert_eq!(driver.status(), STEPS | DRIVER_OK);
}

#[test]
fn status_neither_skips_a_step_nor_goes_back() {
    let driver = driver();
    for skipping in [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE | FEATURES_OK] {
        driver.write(VIRTIO_MMIO_STATUS, skipping);
        assert_eq!(driver.status(), 0, "{skipping:#x}");
    }
    driver.negotiate(VERSION_1);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(driver.status(), STEPS);
    driver.write(VIRTIO_MMIO_STATUS, STEPS | NEEDS_RESET | 0x10);
    assert_eq!(driver.status(), STEPS, "bits that are not the driver's");
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok_only() {
    let driver = driver();
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.negotiate(VERSION_1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "no such queue");
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "no such queue");
    driver.write(VIRTIO_MMIO_QUEUE_SEL, u32::MAX);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "no such queue");
}

#[test]
fn queues_outside_memory_need_a_reset_and_get_one() {
    let places = [
        (MEMORY_END, AVAILABLE, USED),
        (DESCRIPTORS, MEMORY_END - 0x10, USED),
        (DESCRIPTORS, AVAILABLE, !3),
        (!15, !1, !3),
        (DESCRIPTORS, 0, USED),
    ];
    for (descriptors, available, used) in places {
        let mut driver = driver();
        driver.negotiate(VERSION_1);
        driver.set_up_queue(descriptors, available, used);
        driver.write(VIRTIO_MMIO_STATUS, STEPS | DRIVER_OK);
        assert_eq!(driver.status(), STEPS | DRIVER_OK | NEEDS_RESET);
        assert_eq!(
            driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.start(!0);
        assert_eq!(driver.serve(&[(DATA, 8, true)]), 8);
    }
}

#[test]
fn a_queue_out_of_range_of_the_notify_register_is_ignored() {
    let driver = Driver::started(Box::new(Entropy::new(None)));
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

#[test]
fn an_interrupt_is_an_edge_after_its_status_and_goes_with_the_acknowledgement() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    driver.serve(&[(DATA, 8, true)]);
    let line = driver.device.notifier.line().try_clone().unwrap();
    wait_until("an edge", || line.read().is_ok());
    assert_eq!(
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_VRING
    );
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_VRING
    );
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_queue_taken_out_of_use_is_not_served() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.put_chain(&[(DATA, 8, true)]);
    driver.offer(0);
    driver.kick();
    // A pause waits for the device's thread, so what it was to do is done.
    driver.device.pause().unwrap();
    assert_eq!(driver.take_used(), None);
}

#[test]
fn a_device_goes_on_after_a_reset_from_where_a_driver_starts() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    for _ in 0..3 {
        assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.start(VERSION_1);
    }
}
