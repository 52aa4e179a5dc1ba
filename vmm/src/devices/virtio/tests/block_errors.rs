use std::fs;

use virtio_bindings::virtio_blk::*;
use vmm_sys_util::tempfile::TempFile;

use super::driver::*;
use crate::devices::virtio::block::{Block, DiskConfig, DiskError};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const LEN: u64 = 1 << 20;

fn open(path: &str, readonly: bool) -> Result<Block, DiskError> {
    Block::open(&DiskConfig {
        path: path.into(),
        readonly,
        serial: None,
        rate_limiter: None,
    })
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let cases = [
        (
            "/no/such/file",
            false,
            "disk /no/such/file: there is no such file",
        ),
        (
            "/no/such/file",
            true,
            "disk /no/such/file: there is no such file",
        ),
        ("/tmp", false, "disk /tmp: this is a directory"),
        ("/tmp", true, "disk /tmp: this is a directory"),
        (
            "/dev/null",
            false,
            "disk /dev/null: this is a character device",
        ),
        (
            "/etc/hostname/x",
            true,
            "disk /etc/hostname/x: Not a directory",
        ),
    ];
    for (path, readonly, expected) in cases {
        let error = open(path, readonly).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_offered_read_only() {
    // Not even root can open this one for writing.
    let path = "/sys/kernel/uevent_seqnum";
    let error = open(path, false).unwrap_err();
    assert!(matches!(error, DiskError::NotWritable { .. }), "{error}");
    assert!(
        error.to_string().contains(&format!("--disk {path},ro")),
        "{error}"
    );
}

#[test]
fn a_disk_has_whole_sectors_and_at_least_one() {
    let temp = TempFile::new().unwrap();
    for (bytes, sectors) in [(0, None), (511, None), (512, Some(1)), (1535, Some(2))] {
        truncate(&temp, bytes);
        match (Block::open(&config(&temp, false)), sectors) {
            (Ok(block), Some(sectors)) => assert_eq!(block.sectors(), sectors),
            (Err(DiskError::TooSmall { bytes: told, .. }), None) => assert_eq!(told, bytes),
            (other, _) => panic!("{bytes}: {other:?}"),
        }
    }
}

#[test]
fn a_disk_that_is_written_is_not_shared_and_one_that_is_read_is() {
    let temp = image(LEN);
    let in_use = |readonly| {
        matches!(
            Block::open(&config(&temp, readonly)),
            Err(DiskError::InUse { .. })
        )
    };
    let writer = Block::open(&config(&temp, false)).unwrap();
    assert!(in_use(false) && in_use(true));
    drop(writer);
    let _reader = Block::open(&config(&temp, true)).unwrap();
    assert!(!in_use(true));
    assert!(in_use(false));
}

#[test]
fn sectors_beyond_the_end_are_errors() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    let sectors = LEN / 512;
    let cases = [
        (sectors - 1, 512, OK),
        (sectors - 1, 1024, IOERR),
        (sectors, 512, IOERR),
        (u64::MAX, 512, IOERR),
        (u64::MAX / 512, 1024, IOERR),
        (0, 100, IOERR),
        (0, 513, IOERR),
    ];
    for (sector, len, expected) in cases {
        let read = driver.block(VIRTIO_BLK_T_IN, sector, &[(DATA, len, true)]);
        let write = driver.block(VIRTIO_BLK_T_OUT, sector, &[(DATA, len, false)]);
        assert_eq!((read, write), (expected, expected), "{len} at {sector}");
    }
    assert_eq!(fs::metadata(temp.as_path()).unwrap().len(), LEN);
}

#[test]
fn requests_of_unknown_type_are_unsupported() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    for kind in [2, 3, 5, 14, 16, u32::MAX] {
        assert_eq!(
            driver.block(kind, 0, &[(DATA, 512, true)]),
            UNSUPP,
            "{kind}"
        );
    }
}

#[test]
fn an_image_truncated_while_running_gives_errors_and_grows_again_when_written() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    truncate(&temp, 1000);
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]), OK);
    assert_eq!(
        driver.block(VIRTIO_BLK_T_IN, 1, &[(DATA, 512, true)]),
        IOERR
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_IN, 100, &[(DATA, 512, true)]),
        IOERR
    );
    driver.put_bytes(DATA, &[3; 512]);
    assert_eq!(
        driver.block(VIRTIO_BLK_T_OUT, 100, &[(DATA, 512, false)]),
        OK
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_IN, 100, &[(DATA + 512, 512, true)]),
        OK
    );
    assert_eq!(driver.bytes(DATA + 512, 512), [3; 512]);
}

#[test]
fn data_outside_memory_are_errors_and_change_nothing() {
    let temp = image(LEN);
    let before = fs::read(temp.as_path()).unwrap();
    let mut driver = Driver::started(disk(&temp));
    for address in [MEMORY_END, MEMORY_END - 256, u64::MAX - 255, u64::MAX] {
        for (kind, writable) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
            let data = [(address, 512, writable)];
            assert_eq!(driver.block(kind, 0, &data), IOERR, "{address:#x}");
        }
    }
    assert_eq!(fs::read(temp.as_path()).unwrap(), before);
}

#[test]
fn data_in_the_wrong_direction_are_errors() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    assert_eq!(
        driver.block(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, false)]),
        IOERR
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, true)]),
        IOERR
    );
    assert_eq!(
        driver.block(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, false)]),
        IOERR
    );
}

#[test]
fn chains_without_room_for_header_or_status_are_given_back() {
    let temp = image(LEN);
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(VIRTIO_BLK_T_IN, 0);
    let cases: [(&[Buffer], u32); 8] = [
        (&[(HEADER, 16, false)], 0),
        (&[(HEADER, 16, false), (STATUS, 0, true)], 0),
        (&[(HEADER, 0, false)], 0),
        (&[(STATUS, 1, true), (HEADER, 16, false)], 0),
        (&[(HEADER, 16, false), (u64::MAX, 2, true)], 0),
        (&[(HEADER, 16, false), (MEMORY_END, 1, true)], 0),
        // A status byte there is, and it says that the header is short.
        (&[(HEADER, 15, false), (STATUS, 1, true)], 0),
        (&[(STATUS, 1, true)], 0),
    ];
    for (chain, written) in cases {
        assert_eq!(driver.serve(chain), written, "{chain:x?}");
    }
    assert_eq!(driver.bytes(STATUS, 1), [IOERR]);
    assert_eq!(driver.block(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]), OK);
}
