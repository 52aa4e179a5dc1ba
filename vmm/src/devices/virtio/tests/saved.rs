//! Devices that are saved and restored, as in a snapshot.

use serde_json::{Value, json};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;

use super::driver::*;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::{MmioDevice, StateError};

/// The state as a snapshot has it.
fn saved(device: &MmioDevice) -> Value {
    serde_json::to_value(device.save()).unwrap()
}

fn restore(device: &MmioDevice, state: Value) -> Result<(), StateError> {
    device.restore(&serde_json::from_value(state).unwrap())
}

#[test]
fn a_restored_device_serves_the_request_that_waited_without_another_kick() {
    let temp = image(1 << 20);
    let mut driver = Driver::started(disk(&temp));
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 7, &[(DATA, 512, true)]), 0);
    driver.device.pause().unwrap();
    driver.put_header(VIRTIO_BLK_T_IN, 4);
    driver.put_chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.offer(0);
    driver.kick();
    let state = saved(&driver.device);
    driver.replace(|| disk(&temp));
    restore(&driver.device, state).unwrap();
    assert_eq!(driver.take_used(), None);
    driver.device.resume();
    assert_eq!(driver.wait_used(), 513);
    assert_eq!(driver.bytes(DATA, 1), [4]);
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 5, &[(DATA, 512, true)]), 0);
    assert_eq!(driver.bytes(DATA, 1), [5]);
}

#[test]
fn an_interrupt_that_the_driver_has_not_acknowledged_is_raised_again() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
    wait_until("the interrupt", || {
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) == VIRTIO_MMIO_INT_VRING
    });
    driver.device.pause().unwrap();
    let unacknowledged = saved(&driver.device);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    let acknowledged = saved(&driver.device);
    for (state, status, edges) in [
        (unacknowledged, VIRTIO_MMIO_INT_VRING, Some(1)),
        (acknowledged, 0, None),
    ] {
        driver.replace(|| Box::new(Entropy::new(None)));
        restore(&driver.device, state).unwrap();
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), status);
        assert_eq!(driver.device.notifier.line().read().ok(), edges);
    }
}

#[test]
fn a_device_without_a_driver_is_restored_as_such() {
    let mut driver = Driver::new(Box::new(Entropy::new(None)));
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    driver.device.pause().unwrap();
    let state = saved(&driver.device);
    driver.replace(|| Box::new(Entropy::new(None)));
    restore(&driver.device, state).unwrap();
    driver.device.resume();
    assert_eq!(driver.status(), ACKNOWLEDGE);
    driver.start(!0);
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
}

#[test]
fn what_no_driver_could_have_brought_about_is_refused_and_changes_nothing() {
    let driver = Driver::started(Box::new(Entropy::new(None)));
    driver.device.pause().unwrap();
    let good = saved(&driver.device);
    let fresh = Driver::new(Box::new(Entropy::new(None)));
    let size = |size: u16| json!({ "max_size": size, "size": size });
    for (key, value, words) in [
        ("device_type", json!(2), "of a device of type 2"),
        ("status", json!(0x100), "its status 0x100 is none"),
        (
            "driver_features",
            json!(1u64 << 63),
            "has accepted features",
        ),
        ("driver_features", json!(0), "has accepted features"),
        ("queues", json!([]), "other sizes"),
        ("queues/0", size(32), "other sizes"),
        ("queues/0", json!({ "size": 3 }), "a queue: "),
        ("queues/0", json!({ "desc_table": 1 }), "a queue: "),
        (
            "queues/0",
            json!({ "used_ring": MEMORY_END }),
            "not in memory",
        ),
        ("queues/0", json!({ "avail_ring": 0 }), "not in memory"),
    ] {
        let mut state = good.clone();
        let place = state.pointer_mut(&format!("/{key}")).unwrap();
        match value {
            Value::Object(keys) => place.as_object_mut().unwrap().extend(keys),
            value => *place = value,
        }
        let error = restore(&fresh.device, state).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error}");
        assert_eq!(fresh.status(), 0, "{key}");
    }
    restore(&fresh.device, good).unwrap();
    assert_eq!(
        fresh.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
}
