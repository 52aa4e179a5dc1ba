use std::fs;

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::driver::*;
use crate::devices::virtio::block::{Block, DiskConfig};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const LEN: u64 = 1 << 20;

fn config_bytes(driver: &Driver, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    let offset = u64::from(VIRTIO_MMIO_CONFIG) + offset;
    driver.device.mmio_read(MmioAddress(0), offset, &mut data);
    data
}

#[test]
fn the_configuration_space_has_capacity_limits_and_topology() {
    let temp = image(LEN);
    let driver = Driver::new(disk(&temp));
    assert_eq!(config_bytes(&driver, 0, 8), (LEN / 512).to_le_bytes());
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG), (LEN / 512) as u32);
    assert_eq!(config_bytes(&driver, 12, 4), 126u32.to_le_bytes());
    assert_eq!(config_bytes(&driver, 20, 4), 512u32.to_le_bytes());
    assert_eq!(config_bytes(&driver, 56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config_bytes(&driver, 0xe00, 4), [0; 4]);
    driver.write(VIRTIO_MMIO_CONFIG, 0);
    assert_eq!(
        driver.read(VIRTIO_MMIO_CONFIG),
        (LEN / 512) as u32,
        "it is read-only"
    );
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    driver.put_bytes(DATA, &bytes);
    assert_eq!(
        driver.block(VIRTIO_BLK_T_OUT, 5, &[(DATA, 4096, false)]),
        OK
    );
    assert_eq!(fs::read(temp.as_path()).unwrap()[5 * 512..13 * 512], bytes);
    // Back in three pieces that are no whole sectors, one of them across two memory regions.
    let pieces = [
        (DATA + 0x8001, 1000, true),
        (SEAM - 100, 3000, true),
        (0x20_0000, 96, true),
    ];
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 5, &pieces), OK);
    let back: Vec<u8> = pieces
        .iter()
        .flat_map(|p| driver.bytes(p.0, p.1 as usize))
        .collect();
    assert_eq!(back, bytes);
}

#[test]
fn the_used_length_counts_data_and_status() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(VIRTIO_BLK_T_IN, 0);
    let request = [(HEADER, 16, false), (DATA, 1024, true), (STATUS, 1, true)];
    assert_eq!(driver.serve(&request), 1025);
    driver.put_header(VIRTIO_BLK_T_OUT, 0);
    let request = [(HEADER, 16, false), (DATA, 1024, false), (STATUS, 1, true)];
    assert_eq!(driver.serve(&request), 1);
}

#[test]
fn a_request_may_be_cut_into_buffers_anywhere() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(VIRTIO_BLK_T_IN, 3);
    // The header in three, the status in one with the data.
    let request = [
        (HEADER, 3, false),
        (HEADER + 3, 12, false),
        (HEADER + 15, 1, false),
        (DATA, 513, true),
    ];
    driver.put_bytes(DATA + 512, &[0xff]);
    assert_eq!(driver.serve(&request), 513);
    assert_eq!(driver.bytes(DATA, 1), [3]);
    assert_eq!(driver.bytes(DATA + 512, 1), [OK]);
}

#[test]
fn a_request_may_be_larger_than_one_system_call_moves() {
    let temp = image(6 << 20);
    let mut driver = Driver::started(disk(&temp));
    let data = 0x20_0000;
    assert_eq!(
        driver.block(VIRTIO_BLK_T_IN, 0, &[(data, 6 << 20, true)]),
        OK
    );
    assert_eq!(
        driver.bytes(data, 6 << 20),
        fs::read(temp.as_path()).unwrap()
    );
    // And in more pieces than one system call takes.
    let pieces: Vec<_> = (0..100).map(|i| (DATA + i * 1024, 512, true)).collect();
    driver.write(VIRTIO_MMIO_STATUS, 0);
    driver.start(!0);
    let table = 0x8000;
    let mut all = vec![(HEADER, 16, false)];
    all.extend(&pieces);
    all.push((STATUS, 1, true));
    for (index, &(address, len, writable)) in (0u16..).zip(&all) {
        let flags = if writable { WRITE } else { 0 };
        let next = if index as usize == all.len() - 1 {
            0
        } else {
            NEXT
        };
        driver.put_descriptor(table, index, (address, len, flags | next, index + 1));
    }
    driver.put_header(VIRTIO_BLK_T_IN, 0);
    driver.put_descriptor(DESCRIPTORS, 0, (table, 16 * all.len() as u32, INDIRECT, 0));
    driver.offer(0);
    driver.kick();
    assert_eq!(driver.wait_used(), 100 * 512 + 1);
    for (number, piece) in pieces.iter().enumerate() {
        assert_eq!(driver.bytes(piece.0, 1), [number as u8]);
    }
}

#[test]
fn many_requests_of_one_kick_are_all_served() {
    let temp = image(LEN);
    // With the event index and without.
    for features in [!0, !(1 << 29)] {
        let mut driver = Driver::started(disk(&temp));
        driver.write(VIRTIO_MMIO_STATUS, 0);
        driver.start(features);
        driver.put_header(VIRTIO_BLK_T_IN, 0);
        driver.put_chain(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        for round in 0..5 {
            (0..50).for_each(|_| driver.offer(0));
            driver.kick();
            (0..50).for_each(|_| assert_eq!(driver.wait_used(), 513, "round {round}"));
        }
        assert_eq!(driver.take_used(), None);
    }
}

#[test]
fn a_flush_is_done_on_any_disk() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    assert_eq!(driver.block(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    drop(driver);
    let readonly = Block::open(&config(&temp, true)).unwrap();
    let mut driver = Driver::started(Box::new(readonly));
    assert_eq!(driver.block(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
}

#[test]
fn writes_work_for_a_driver_without_flush() {
    let temp = image(LEN);
    let mut driver = Driver::new(disk(&temp));
    driver.start(!(1 << VIRTIO_BLK_F_FLUSH));
    driver.put_bytes(DATA, &[9; 512]);
    assert_eq!(driver.block(VIRTIO_BLK_T_OUT, 1, &[(DATA, 512, false)]), OK);
    assert_eq!(fs::read(temp.as_path()).unwrap()[512..1024], [9; 512]);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let temp = image(LEN);
    let before = fs::read(temp.as_path()).unwrap();
    let readonly = Block::open(&config(&temp, true)).unwrap();
    let mut driver = Driver::started(Box::new(readonly));
    let features = driver.features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES),
        0
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]),
        IOERR
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16, false)]),
        UNSUPP
    );
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 7, &[(DATA, 512, true)]), OK);
    assert_eq!(driver.bytes(DATA, 1), [7]);
    assert_eq!(fs::read(temp.as_path()).unwrap(), before);
}

#[test]
fn the_serial_number_is_the_configured_one_or_the_files_name() {
    let temp = image(LEN);
    let name = temp
        .as_path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let cases = [
        (None, name.as_str()),
        (Some("data"), "data"),
        (Some("12345678901234567890more"), "12345678901234567890"),
        (Some("a b\u{e9}"), "a_b__"),
    ];
    for (serial, expected) in cases {
        let disk = Block::open(&DiskConfig {
            serial: serial.map(Into::into),
            ..config(&temp, false)
        });
        let mut driver = Driver::started(Box::new(disk.unwrap()));
        assert_eq!(
            driver.block(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]),
            OK
        );
        let mut padded = expected.as_bytes().to_vec();
        padded.resize(20, 0);
        assert_eq!(driver.bytes(DATA, 20), padded);
        assert_eq!(
            driver.block(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 19, true)]),
            IOERR
        );
    }
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    let temp = image(LEN);
    for (kind, flags) in [
        (VIRTIO_BLK_T_DISCARD, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1),
    ] {
        fs::write(temp.as_path(), vec![0x55; LEN as usize]).unwrap();
        let mut driver = Driver::started(disk(&temp));
        driver.put_bytes(DATA, &range(8, 16, flags));
        driver.put_bytes(DATA + 16, &range(100, 1, flags));
        let status = driver.block(kind, 0, &[(DATA, 32, false)]);
        let bytes = fs::read(temp.as_path()).unwrap();
        assert_eq!(bytes.len() as u64, LEN);
        if status == UNSUPP {
            // The file system of the temporary directory cannot do it: nothing has changed.
            assert!(bytes.iter().all(|&b| b == 0x55));
            continue;
        }
        assert_eq!(status, OK);
        for (number, sector) in bytes.chunks(512).enumerate() {
            let zero = (8..24).contains(&number) || number == 100;
            assert_eq!(
                sector,
                [if zero { 0 } else { 0x55 }; 512],
                "sector {number}"
            );
        }
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    let sectors = LEN / 512;
    let cases = [
        (VIRTIO_BLK_T_DISCARD, range(sectors - 1, 2, 0), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(u64::MAX, 1, 0), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(0, u32::MAX, 0), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), UNSUPP),
        (VIRTIO_BLK_T_DISCARD, vec![0; 15], IOERR),
        (VIRTIO_BLK_T_DISCARD, vec![0; 17 * 16], IOERR),
    ];
    let before = fs::read(temp.as_path()).unwrap();
    for (kind, payload, expected) in cases {
        driver.put_bytes(DATA, &payload);
        let status = driver.block(kind, 0, &[(DATA, payload.len() as u32, false)]);
        assert_eq!(status, expected, "{kind} {payload:?}");
    }
    assert_eq!(fs::read(temp.as_path()).unwrap(), before);
}
