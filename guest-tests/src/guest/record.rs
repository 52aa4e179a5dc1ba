//! Records that a guest writes to a file one after the other, and of which anyone can tell whether they
//! are all there.

use msr_bus::SplitMix64;

/// The bytes of a record: no whole number of sectors, so that most writes share one with the record
/// before.
pub const RECORD_LEN: usize = 1000;

/// The record of this number, from 0. Records of different numbers differ in almost every byte.
pub fn record(number: u64) -> [u8; RECORD_LEN] {
    // Every seed gives values of its own.
    let mut random = SplitMix64(number);
    let mut bytes = [0; RECORD_LEN];
    for piece in bytes.chunks_mut(8) {
        piece.copy_from_slice(&random.next().to_le_bytes()[..piece.len()]);
    }
    bytes
}

/// How many records at the start of a file's contents are as they were written.
pub fn intact_records(contents: &[u8]) -> u64 {
    let is_intact = |(number, bytes): &(u64, &[u8])| record(*number) == *bytes;
    let records = (0..).zip(contents.chunks_exact(RECORD_LEN));
    records.take_while(is_intact).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_as_far_as_they_are_intact() {
        let mut contents: Vec<u8> = (0..4).flat_map(record).collect();
        assert_eq!(intact_records(&contents), 4);
        assert_eq!(intact_records(&contents[..4 * RECORD_LEN - 1]), 3);
        contents[2 * RECORD_LEN - 1] ^= 1;
        assert_eq!(intact_records(&contents), 1);
        assert_eq!(intact_records(&[]), 0);
    }

    #[test]
    fn a_record_in_the_place_of_another_is_not_intact() {
        let swapped: Vec<u8> = [0, 2, 1].into_iter().flat_map(record).collect();
        assert_eq!(intact_records(&swapped), 1);
    }
}
