//! Chance that repeats itself: the same seed gives the same, so that a simulated run does, too.
//!
//! Among the configuration, because each pause that is spread is one of it, and whoever waits may not import each other.

use std::time::Duration;

/// Between a half of a pause and all of it, so that what failed together is not tried together.
pub fn spread(pause: Duration, seed: u64) -> Duration {
    pause / 2 + (pause / 2).mul_f64(dice(seed))
}

/// From 0 to 1 (SplitMix64).
pub fn dice(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
