//! The virtio-mmio transport and its queues, without a well-behaved driver: registers in any order, and rings of any
//! bytes. The device afterwards serves a driver that resets it.

mod driver;

use arbitrary::{Arbitrary, Unstructured};
use msr_vmm::devices::virtio::entropy::Entropy;

pub(crate) use driver::{Buffer, Driver, INDIRECT, MEMORY_END, NEXT, WRITE, layout};

#[derive(Arbitrary)]
enum Step {
    Read {
        offset: u16,
        width: u8,
    },
    Write {
        offset: u16,
        value: u32,
        width: u8,
    },
    Register {
        number: u8,
        value: u32,
    },
    /// Up to `DRIVER_OK`, as a driver would.
    Start,
    /// Bytes into a ring or a table.
    Memory {
        place: u8,
        offset: u8,
        value: u32,
    },
    Offer(u16),
    Kick(u8),
    Pause,
}

/// Runs the steps in `data`.
pub fn run(data: &[u8]) {
    let mut driver = Driver::new(Box::new(Entropy::new(None)));
    let mut u = Unstructured::new(data);
    let mut steps = 0;
    while !u.is_empty() && steps < 200 {
        let Ok(step) = Step::arbitrary(&mut u) else {
            break;
        };
        take(&mut driver, step);
        steps += 1;
    }
    driver.reset();
    driver.start();
    let served = driver.serve(&[Buffer::writable(layout::DATA, 16)]);
    assert_eq!(served, 16, "a driver that begins anew is served");
}

fn take(driver: &mut Driver, step: Step) {
    match step {
        Step::Read { offset, width } => {
            let mut data = [0; 8];
            driver.access_read(
                u64::from(offset % 0x200),
                &mut data[..usize::from(width % 9)],
            );
        }
        Step::Write {
            offset,
            value,
            width,
        } => {
            let data = (u64::from(value) << 32 | u64::from(value)).to_le_bytes();
            driver.access_write(u64::from(offset % 0x200), &data[..usize::from(width % 9)]);
        }
        Step::Register { number, value } => driver.write(u32::from(number) * 4, value),
        Step::Start => driver.start(),
        Step::Memory {
            place,
            offset,
            value,
        } => {
            let ring =
                [layout::DESCRIPTORS, layout::AVAILABLE, layout::USED][usize::from(place % 3)];
            driver.put(ring + u64::from(offset), &value.to_le_bytes());
        }
        Step::Offer(head) => driver.offer(head),
        Step::Kick(queue) => driver.kick(u32::from(queue % 3)),
        Step::Pause => {
            driver.device.pause().expect("a device that answers");
            driver.device.resume();
        }
    }
}
