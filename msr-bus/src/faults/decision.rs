//! Chance that can be had again.

/// The number that an access draws: a function of its rule, its vCPU and how many accesses came before.
///
/// Each part is mixed in by the finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014), which spreads neighbouring numbers over all of them.
pub(super) fn draw(seed: u64, rule: u64, vcpu: u32, access: u64) -> u64 {
    [rule, u64::from(vcpu), access]
        .into_iter()
        .fold(mix(seed), |drawn, part| mix(drawn ^ mix(part)))
}

fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Whether a number that was drawn is one of the `probability` that has the access go wrong.
pub(super) fn happens(drawn: u64, probability: f64) -> bool {
    // The 53 bits that a double tells apart, from 0 up to but not including 1.
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    ((drawn >> 11) as f64) * STEP < probability
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
