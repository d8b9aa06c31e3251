//! Outputs with `emit: commit`: of what a task emits to them between two commits, the last of each key.
//!
//! ```text
//!   rows       a=1   b=1   a=2   -=x   c=1   a=3      as they come, in columns
//!   replaced    x           x                         they stay where they are, until they are too many
//!   newest     a: 5   b: 1   c: 4                     a hash table; a row without a key is not in it
//!   standing   b=1   -=x   c=1   a=3                  what a seal takes
//! ```
//!
//! Output, key and the partition that was asked for make a key: elsewhere the same bytes are another one.
//!
//! Invariants: `newest` has exactly the rows that have a key and are not replaced, one of each key. Between two
//! calls memory is at most twice what stands, or [`SPARSE_BYTES_MIN`].

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::OutputRule;
use crate::config::deployment::Emit;
use crate::effects::{Emission, Emissions};

/// Up to this much memory, rows that are replaced are left where they are: to move the others costs more.
const SPARSE_BYTES_MIN: usize = 1 << 20;

/// What is known of a row beside its columns.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Of what makes its key; of no meaning without one.
    hash: u64,
    /// Where its key begins among the bytes of all keys.
    key_at: usize,
    is_replaced: bool,
}

/// What a row costs beside its bytes: that of any emission, its place, and its index and control byte in a
/// table that is at most 7/8 full and on average a third less.
const ROW_BYTES: usize = Emissions::ROW_BYTES + size_of::<Place>() + 8;

#[derive(Debug, Default)]
pub(super) struct Latest {
    rows: Emissions,
    /// One for each of the rows.
    places: Vec<Place>,
    newest: HashTable<u32>,
    hasher: DefaultHashBuilder,
    replaced_bytes: usize,
}

impl Latest {
    /// Memory in use.
    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.rows.len() * ROW_BYTES
    }

    /// Keeps the emissions that wait for the commit, and answers the others.
    pub fn keep(&mut self, emissions: &Emissions, outputs: &[OutputRule]) -> Emissions {
        let waits = |row: &Emission<'_>| {
            outputs.get(usize::from(row.output)).is_some_and(|output| output.emit == Emit::Commit)
        };
        let mut others = Emissions::default();
        for row in emissions.rows() {
            if waits(&row) {
                self.push(row);
            } else {
                others.push(row);
            }
        }
        if self.bytes() > SPARSE_BYTES_MIN && self.replaced_bytes > self.bytes() / 2 {
            let standing = self.standing();
            self.clear(0);
            standing.rows().for_each(|row| self.push(row));
        }
        others
    }

    fn push(&mut self, row: Emission<'_>) {
        // Fits: four billion rows are more than any overlay holds.
        let index = self.rows.len() as u32;
        let key_at = self.rows.keys.bytes().len();
        self.rows.push(row);
        let Some(key) = row.key else {
            return self.places.push(Place { hash: 0, key_at, is_replaced: false });
        };
        let hash = self.hasher.hash_one((row.output, row.partition, key));
        self.places.push(Place { hash, key_at, is_replaced: false });
        let Latest { rows, places, newest, replaced_bytes, .. } = self;
        let is_same = |&other: &u32| {
            let other = other as usize;
            let place = places[other];
            let key_end = place.key_at + rows.keys.lengths()[other] as usize;
            place.hash == hash
                && (rows.outputs[other], rows.partitions[other]) == (row.output, row.partition)
                && rows.keys.bytes()[place.key_at..key_end] == *key
        };
        match newest.find_mut(hash, is_same) {
            Some(former) => {
                let former = std::mem::replace(former, index) as usize;
                places[former].is_replaced = true;
                let columns = [&rows.keys, &rows.values, &rows.headers];
                let lengths = columns.map(|column| column.lengths()[former].max(0) as usize);
                *replaced_bytes += lengths.iter().sum::<usize>() + ROW_BYTES;
            }
            None => {
                newest.insert_unique(hash, index, |&other| places[other as usize].hash);
            }
        }
    }

    /// The rows that stand, in order.
    pub fn standing(&self) -> Emissions {
        let mut standing = Emissions::default();
        let rows = self.rows.rows().zip(&self.places).filter(|(_, place)| !place.is_replaced);
        rows.for_each(|(row, _)| standing.push(row));
        standing
    }

    /// Forgets everything. Keeps the memory, unless it is more than `keep_bytes`.
    pub fn clear(&mut self, keep_bytes: usize) {
        if self.bytes() > keep_bytes {
            *self = Latest::default();
            return;
        }
        self.rows.clear();
        self.places.clear();
        self.newest.clear();
        self.replaced_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two that wait for the commit, and one that does not.
    fn outputs() -> [OutputRule; 3] {
        [Emit::Commit, Emit::Commit, Emit::Each].map(|emit| OutputRule { emit, ..OutputRule::default() })
    }

    /// `key=value` to the first output; an empty key is none.
    fn emission(text: &str) -> Emission<'_> {
        let (key, value) = text.split_once('=').unwrap();
        let key = (!key.is_empty()).then_some(key.as_bytes());
        let value = Some(value.as_bytes());
        Emission { source: 0, output: 0, partition: -1, timestamp: 0, key, value, headers: None }
    }

    fn emissions<'a>(rows: impl IntoIterator<Item = Emission<'a>>) -> Emissions {
        let mut all = Emissions::default();
        rows.into_iter().for_each(|row| all.push(row));
        all
    }

    fn keep<'a>(latest: &mut Latest, rows: impl IntoIterator<Item = Emission<'a>>) {
        assert!(latest.keep(&emissions(rows), &outputs()).is_empty());
    }

    fn texts(emissions: &Emissions) -> Vec<String> {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        emissions.rows().map(|row| format!("{}={}", text(row.key), text(row.value))).collect()
    }

    #[test]
    fn of_each_key_the_last_row_stands_in_the_order_of_the_last_rows() {
        let mut latest = Latest::default();
        keep(&mut latest, ["a=1", "b=1", "a=2"].map(emission));
        assert_eq!(texts(&latest.standing()), ["b=1", "a=2"]);
        keep(&mut latest, ["c=1", "b=2", "b=3"].map(emission));
        assert_eq!(texts(&latest.standing()), ["a=2", "c=1", "b=3"]);
    }

    #[test]
    fn a_row_without_a_key_replaces_nothing_and_an_empty_key_is_one() {
        let empty = |value: &'static str| Emission { key: Some(b""), ..emission(value) };
        let mut latest = Latest::default();
        keep(&mut latest, [emission("=1"), empty("=2"), emission("=3"), empty("=4"), emission("=5")]);
        assert_eq!(texts(&latest.standing()), ["=1", "=3", "=4", "=5"]);
    }

    #[test]
    fn a_key_is_another_one_in_another_output_or_partition() {
        let mut latest = Latest::default();
        let to = |output: u16, partition: i32, text| Emission { output, partition, ..emission(text) };
        keep(&mut latest, [to(0, -1, "a=1"), to(0, 0, "a=2"), to(0, 1, "a=3"), to(1, -1, "a=4")]);
        keep(&mut latest, [to(0, 0, "a=5")]);
        assert_eq!(texts(&latest.standing()), ["a=1", "a=3", "a=4", "a=5"]);
        assert_eq!(latest.standing().partitions, [-1, 1, -1, 0]);
    }

    #[test]
    fn everything_of_the_last_row_stands_and_nothing_of_the_former() {
        let mut latest = Latest::default();
        let former = Emission { timestamp: 1, headers: Some(b"h"), ..emission("a=1") };
        let last = Emission { timestamp: 2, value: None, ..emission("a=") };
        keep(&mut latest, [former, last]);
        let standing = latest.standing();
        assert_eq!(standing.rows().collect::<Vec<_>>(), [last], "a tombstone without headers");
    }

    #[test]
    fn what_does_not_wait_is_handed_back_in_its_order() {
        let mut latest = Latest::default();
        let at_once = |text| Emission { output: 2, ..emission(text) };
        let rows = [at_once("a=1"), emission("a=2"), at_once("a=3"), emission("a=4")];
        let others = latest.keep(&emissions(rows), &outputs());
        assert_eq!(texts(&others), ["a=1", "a=3"]);
        assert_eq!(texts(&latest.standing()), ["a=4"]);
    }

    #[test]
    fn what_is_replaced_gives_its_memory_back_and_what_stands_stays() {
        let mut latest = Latest::default();
        // What stands takes a little, then more than may be left to what is replaced.
        for (keys, rounds) in [(100, 1_000), (20_000, 10)] {
            latest.clear(usize::MAX);
            let call = |round: usize| (0..keys).map(move |key| format!("key-{key}=value-{round}-of-{key}"));
            let rows = |round: usize| call(round).collect::<Vec<_>>();
            keep(&mut latest, [emission("=first")]);
            keep(&mut latest, rows(0).iter().map(|text| emission(text)));
            let alone = latest.bytes();
            for round in 1..rounds {
                keep(&mut latest, rows(round).iter().map(|text| emission(text)));
                let bytes = latest.bytes();
                assert!(bytes <= (2 * alone).max(SPARSE_BYTES_MIN), "{bytes} for {alone}");
            }
            let first = std::iter::once("=first".to_owned());
            let expected: Vec<String> = first.chain(call(rounds - 1)).collect();
            assert_eq!(texts(&latest.standing()), expected);
        }
    }

    #[test]
    fn what_is_cleared_neither_stands_nor_is_replaced() {
        for keep_bytes in [0, usize::MAX] {
            let mut latest = Latest::default();
            keep(&mut latest, ["a=1", "b=1", "a=2"].map(emission));
            latest.clear(keep_bytes);
            assert_eq!((latest.bytes(), latest.standing().len()), (0, 0));
            keep(&mut latest, ["b=2", "a=3"].map(emission));
            assert_eq!(texts(&latest.standing()), ["b=2", "a=3"]);
        }
    }
}
