//! The decoders of kernel payloads: a bzImage whose header is right, around bytes that need not be.
//!
//! What the decoders give out and what they take is bounded by what the payload claims, which is bounded in turn; an
//! input that unpacks unpacks to what it claims.

use msr_vmm::boot::unpack;

/// Claims above this make the fuzzer slow, and nothing else: the boot path's bound is tested elsewhere.
const MOST_CLAIMED: u32 = 1 << 20;

/// An image of boot protocol 2.15 with `payload`, whose last four bytes are the size that it claims.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x236, &[1]);
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

/// Unpacks `data` as a payload.
pub fn run(data: &[u8]) {
    let Some(claimed) = data.last_chunk().copied().map(u32::from_le_bytes) else {
        return;
    };
    if claimed > MOST_CLAIMED {
        return;
    }
    match unpack(&bzimage(data)) {
        Ok(elf) => assert_eq!(elf.len(), claimed as usize),
        Err(error) => drop(error.to_string()),
    }
}
