//! Block requests, against a model of the disk.
//!
//! The model is an array of bytes and the rules of section 5.2.6 of the virtio specification, for requests that a driver
//! may make and for those it may not; status, data read and the disk's content must be the same. Between them come
//! chains of any shape, which the device may answer as it likes, as long as it stays within its memory and its disk
//! keeps its size.

use arbitrary::{Arbitrary, Unstructured};
use msr_vmm::devices::virtio::block::{Block, DiskConfig};

use crate::memfd::MemoryFile;
use crate::virtio::{Buffer, Driver, INDIRECT, MEMORY_END, NEXT, WRITE, layout};

const SECTOR: u64 = 512;
const SECTORS: u64 = 32;
/// The most data of one request: what is between the layout's data and the end of memory.
const MOST: u64 = MEMORY_END - layout::DATA;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        sector: u8,
        length: u16,
        cut: u8,
    },
    Write {
        sector: u8,
        length: u16,
        cut: u8,
        fill: u8,
    },
    Flush,
    Identify,
    Discard {
        sector: u8,
        count: u8,
    },
    Other {
        kind: u8,
    },
    Chain {
        descriptors: [(u16, u16, u8, u8); 4],
        header: (u8, u8),
        head: u8,
    },
}

/// Runs the requests in `data`.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(readonly) = bool::arbitrary(&mut u) else {
        return;
    };
    let content: Vec<u8> = (0..SECTORS * SECTOR)
        .map(|at| (at / SECTOR) as u8)
        .collect();
    let image = MemoryFile::new(&content);
    let config = DiskConfig {
        path: image.path(),
        readonly,
        serial: Some("model".to_owned()),
        rate_limiter: None,
    };
    let mut driver = Driver::new(Box::new(Block::open(&config).expect("a disk")));
    driver.start();
    let mut disk = Disk { content, readonly };
    let mut steps = 0;
    while !u.is_empty() && steps < 64 {
        let Ok(step) = Step::arbitrary(&mut u) else {
            break;
        };
        take(&mut driver, &mut disk, &image, &step);
        steps += 1;
    }
    assert_eq!(disk.content, read_all(&image));
}

fn read_all(image: &MemoryFile) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let length = image.file().metadata().expect("a file").len();
    assert_eq!(length, SECTORS * SECTOR, "the disk keeps its size");
    let mut content = vec![0; length as usize];
    image.file().read_exact_at(&mut content, 0).expect("a file");
    content
}

/// What the disk is to be.
struct Disk {
    content: Vec<u8>,
    readonly: bool,
}

impl Disk {
    /// The bytes of a request, where it is whole sectors of the disk.
    fn range(&self, sector: u8, length: u64) -> Result<std::ops::Range<usize>, u8> {
        let first = u64::from(sector) * SECTOR;
        if !length.is_multiple_of(SECTOR) || first + length > SECTORS * SECTOR {
            return Err(IO_ERROR);
        }
        Ok(first as usize..(first + length) as usize)
    }

    fn writable(&self) -> Result<(), u8> {
        if self.readonly { Err(IO_ERROR) } else { Ok(()) }
    }
}

fn take(driver: &mut Driver, disk: &mut Disk, image: &MemoryFile, step: &Step) {
    match *step {
        Step::Read {
            sector,
            length,
            cut,
        } => {
            let length = length_of(length);
            let status = request(driver, 0, sector, &pieces(length, cut, true));
            match disk.range(sector, length) {
                Ok(range) => {
                    assert_eq!(status, OK, "{step:?}");
                    let read = driver.bytes(layout::DATA, length as usize);
                    assert_eq!(read, disk.content[range], "{step:?}");
                }
                Err(expected) => assert_eq!(status, expected, "{step:?}"),
            }
        }
        Step::Write {
            sector,
            length,
            cut,
            fill,
        } => {
            let length = length_of(length);
            driver.put(layout::DATA, &vec![fill; length as usize]);
            let status = request(driver, 1, sector, &pieces(length, cut, false));
            match disk.writable().and_then(|()| disk.range(sector, length)) {
                Ok(range) => {
                    assert_eq!(status, OK, "{step:?}");
                    disk.content[range].fill(fill);
                }
                Err(expected) => assert_eq!(status, expected, "{step:?}"),
            }
        }
        Step::Flush => assert_eq!(request(driver, 4, 0, &[]), OK),
        Step::Identify => {
            assert_eq!(
                request(driver, 8, 0, &[Buffer::writable(layout::DATA, 20)]),
                OK
            );
            assert_eq!(driver.bytes(layout::DATA, 6), b"model\0");
        }
        Step::Discard { sector, count } => {
            let mut range = [0; 16];
            range[0] = sector;
            range[8] = count;
            driver.put(layout::DATA, &range);
            let status = request(driver, 11, 0, &[Buffer::readable(layout::DATA, 16)]);
            let length = u64::from(count) * SECTOR;
            let expected = match disk.readonly {
                // The feature is not offered then.
                true => Err(UNSUPPORTED),
                false => disk.range(sector, length),
            };
            match expected {
                Ok(range) => {
                    assert_eq!(status, OK, "{step:?}");
                    disk.content[range].fill(0);
                }
                Err(expected) => assert_eq!(status, expected, "{step:?}"),
            }
        }
        Step::Other { kind } => {
            if ![0, 1, 4, 8, 11, 13].contains(&kind) {
                assert_eq!(
                    request(driver, u32::from(kind), 0, &[]),
                    UNSUPPORTED,
                    "{step:?}"
                );
            }
        }
        Step::Chain {
            ref descriptors,
            header,
            head,
        } => {
            chain(driver, descriptors, header, head);
            disk.content = read_all(image);
        }
    }
}

/// Whole sectors mostly, and never more than there is room for.
fn length_of(length: u16) -> u64 {
    let length = u64::from(length);
    let length = if length % 4 == 3 {
        length
    } else {
        length / SECTOR * SECTOR
    };
    length.min(MOST)
}

/// The data of a request in one piece or in two.
fn pieces(length: u64, cut: u8, writable: bool) -> Vec<Buffer> {
    let first = (length / 256 * u64::from(cut)) as u32;
    let rest = length as u32 - first;
    [
        (layout::DATA, first),
        (layout::DATA + u64::from(first), rest),
    ]
    .into_iter()
    .filter(|(_, length)| *length != 0)
    .map(|(address, length)| Buffer {
        address,
        length,
        writable,
    })
    .collect()
}

fn request(driver: &mut Driver, kind: u32, sector: u8, data: &[Buffer]) -> u8 {
    driver.put(layout::HEADER, &kind.to_le_bytes());
    driver.put(layout::HEADER + 4, &[0; 4]);
    driver.put(layout::HEADER + 8, &u64::from(sector).to_le_bytes());
    driver.put(layout::STATUS, &[0xff]);
    let mut buffers = vec![Buffer::readable(layout::HEADER, 16)];
    buffers.extend(data);
    buffers.push(Buffer::writable(layout::STATUS, 1));
    driver.serve(&buffers);
    driver.bytes(layout::STATUS, 1)[0]
}

/// Descriptors of any shape, then a driver that begins anew: the device may have been told to write over its rings.
fn chain(driver: &mut Driver, descriptors: &[(u16, u16, u8, u8)], header: (u8, u8), head: u8) {
    driver.put(layout::HEADER, &u32::from(header.0).to_le_bytes());
    driver.put(layout::HEADER + 8, &u64::from(header.1).to_le_bytes());
    for (index, &(address, length, flags, next)) in (0..).zip(descriptors) {
        let buffer = Buffer {
            // Some are beyond the end of memory.
            address: u64::from(address) << 2,
            length: length.into(),
            writable: false,
        };
        let flags = u16::from(flags) & (NEXT | WRITE | INDIRECT);
        driver.put_descriptor(index, buffer, flags, u16::from(next % 8));
    }
    driver.offer(u16::from(head % 80));
    driver.kick(0);
    driver.device.pause().expect("a disk that answers");
    driver.device.resume();
    driver.reset();
    driver.start();
}
