//! Which id comes when: each one to five times, close together, near the end of its window and beyond it.

use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use super::TTL_MS;

/// First occurrences are spread over so many TTLs; repetitions come later.
const SPAN_TTLS: i64 = 12;
/// Everything lies so far in the past that no record is ahead of any clock.
const AGO_TTLS: i64 = 40;
const TIMES_MAX: u8 = 5;
const KEYS: u32 = 4_000;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// Where it stands in the input, by the time it was meant to be sent; ms from the beginning.
    at_ms: u32,
    pub id: u32,
    /// Counted from 0 for each id.
    pub time: u8,
    /// Its time stamp is so much older than its place.
    late_ms: u32,
}

impl Event {
    /// Its place is what the clock of its producer says, unless it is late.
    pub fn timestamp_ms(&self, began_ms: i64) -> i64 {
        began_ms + i64::from(self.at_ms) - i64::from(self.late_ms)
    }
}

/// Every record of a round, in order: `2 * ids` of them.
pub fn events(seed: u64, ids: u32) -> Vec<Event> {
    let mut rng = Rng::with_seed(seed);
    let mut events = Vec::with_capacity(2 * ids as usize);
    for (id, times) in (0..).zip(times(&mut rng, ids)) {
        // Ids with a number that rises are met in its order, as a database's sequence gives them.
        let mut at_ms = i64::from(id) * SPAN_TTLS * TTL_MS / i64::from(ids.max(1));
        for time in 0..times {
            let late_ms = if rng.u8(..10) == 0 { rng.u32(..TTL_MS as u32 / 2) } else { 0 };
            events.push(Event { at_ms: at_ms as u32, id, time, late_ms: late_ms.min(at_ms as u32) });
            at_ms += gap_ms(&mut rng);
        }
    }
    events.sort_unstable();
    events
}

/// How often each id comes: 1 to 5 times, twice on average.
fn times(rng: &mut Rng, ids: u32) -> Vec<u8> {
    let mut times: Vec<u8> = (0..ids)
        .map(|_| match rng.u8(..100) {
            0..48 => 1,
            48..72 => 2,
            72..86 => 3,
            86..94 => 4,
            _ => TIMES_MAX,
        })
        .collect();
    let mut sum: i64 = times.iter().map(|&times| i64::from(times)).sum();
    while sum != 2 * i64::from(ids) {
        let times = &mut times[rng.usize(..ids as usize)];
        let step = if sum < 2 * i64::from(ids) { 1 } else { -1 };
        let changed = *times as i8 + step;
        if (1..=TIMES_MAX as i8).contains(&changed) {
            *times = changed as u8;
            sum += i64::from(step);
        }
    }
    times
}

/// From one occurrence of an id to the next.
fn gap_ms(rng: &mut Rng) -> i64 {
    let ttl = |rng: &mut Rng, from: f64, to: f64| (TTL_MS as f64 * (from + rng.f64() * (to - from))) as i64;
    match rng.u8(..100) {
        0..60 => ttl(rng, 0.0, 0.02),
        60..85 => ttl(rng, 0.02, 0.8),
        85..92 => ttl(rng, 0.97, 1.03),
        _ => ttl(rng, 1.05, 1.8),
    }
}

/// The time of the first record of a round that is about to begin; ms since the epoch.
pub fn begins_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64);
    now - AGO_TTLS * TTL_MS
}

/// As it is in the records: half of the ids rise with time, and half are as random as a UUID.
pub fn id_text(id: u32) -> String {
    match id % 2 {
        0 => format!("order-{id:010}"),
        _ => format!("{:016x}-{id:08x}", u64::from(id).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
    }
}

/// Repetitions have the key of the first, so that they meet.
pub fn key_text(id: u32) -> String {
    format!("k{}", id.wrapping_mul(0x9E37_79B1) % KEYS)
}

/// The value of a record.
pub fn value_text(event: &Event) -> String {
    format!("{}.{}", event.id, event.time)
}

/// Id and time of a value.
pub fn parse_value(value: &[u8]) -> Option<(u32, u8)> {
    let (id, time) = std::str::from_utf8(value).ok()?.split_once('.')?;
    Some((id.parse().ok()?, time.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_comes_one_to_five_times_and_twice_on_average() {
        let events = events(7, 10_000);
        assert_eq!(events.len(), 20_000);
        let mut times = vec![0u8; 10_000];
        for event in &events {
            // In their order, so that the first is the first.
            assert_eq!(event.time, times[event.id as usize]);
            times[event.id as usize] += 1;
        }
        assert!(times.iter().all(|times| (1..=TIMES_MAX).contains(times)));
        assert_eq!(events, self::events(7, 10_000));
        assert_eq!(parse_value(value_text(&events[0]).as_bytes()), Some((events[0].id, 0)));
    }
}
