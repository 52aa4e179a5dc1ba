//! Whether an access goes wrong, and how: a function of what is known of it.

use crate::SplitMix64;
use crate::split_mix::fraction;

/// The number that an access draws: a function of its rule, its vCPU and how many accesses came before.
///
/// Each part is mixed in by [`SplitMix64`], which spreads neighbouring numbers over all of them.
pub(super) fn draw(seed: u64, rule: u64, vcpu: u32, access: u64) -> u64 {
    [rule, u64::from(vcpu), access]
        .into_iter()
        .fold(mix(seed), |drawn, part| mix(drawn ^ mix(part)))
}

fn mix(number: u64) -> u64 {
    SplitMix64(number).next()
}

/// Whether a number that was drawn is one of the `probability` that has the access go wrong.
pub(super) fn happens(drawn: u64, probability: f64) -> bool {
    fraction(drawn) < probability
}

/// One of the bits that are set in `bits`, which are not none.
pub(super) fn one_of(bits: u64, drawn: u64) -> u64 {
    // Decided by another number than whether it happens at all.
    let skipped = mix(drawn) % u64::from(bits.count_ones());
    let rest = (0..skipped).fold(bits, |rest, _| rest & (rest - 1));
    rest & rest.wrapping_neg()
}

/// Any value.
pub(super) fn any(drawn: u64) -> u64 {
    mix(!drawn)
}
