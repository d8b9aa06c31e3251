//! Which partition a record goes to. Others count on it that a key lies where it always lay: whatever hashes here hashes
//! as librdkafka does, bit for bit, and `murmur2*` as Java does as well.
//!
//! | partitioner | hash | null key | empty key |
//! |---|---|---|---|
//! | `murmur2_random` | murmur2, as Java's | anywhere | hashed |
//! | `murmur2` | murmur2, as Java's | as an empty one | hashed |
//! | `consistent_random` | CRC-32 | anywhere | anywhere |
//! | `consistent` | CRC-32 | as an empty one | hashed |
//! | `fnv1a_random` | FNV-1a, as Sarama's | anywhere | hashed |
//! | `fnv1a` | FNV-1a, as Sarama's | as an empty one | hashed |
//! | `random` | none: all keys go anywhere | anywhere | anywhere |
//!
//! "Anywhere" is one partition for a while, which the caller chooses: records that were strewn over all partitions would
//! make as many small batches.

use std::str::FromStr;

/// The values of `kafka.partitioner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    Murmur2Random,
    Murmur2,
    ConsistentRandom,
    Consistent,
    Fnv1aRandom,
    Fnv1a,
    Random,
}

impl FromStr for Partitioner {
    type Err = String;

    fn from_str(name: &str) -> Result<Partitioner, String> {
        match name {
            "murmur2_random" => Ok(Partitioner::Murmur2Random),
            "murmur2" => Ok(Partitioner::Murmur2),
            "consistent_random" => Ok(Partitioner::ConsistentRandom),
            "consistent" => Ok(Partitioner::Consistent),
            "fnv1a_random" => Ok(Partitioner::Fnv1aRandom),
            "fnv1a" => Ok(Partitioner::Fnv1a),
            "random" => Ok(Partitioner::Random),
            _ => Err(format!(
                "kafka.partitioner is `{name}`: it must be murmur2_random, murmur2, consistent_random, consistent, \
                 fnv1a_random, fnv1a or random"
            )),
        }
    }
}

impl Partitioner {
    /// The partition for a key, of so many; fewer than one count as one.
    ///
    /// `sticky` says where "anywhere" is: a partition, or any other number, which chooses one. It should be another one
    /// for each batch or commit.
    pub fn partition(self, key: Option<&[u8]>, partitions: i32, sticky: i32) -> i32 {
        let partitions = partitions.max(1);
        let bytes = key.unwrap_or_default();
        let hash = match (self, key) {
            (Partitioner::Random, _)
            | (Partitioner::Murmur2Random | Partitioner::Fnv1aRandom, None)
            | (Partitioner::ConsistentRandom, None | Some([])) => return sticky.rem_euclid(partitions),
            // Java makes it positive by taking the sign off, not by negating.
            (Partitioner::Murmur2Random | Partitioner::Murmur2, _) => murmur2(bytes) & 0x7fff_ffff,
            (Partitioner::ConsistentRandom | Partitioner::Consistent, _) => crc32(bytes),
            (Partitioner::Fnv1aRandom | Partitioner::Fnv1a, _) => fnv1a(bytes),
        };
        (hash % partitions.cast_unsigned()).cast_signed()
    }
}

/// MurmurHash2 of 32 bits with Kafka's seed.
fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const FACTOR: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        word ^= word >> 24;
        hash = hash.wrapping_mul(FACTOR) ^ word.wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(FACTOR);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

/// CRC-32 as zlib has it, bit by bit: keys are short, and few configurations ask for it.
fn crc32(key: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut crc = u32::MAX;
    for byte in key {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !crc
}

/// FNV-1a of 32 bits, read as a number with a sign whose amount counts: so Sarama has it.
fn fnv1a(key: &[u8]) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let hash = key.iter().fold(OFFSET, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME));
    hash.cast_signed().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, Partitioner); 7] = [
        ("murmur2_random", Partitioner::Murmur2Random),
        ("murmur2", Partitioner::Murmur2),
        ("consistent_random", Partitioner::ConsistentRandom),
        ("consistent", Partitioner::Consistent),
        ("fnv1a_random", Partitioner::Fnv1aRandom),
        ("fnv1a", Partitioner::Fnv1a),
        ("random", Partitioner::Random),
    ];

    /// Key, murmur2 as Java has it, FNV-1a as Go has it: from librdkafka 2.12.1, `unittest_murmur2` in rdmurmur2.c and
    /// `unittest_fnv1a` in rdfnv1a.c.
    const HASHES: [(&str, u32, u32); 11] = [
        ("kafka", 0xd067cf64, 0xd33c4e1),
        ("giberish123456789", 0x8f552b0c, 0x77a58295),
        ("1234", 0x9fc97b14, 0x23bdd03),
        ("234", 0xe7c009ca, 0x2dea3cd2),
        ("34", 0x873930da, 0x740fa83e),
        ("4", 0x5a4b5ca1, 0x310ca263),
        ("PreAmbleWillBeRemoved,ThePrePartThatIs", 0x78424f1c, 0x65cbd69c),
        ("reAmbleWillBeRemoved,ThePrePartThatIs", 0x4a62b377, 0x6e49c79a),
        ("eAmbleWillBeRemoved,ThePrePartThatIs", 0xe0e4e09e, 0x69eed356),
        ("AmbleWillBeRemoved,ThePrePartThatIs", 0x62b8b43f, 0x6abcc023),
        ("", 0x106e08d9, 0x7ee3623b),
    ];

    const PARTITIONS: i32 = 17;
    const STICKY: i32 = 11;

    /// Key, and its hash by CRC-32, murmur2 and FNV-1a before the remainder is taken: from librdkafka 2.12.1,
    /// `do_test_partitioners` in tests/0048-partitioner.c.
    const KEYS: [(Option<&str>, u32, u32, u32); 5] = [
        (None, 0, 0x106e08d9, 0x7ee3623b),
        (Some(""), 0, 0x106e08d9, 0x7ee3623b),
        (Some("23456"), 0xb1b451d7, 0x058d780f, 0x27e6f469),
        (Some("this is another string with more length to it perhaps"), 0xb0150df7, 0x4f7703da, 0x155e3e5f),
        (Some("hejsan"), 0xd077037e, 0x5ec19395, 0x17b1e27a),
    ];

    #[test]
    fn hashes_are_those_of_java_and_go() {
        for (key, expected_murmur2, expected_fnv1a) in HASHES {
            assert_eq!(murmur2(key.as_bytes()), expected_murmur2, "{key}");
            assert_eq!(fnv1a(key.as_bytes()), expected_fnv1a, "{key}");
        }
        // The check value that catalogues of CRCs give for this one.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn keys_go_where_librdkafka_sends_them() {
        for (key, crc32, murmur2, fnv1a) in KEYS {
            let to = |hash: u32| (hash % PARTITIONS.cast_unsigned()).cast_signed();
            let unless = |is_anywhere: bool, hash| if is_anywhere { STICKY } else { to(hash) };
            let expected = [
                unless(key.is_none(), murmur2),
                to(murmur2),
                unless(key.unwrap_or_default().is_empty(), crc32),
                to(crc32),
                unless(key.is_none(), fnv1a),
                to(fnv1a),
                STICKY,
            ];
            for ((name, partitioner), expected) in ALL.into_iter().zip(expected) {
                let partition = partitioner.partition(key.map(str::as_bytes), PARTITIONS, STICKY);
                assert_eq!(partition, expected, "{key:?} by {name}");
            }
        }
    }

    #[test]
    fn every_partition_that_is_named_exists() {
        for (name, partitioner) in ALL {
            for (key, ..) in KEYS {
                for partitions in [i32::MIN, -1, 0, 1, 2, 1000, i32::MAX] {
                    for sticky in [i32::MIN, -1, 0, 5, i32::MAX] {
                        let partition = partitioner.partition(key.map(str::as_bytes), partitions, sticky);
                        assert!((0..partitions.max(1)).contains(&partition), "{partition} by {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_value_of_the_setting_is_known_and_no_other() {
        for (name, partitioner) in ALL {
            assert_eq!(name.parse::<Partitioner>(), Ok(partitioner));
        }
        let refused = "sticky".parse::<Partitioner>().expect_err("is no value of the setting");
        assert!(refused.contains("kafka.partitioner is `sticky`"), "{refused}");
    }
}
