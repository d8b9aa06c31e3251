//! Random numbers without a source of chance: a handler that runs a record again draws the same ones.
//!
//! Crates that need randomness (`uuid`, `rand`, `ahash`) ask `getrandom`, which knows no source on
//! `wasm32-unknown-unknown`. `tidemill build` tells it to ask here. The numbers are a function of the
//! record's place in its topic alone, so that a replay after a crash has the effects of the first
//! try. They are unpredictable to nobody: not for keys or secrets.

use std::cell::Cell;

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Begins a record's numbers.
#[inline]
pub(crate) fn begin(input: u16, partition: i32, offset: i64) {
    let place = (u64::from(input) << 48) ^ (u64::from(partition.cast_unsigned()) << 32);
    STATE.set(place.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(offset.cast_unsigned()));
}

#[cfg(any(test, getrandom_backend = "custom"))]
fn fill(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&next().to_le_bytes()[..chunk.len()]);
    }
}

/// The next 64 bits, by SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, 2014), whose output for neighbouring states is unrelated.
#[cfg(any(test, getrandom_backend = "custom"))]
fn next() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What `getrandom` calls when it is built with its custom backend.
///
/// # Safety
/// `bytes` points to `len` writable bytes; they need not be initialised.
#[cfg(getrandom_backend = "custom")]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(bytes: *mut u8, len: usize) -> Result<(), getrandom::Error> {
    // SAFETY: by the caller's contract; written as a whole before a slice of them is made.
    let bytes = unsafe {
        bytes.write_bytes(0, len);
        std::slice::from_raw_parts_mut(bytes, len)
    };
    fill(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(input: u16, partition: i32, offset: i64) -> [u8; 20] {
        begin(input, partition, offset);
        let mut bytes = [0; 20];
        fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_record_draws_the_same_numbers_again_and_its_neighbours_draw_others() {
        let first = drawn(0, 0, 0);
        assert_eq!(drawn(0, 0, 0), first);
        let places = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)];
        let mut seen: Vec<_> = places.iter().map(|&(i, p, o)| drawn(i, p, o)).collect();
        seen.push(first);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }
}
