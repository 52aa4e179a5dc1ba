use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};

use super::driver::*;
use crate::devices::virtio::entropy::Entropy;

const LEN: u64 = 64 << 10;

/// The device is usable: by a new driver at the latest.
fn still_works(driver: &mut Driver) {
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.start(!0);
    assert_eq!(driver.block(0, 1, &[(DATA, 512, true)]), 0);
    assert_eq!(driver.bytes(DATA, 1), [1]);
}

#[test]
fn a_chain_that_is_a_loop_is_given_back() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(0, 0);
    for (first, second) in [
        ((HEADER, 16, NEXT, 0), (0, 0, 0, 0)),
        ((HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 1)),
        ((HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 0)),
        ((HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, u16::MAX)),
        ((DESCRIPTORS, 16, INDIRECT, 0), (0, 0, 0, 0)),
        ((DESCRIPTORS, 32, INDIRECT | NEXT, 1), (DATA, 1, WRITE, 0)),
        ((DESCRIPTORS, 15, INDIRECT, 0), (0, 0, 0, 0)),
        ((DESCRIPTORS, 0, INDIRECT, 0), (0, 0, 0, 0)),
        ((DESCRIPTORS, !15, INDIRECT, 0), (0, 0, 0, 0)),
        ((!15, 32, INDIRECT, 0), (0, 0, 0, 0)),
    ] {
        driver.put_descriptor(DESCRIPTORS, 0, first);
        driver.put_descriptor(DESCRIPTORS, 1, second);
        driver.offer(0);
        driver.kick();
        assert_eq!(driver.wait_used(), 0, "{first:x?} {second:x?}");
    }
    still_works(&mut driver);
}

#[test]
fn a_chain_of_4_gib_and_more_is_given_back() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(0, 0);
    let buffers = [
        (HEADER, 16, false),
        (0, u32::MAX, true),
        (0, u32::MAX, true),
    ];
    assert_eq!(driver.serve(&buffers), 0);
    still_works(&mut driver);
}

#[test]
fn a_head_outside_the_table_needs_a_reset() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.offer(64);
    driver.kick();
    wait_until("a reset to be needed", || {
        driver.status() & NEEDS_RESET != 0
    });
    assert_eq!(
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    driver.kick();
    still_works(&mut driver);
}

#[test]
fn more_available_chains_than_fit_need_a_reset() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.set_available(65);
    driver.kick();
    wait_until("a reset to be needed", || {
        driver.status() & NEEDS_RESET != 0
    });
    still_works(&mut driver);
}

#[test]
fn rings_that_are_their_own_buffers_end_somehow() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(0, 0);
    for target in [DESCRIPTORS, AVAILABLE, USED] {
        driver.put_chain(&[(HEADER, 16, false), (target, 4096, true), (STATUS, 1, true)]);
        driver.offer(0);
        driver.kick();
        driver.device.pause().unwrap();
        driver.device.resume();
        still_works(&mut driver);
    }
}

/// Addresses near everything that is special, lengths likewise.
fn address() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![
        0,
        DESCRIPTORS,
        AVAILABLE,
        USED,
        HEADER,
        STATUS,
        DATA,
        SEAM,
        MEMORY_END,
        1 << 32,
        u64::MAX,
    ]);
    (near, -64i64..64).prop_map(|(near, by)| near.wrapping_add_signed(by))
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..40,
        Just(512),
        Just(4096),
        Just(u32::MAX),
        any::<u32>()
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    (
        address(),
        length(),
        0u16..8,
        prop_oneof![0u16..8, any::<u16>()],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_chain_hangs_or_breaks_the_device(
        descriptors in prop::collection::vec(descriptor(), 8),
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..200, any::<u64>()],
        heads in prop::collection::vec(0u16..9, 1..8),
    ) {
        let temp = image(LEN);
        let mut driver = Driver::started(disk(&temp));
        driver.put_header(kind, sector);
        for (index, &descriptor) in (0..).zip(&descriptors) {
            driver.put_descriptor(DESCRIPTORS, index, descriptor);
        }
        heads.iter().for_each(|&head| driver.offer(head));
        driver.kick();
        // The device may write over its own rings, so not even the used index says when it is done.
        driver.device.pause().unwrap();
        driver.device.resume();
        driver.write(VIRTIO_MMIO_STATUS, 0);
        // Writes that went astray are within the image, which is as large as before.
        prop_assert_eq!(std::fs::metadata(temp.as_path()).unwrap().len(), LEN);
        driver.start(!0);
        prop_assert_eq!(driver.block(0, 1, &[(DATA, 512, true)]), 0);
    }

    #[test]
    fn no_sequence_of_register_accesses_breaks_the_device(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u64..0x200, prop_oneof![0u32..16, any::<u32>()], 0usize..9),
            0..200,
        ),
    ) {
        let mut driver = Driver::new(Box::new(Entropy::new(None)));
        for (write, offset, value, len) in accesses {
            let mut data = [value.to_le_bytes(), value.to_le_bytes()].concat();
            let data = &mut data[..len];
            let offset = if len == 4 { offset & !3 } else { offset };
            if write {
                driver.device.mmio_write(MmioAddress(0), offset, data);
            } else {
                driver.device.mmio_read(MmioAddress(0), offset, data);
            }
        }
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.start(!0);
        prop_assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
    }

    #[test]
    fn no_rings_break_the_device(bytes in prop::collection::vec(any::<u8>(), 64)) {
        let mut driver = Driver::started(Box::new(Entropy::new(None)));
        for ring in [DESCRIPTORS, AVAILABLE, USED] {
            driver.mem.write_slice(&bytes, GuestAddress(ring)).unwrap();
        }
        driver.kick();
        driver.device.pause().unwrap();
        driver.device.resume();
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.start(!0);
        prop_assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
    }
}
