//! Every page that a device writes is noted while a snapshot is made: KVM's log does not have them.

use std::ops::Deref;

use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::driver::*;
use crate::devices::virtio::entropy::Entropy;

const PAGE: usize = 4096;

/// What memory holds, region after region.
fn contents(driver: &Driver) -> Vec<Vec<u8>> {
    let regions = driver.mem.iter();
    let read = regions.map(|region| {
        let mut bytes = vec![0; region.len() as usize];
        driver
            .mem
            .read_slice(&mut bytes, region.start_addr())
            .unwrap();
        bytes
    });
    read.collect()
}

/// Has the device serve a request, and checks that each page that is other than before was noted.
fn noted(driver: &mut Driver, request: &[Buffer]) -> usize {
    driver.put_chain(request);
    let mem = driver.mem.clone();
    driver.device.pause().unwrap();
    driver.offer(0);
    let before = contents(driver);
    mem.iter()
        .for_each(|region| region.deref().bitmap().begin(region.len() as usize));
    driver.device.resume();
    driver.wait_used();
    driver.device.pause().unwrap();
    let noted: Vec<Vec<u64>> = mem
        .iter()
        .map(|region| region.deref().bitmap().end())
        .collect();
    let mut changed = 0;
    for (region, (before, after)) in before.iter().zip(contents(driver)).enumerate() {
        let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
        for (page, _) in pages.filter(|(_, (before, after))| before != after) {
            let is_noted = noted[region][page / 64] & 1 << (page % 64) != 0;
            assert!(is_noted, "page {page:#x} of region {region}");
            changed += 1;
        }
    }
    driver.device.resume();
    changed
}

#[test]
fn what_a_disk_reads_its_status_and_its_rings_are_noted() {
    let temp = image(1 << 20);
    std::fs::write(temp.as_path(), vec![0x5a; 1 << 20]).unwrap();
    let mut driver = Driver::started(disk(&temp));
    driver.put_header(VIRTIO_BLK_T_IN, 0);
    driver.put_bytes(STATUS, &[0xff]);
    let request = [
        (HEADER, 16, false),
        (DATA + 100, 5 * 4096, true),
        (SEAM - 4096, 2 * 4096, true),
        (STATUS, 1, true),
    ];
    // Six pages, two, the status and the used ring.
    assert!(noted(&mut driver, &request) >= 10);
    driver.put_header(VIRTIO_BLK_T_GET_ID, 0);
    assert_eq!(
        noted(
            &mut driver,
            &[(HEADER, 16, false), (DATA, 20, true), (STATUS, 1, true)]
        ),
        2
    );
}

#[test]
fn random_bytes_are_noted() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    // Three pages and the used ring.
    assert_eq!(noted(&mut driver, &[(DATA + 8, 2 * 4096, true)]), 4);
    let at = GuestAddress(DATA + 2 * 4096);
    assert_ne!(driver.mem.read_obj::<u64>(at).unwrap(), 0);
}
