use super::driver::*;
use crate::devices::virtio::entropy::Entropy;

#[test]
fn requests_are_filled_with_bytes_that_differ() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    assert_eq!(
        driver.serve(&[(DATA, 64, true), (SEAM - 32, 64, true)]),
        128
    );
    let (first, second) = (driver.bytes(DATA, 64), driver.bytes(SEAM - 32, 64));
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
    assert_ne!(second[32..], [0; 32]);
}

#[test]
fn one_request_gets_no_more_than_64_kib() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    assert_eq!(driver.serve(&[(DATA, 0x2_0000, true)]), 64 << 10);
    assert_eq!(driver.bytes(DATA + (64 << 10), 16), [0; 16]);
}

#[test]
fn requests_that_make_no_sense_get_nothing() {
    let mut driver = Driver::started(Box::new(Entropy::new(None)));
    assert_eq!(driver.serve(&[(DATA, 16, false)]), 0);
    assert_eq!(driver.serve(&[(DATA, 0, true)]), 0);
    assert_eq!(driver.serve(&[(MEMORY_END - 8, 16, true)]), 0);
    assert_eq!(driver.serve(&[(DATA, 8, true); 20]), 0);
    assert_eq!(driver.serve(&[(DATA, 16, true)]), 16);
}
