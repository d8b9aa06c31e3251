//! What waits for the commit: a call's emissions as a task keeps them until they are sent.
//!
//! A worker holds as many as it handles between two commits, and as many again of the commit under way, so every
//! byte of a row counts. Of the 51 or so that a count emits, 30 are numbers, and 14 of those say nothing here:
//!
//! | column | bytes a row, as a guest hands it over | here |
//! |---|---|---|
//! | sources | 4 | gone: what failed is left out by now |
//! | outputs | 2 | once, if all rows have the same |
//! | partitions | 4 | once, if all rows have the same |
//! | timestamps | 8 | 8 |
//! | lengths of keys, of values | 4 each | 4 each |
//! | lengths of headers | 4 | gone, if no row has any |

use super::Emissions;
use crate::record::{Column, first_wrong};

/// The emissions of a call, without what nobody asks for any more. Made of [`Emissions`]: columns that stay are
/// moved as they are, the others give their memory back.
///
/// Invariant: every column has as many rows as `timestamps`, `headers` excepted, which has none if all are null.
#[derive(Debug, Clone)]
pub struct Emitted {
    outputs: Alike<u16>,
    partitions: Alike<i32>,
    timestamps: Vec<i64>,
    keys: Column,
    values: Column,
    headers: Column,
}

/// One row of [`Emitted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmittedRow<'a> {
    /// Index into the manifest's outputs.
    pub output: u16,
    /// -1 = by the key's hash.
    pub partition: i32,
    /// Milliseconds since the epoch; -1 = none.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Kafka's header encoding.
    pub headers: Option<&'a [u8]>,
}

impl Emitted {
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Of keys, values and headers, as [`Emissions::bytes`] has it: what is sent.
    pub fn bytes(&self) -> usize {
        self.columns().map(|column| column.bytes().len()).iter().sum()
    }

    /// Memory that is held: its own, and all that its vectors have room for, used or not.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Emitted>()
            + self.outputs.memory_bytes()
            + self.partitions.memory_bytes()
            + self.timestamps.capacity() * size_of::<i64>()
            + self.columns().map(Column::memory_bytes).iter().sum::<usize>()
    }

    fn columns(&self) -> [&Column; 3] {
        [&self.keys, &self.values, &self.headers]
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = EmittedRow<'_>> {
        let (output_of, partition_of) = (self.outputs.by_row(), self.partitions.by_row());
        let mut headers = self.headers.iter();
        let columns = self.timestamps.iter().zip(self.keys.iter()).zip(self.values.iter());
        columns.enumerate().map(move |(row, ((&timestamp, key), value))| {
            let (output, partition) = (output_of(row), partition_of(row));
            EmittedRow { output, partition, timestamp, key, value, headers: headers.next().flatten() }
        })
    }
}

impl From<Emissions> for Emitted {
    fn from(emissions: Emissions) -> Emitted {
        let Emissions { sources, outputs, partitions, timestamps, keys, values, headers } = emissions;
        // Or rows would be lost without a word: they end with the shortest column.
        let lens =
            [outputs.len(), partitions.len(), timestamps.len(), keys.len(), values.len(), headers.len()];
        assert_eq!(lens, [sources.len(); 6], "every column has one row per emission");
        let has_headers = first_wrong(headers.lengths(), |length| length >= 0).is_some();
        Emitted {
            outputs: Alike::new(outputs),
            partitions: Alike::new(partitions),
            timestamps,
            keys,
            values,
            headers: if has_headers { headers } else { Column::default() },
        }
    }
}

/// A column of numbers that are nearly always the same.
#[derive(Debug, Clone)]
enum Alike<T> {
    /// In all rows, of which there is one at least.
    Same(T),
    Each(Vec<T>),
}

impl<T: Copy + PartialEq> Alike<T> {
    fn new(rows: Vec<T>) -> Alike<T> {
        match rows.first().copied() {
            Some(first) if first_wrong(&rows, |row| row != first).is_none() => Alike::Same(first),
            _ => Alike::Each(rows),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Alike::Same(_) => 0,
            Alike::Each(rows) => rows.capacity() * size_of::<T>(),
        }
    }

    /// What a row has. Which of the two it is, is asked here once and of no row: what all have is a slice of one, of
    /// which every row is the first.
    fn by_row(&self) -> impl Fn(usize) -> T {
        let (numbers, mask) = match self {
            Alike::Same(number) => (std::slice::from_ref(number), 0),
            Alike::Each(rows) => (rows.as_slice(), usize::MAX),
        };
        move |row| numbers[row & mask]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Emission;
    use super::*;

    /// The third of a call's rows, say, with a key of one byte and a value of two.
    const ROW: Emission<'static> = Emission {
        source: 2,
        output: 1,
        partition: -1,
        timestamp: 7,
        key: Some(b"k"),
        value: Some(b"vv"),
        headers: None,
    };

    fn emissions(rows: &[Emission<'_>]) -> Emissions {
        let mut all = Emissions::default();
        rows.iter().for_each(|&row| all.push(row));
        all
    }

    fn emitted(rows: &[Emission<'_>]) -> Emitted {
        emissions(rows).into()
    }

    /// All rows are as they came, but for their sources.
    fn assert_kept(rows: &[Emission<'_>]) {
        let (before, after) = (emissions(rows), emitted(rows));
        assert_eq!((after.len(), after.is_empty()), (rows.len(), rows.is_empty()));
        assert_eq!(after.bytes(), before.bytes());
        let expected = rows.iter().map(|&row| {
            let Emission { source: _, output, partition, timestamp, key, value, headers } = row;
            EmittedRow { output, partition, timestamp, key, value, headers }
        });
        assert_eq!(after.rows().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn rows_are_what_they_were_whatever_they_have_in_common() {
        let other_output = Emission { output: 0, ..ROW };
        let other_partition = Emission { partition: 3, ..ROW };
        let later = Emission { timestamp: -1, key: None, value: None, ..ROW };
        let empty = Emission { key: Some(b""), value: Some(b""), ..ROW };
        for rows in [
            &[ROW][..],
            &[ROW, later, empty, ROW],
            &[ROW, ROW, other_output],
            &[other_output, ROW, ROW],
            &[ROW, other_partition, ROW],
            &[ROW, other_partition, other_output, later],
        ] {
            assert_kept(rows);
        }
    }

    #[test]
    fn headers_that_begin_or_end_within_the_rows_stay_with_theirs() {
        let with = Emission { headers: Some(b"\x02\x02ab"), ..ROW };
        let empty = Emission { headers: Some(b""), ..ROW };
        for rows in [&[ROW, ROW, with][..], &[with, ROW, ROW], &[ROW, with, ROW, with], &[ROW, empty]] {
            assert_kept(rows);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        assert_kept(&[]);
        assert_eq!(emitted(&[]).memory_bytes(), size_of::<Emitted>());
    }

    /// The rows without room to spare, as they come from a guest.
    fn exact(rows: &[Emission<'_>]) -> Emissions {
        let mut all = emissions(rows);
        all.outputs.shrink_to_fit();
        all.partitions.shrink_to_fit();
        all.timestamps.shrink_to_fit();
        for column in [&mut all.keys, &mut all.values, &mut all.headers] {
            let (mut bytes, mut lengths) = std::mem::take(column).into_parts();
            bytes.shrink_to_fit();
            lengths.shrink_to_fit();
            *column = Column::from_parts(bytes, lengths).unwrap();
        }
        all
    }

    #[test]
    fn a_row_takes_what_it_has_and_sixteen_bytes_and_more_only_where_rows_differ() {
        let beside = |rows: &[Emission<'_>]| {
            let emitted = Emitted::from(exact(rows));
            emitted.memory_bytes() - size_of::<Emitted>() - emitted.bytes()
        };
        assert_eq!(beside(&[ROW; 100]), 100 * 16);
        let mut rows = [ROW; 100];
        rows[99].output = 0;
        assert_eq!(beside(&rows), 100 * 18);
        rows[98].partition = 0;
        assert_eq!(beside(&rows), 100 * 22);
        rows[97].headers = Some(b"\x00");
        assert_eq!(beside(&rows), 100 * 26);
    }

    #[test]
    fn room_to_spare_is_memory_and_no_byte_that_is_sent() {
        let mut roomy = exact(&[ROW; 10]);
        let tight = Emitted::from(roomy.clone());
        roomy.timestamps.reserve_exact(90);
        roomy.keys.reserve(90, 1000);
        let roomy = Emitted::from(roomy);
        assert_eq!(roomy.bytes(), tight.bytes());
        assert!(roomy.memory_bytes() >= tight.memory_bytes() + 90 * 12 + 1000);
    }

    #[test]
    fn bytes_are_moved_and_not_copied() {
        let emissions = emissions(&[ROW; 10]);
        let (keys, timestamps) = (emissions.keys.bytes().as_ptr(), emissions.timestamps.as_ptr());
        let emitted = Emitted::from(emissions);
        assert_eq!((emitted.keys.bytes().as_ptr(), emitted.timestamps.as_ptr()), (keys, timestamps));
    }

    #[test]
    #[should_panic(expected = "every column has one row per emission")]
    fn a_column_that_lacks_a_row_loses_none_silently() {
        let mut emissions = emissions(&[ROW; 2]);
        emissions.headers = Column::default();
        let _ = Emitted::from(emissions);
    }
}
