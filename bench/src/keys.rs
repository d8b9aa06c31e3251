//! Which keys the records of a workload have. The same seed makes the same keys on every machine.

use crate::load::KEY_BYTES;

/// How keys follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keys {
    /// Each its own.
    New,
    /// So many, the most frequent first, the next half as often, and so on (Zipf's law, exponent 1).
    Zipf(u32),
    /// So many, each as likely as any other, once each of them has come.
    Uniform(u32),
    /// New ones, of which so many in a hundred come again within the next thousand records.
    Repeating { percent: u64 },
}

/// How far back a repeated key lies at most, in records.
const REPEAT_WITHIN: u64 = 1_000;
const SEED: u64 = 0x7469_6465_6d69_6c6c;

impl Keys {
    /// Records until each key has come, so that whoever keeps something for each has all of it; 0 where no number of
    /// them sees to that.
    pub fn until_all(self) -> u64 {
        match self {
            Keys::Uniform(count) => count.into(),
            Keys::New | Keys::Zipf(_) | Keys::Repeating { .. } => 0,
        }
    }

    /// How many of so many records, which follow so many others from the beginning of a stream, have a key that ends in
    /// the digit 0.
    pub fn ending_in_0(self, before: u64, records: u64) -> u64 {
        let mut stream = Stream::new(self);
        let numbers = (0..before + records).map(|_| stream.number());
        numbers.skip(before as usize).filter(|number| number % 10 == 0).count() as u64
    }

    /// What keys so many records have that follow so many others from the beginning of a stream.
    pub fn distinct(self, before: u64, records: u64) -> Distinct {
        let mut stream = Stream::new(self);
        let (mut earlier, mut now) = (Numbers::default(), Numbers::default());
        for _ in 0..before {
            earlier.add(stream.number());
        }
        let mut distinct = Distinct { keys: 0, new: 0 };
        for _ in 0..records {
            let number = stream.number();
            if now.add(number) {
                distinct.keys += 1;
                distinct.new += u64::from(earlier.add(number));
            }
        }
        distinct
    }
}

/// Keys of some records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distinct {
    pub keys: u64,
    /// Of them, those that no record before had.
    pub new: u64,
}

/// Numbers of keys that have come: each is below the number of records, or of all keys.
#[derive(Default)]
struct Numbers(Vec<bool>);

impl Numbers {
    /// True if it had not come before.
    fn add(&mut self, number: u64) -> bool {
        let at = number as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, false);
        }
        !std::mem::replace(&mut self.0[at], true)
    }
}

/// An endless stream of keys.
pub struct Stream {
    keys: Keys,
    random: Random,
    /// Records so far.
    count: u64,
    /// Zipf only: the share of all records that the first keys have, up to and including each.
    shares: Vec<f64>,
}

impl Stream {
    pub fn new(keys: Keys) -> Stream {
        let shares = if let Keys::Zipf(count) = keys { zipf(count) } else { Vec::new() };
        Stream { keys, random: Random::seeded(), count: 0, shares }
    }

    pub fn key(&mut self) -> [u8; KEY_BYTES] {
        padded(self.number())
    }

    fn number(&mut self) -> u64 {
        let number = self.count;
        self.count += 1;
        match self.keys {
            Keys::New => number,
            Keys::Uniform(count) if number < u64::from(count) => visited(number, count.into()),
            Keys::Uniform(count) => self.random.below(count.into()),
            Keys::Zipf(_) => {
                let at = self.random.fraction();
                self.shares.partition_point(|&share| share < at).min(self.shares.len() - 1) as u64
            }
            Keys::Repeating { percent } => {
                if self.random.below(100) < percent {
                    number.saturating_sub(1 + self.random.below(REPEAT_WITHIN))
                } else {
                    number
                }
            }
        }
    }
}

fn zipf(count: u32) -> Vec<f64> {
    let total: f64 = (1..=count).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut sum = 0.0;
    let share = |rank: u32| {
        sum += 1.0 / f64::from(rank) / total;
        sum
    };
    (1..=count).map(share).collect()
}

/// The key, of so many, that comes in this step of a walk which visits all of them before one comes again, as long as
/// its stride shares no factor with their number.
pub fn visited(step: u64, keys: u64) -> u64 {
    const STRIDE: u64 = 7_919;
    step.wrapping_mul(STRIDE) % keys
}

/// A number as a key.
pub fn padded(number: u64) -> [u8; KEY_BYTES] {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// SplitMix64: small, seeded, and good enough to choose keys with.
pub struct Random(u64);

impl Random {
    /// The same numbers each time.
    pub fn seeded() -> Random {
        Random(SEED)
    }

    /// Fills it with capital letters.
    pub fn letters(&mut self, text: &mut [u8]) {
        for eight in text.chunks_mut(8) {
            for (letter, bits) in eight.iter_mut().zip(self.bits().to_le_bytes()) {
                *letter = b'A' + bits % 26;
            }
        }
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn counted(keys: Keys, records: usize) -> Vec<u64> {
        let mut stream = Stream::new(keys);
        let mut seen: HashMap<[u8; KEY_BYTES], u64> = HashMap::new();
        for _ in 0..records {
            *seen.entry(stream.key()).or_default() += 1;
        }
        let mut counts: Vec<u64> = seen.into_values().collect();
        counts.sort_by_key(|&count| std::cmp::Reverse(count));
        counts
    }

    #[test]
    fn the_first_of_zipfs_keys_comes_twice_as_often_as_the_second() {
        let counts = counted(Keys::Zipf(1_000), 100_000);
        let ratio = counts[0] as f64 / counts[1] as f64;
        assert!((1.8..2.2).contains(&ratio), "{counts:?}");
    }

    #[test]
    fn of_uniform_keys_each_comes_once_before_chance_decides() {
        let keys = Keys::Uniform(1_000);
        assert_eq!(counted(keys, keys.until_all() as usize), [1; 1_000]);
        let counts = counted(keys, 11_000);
        assert!(counts[0] > 11 && counts.len() == 1_000, "{counts:?}");
    }

    #[test]
    fn as_many_ids_repeat_as_are_asked_for() {
        let repeated = 100_000 - counted(Keys::Repeating { percent: 2 }, 100_000).len();
        assert!((1_800..2_200).contains(&repeated), "{repeated}");
    }

    #[test]
    fn keys_are_told_by_how_many_there_are_and_how_many_had_not_come_before() {
        assert_eq!(Keys::New.distinct(1_000, 500), Distinct { keys: 500, new: 500 });
        assert_eq!(Keys::Uniform(1_000).distinct(1_000, 1), Distinct { keys: 1, new: 0 });
        assert_eq!(Keys::Uniform(1_000).distinct(400, 600), Distinct { keys: 600, new: 600 });
        let keys = Keys::Repeating { percent: 2 };
        let all = counted(keys, 100_000).len() as u64;
        let [first, then] = [keys.distinct(0, 60_000), keys.distinct(60_000, 40_000)];
        assert_eq!(first.new + then.new, all);
        assert!(then.new < then.keys, "a repeated one of before: {then:?}");
    }

    #[test]
    fn keys_that_end_in_0_are_counted_from_where_a_stream_has_come_to() {
        assert_eq!(Keys::New.ending_in_0(0, 11), 2);
        assert_eq!(Keys::New.ending_in_0(1, 10), 1);
        assert_eq!(Keys::New.ending_in_0(11, 9), 0);
    }

    #[test]
    fn letters_fill_a_text_of_any_length_and_are_others_the_next_time() {
        let (mut random, mut text) = (Random::seeded(), vec![0; 1_021]);
        random.letters(&mut text);
        assert!(text.iter().all(u8::is_ascii_uppercase), "{text:?}");
        let before = text.clone();
        random.letters(&mut text);
        assert_ne!(before, text);
    }

    #[test]
    fn a_key_is_a_padded_number() {
        assert_eq!(&padded(1_234), b"0000000000001234");
    }
}
