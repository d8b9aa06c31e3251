//! Chance that repeats itself: the same seed gives the same, so that a simulated run does, too.
//!
//! Among the configuration, because each pause that is spread is one of it, and whoever waits may not import each other.

use std::time::Duration;

/// Between a half of a pause and all of it, so that what failed together is not tried together.
pub fn spread(pause: Duration, seed: u64) -> Duration {
    pause / 2 + (pause / 2).mul_f64(dice(seed))
}

/// The seed of a text (FNV-1a): the standard library promises its own hashes to be the same in no other release.
pub fn seed_of(text: &str) -> u64 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    text.bytes().fold(0xCBF2_9CE4_8422_2325, add)
}

/// From 0 to 1 (SplitMix64).
pub fn dice(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
