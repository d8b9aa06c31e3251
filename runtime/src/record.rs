//! Records as they travel: batches of columns, and the positions that name them.
//!
//! Pure values. A batch is one partition's consecutive records; its byte fields are laid end to end
//! in [`Column`]s, so that a batch is a handful of allocations however many records it holds.

pub mod headers;

use std::fmt;

/// A position in a partition: always the **next** record to read, never the last one read.
///
/// "Next" is Kafka's own convention for committed offsets. It makes an empty partition ordinary
/// (`next == end == 0`) where "last" would need a minus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// Records between this position and the end of the log. Saturates, because the end is a
    /// cached hint and may be older than a position that just moved.
    pub fn lag(self, log_end: Offset) -> u64 {
        log_end.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why bytes and lengths do not make a column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    #[error("length {length} of row {row} is below -1")]
    NegativeLength { row: usize, length: i32 },
    #[error("lengths sum to {sum} bytes, but the column holds {bytes}")]
    SumMismatch { sum: u64, bytes: usize },
}

/// The first row that `is_wrong`. Nearly always there is none, so all rows are looked at, without a way
/// out in between and therefore several at a time, before the first is looked for.
pub fn first_wrong<T: Copy>(rows: &[T], is_wrong: impl Fn(T) -> bool) -> Option<usize> {
    let any = rows.iter().fold(false, |any, &row| any | is_wrong(row));
    if any { rows.iter().position(|&row| is_wrong(row)) } else { None }
}

/// Optional byte strings laid end to end; `lengths[i] == -1` is null, as in Kafka.
///
/// Invariant: the non-negative lengths sum to `bytes.len()`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    bytes: Vec<u8>,
    lengths: Vec<i32>,
}

impl Column {
    pub fn with_capacity(rows: usize, bytes: usize) -> Column {
        Column { bytes: Vec::with_capacity(bytes), lengths: Vec::with_capacity(rows) }
    }

    /// Takes columns that came from elsewhere (a guest), after checking the invariant.
    pub fn from_parts(bytes: Vec<u8>, lengths: Vec<i32>) -> Result<Column, ColumnError> {
        if let Some(row) = first_wrong(&lengths, |length| length < -1) {
            return Err(ColumnError::NegativeLength { row, length: lengths[row] });
        }
        // It would take 2^33 of the longest rows to overflow.
        let sum = lengths.iter().fold(0u64, |sum, &length| sum.wrapping_add(length.max(0) as u64));
        if sum != bytes.len() as u64 {
            return Err(ColumnError::SumMismatch { sum, bytes: bytes.len() });
        }
        Ok(Column { bytes, lengths })
    }

    /// Bytes and lengths, to hand on without a copy.
    pub fn into_parts(self) -> (Vec<u8>, Vec<i32>) {
        (self.bytes, self.lengths)
    }

    /// Makes room for so many more rows, and bytes of them all.
    pub fn reserve(&mut self, rows: usize, bytes: usize) {
        self.lengths.reserve(rows);
        self.bytes.reserve(bytes);
    }

    /// Appends a row. A row is at most `i32::MAX` bytes, which Kafka's own limit guarantees.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.lengths.push(-1),
            Some(value) => {
                self.lengths.push(i32::try_from(value.len()).expect("a row fits Kafka's int32 length"));
                self.bytes.extend_from_slice(value);
            }
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn lengths(&self) -> &[i32] {
        &self.lengths
    }

    /// Memory of the rows in bytes, what there is room for included.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.lengths.capacity() * size_of::<i32>()
    }

    pub fn iter(&self) -> Rows<'_> {
        Rows { bytes: &self.bytes, lengths: self.lengths.iter() }
    }

    /// One row; walks the lengths, so it is for rare paths only.
    pub fn row(&self, index: usize) -> Option<&[u8]> {
        self.iter().nth(index).flatten()
    }
}

/// The rows of a [`Column`], in order.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    bytes: &'a [u8],
    lengths: std::slice::Iter<'a, i32>,
}

impl<'a> Iterator for Rows<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = *self.lengths.next()?;
        if length < 0 {
            return Some(None);
        }
        let (row, rest) = self.bytes.split_at(length as usize);
        self.bytes = rest;
        Some(Some(row))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.lengths.size_hint()
    }
}

impl ExactSizeIterator for Rows<'_> {}

/// A partition of one of a deployment's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputPartition {
    /// Index into the deployment's inputs.
    pub input: u16,
    /// Kafka's partition number, which is also the task's number.
    pub partition: i32,
}

/// Consecutive records of one input partition, in offset order. Offsets may have gaps (compaction,
/// transaction markers).
///
/// Invariant: every column has `offsets.len()` rows, `headers` excepted, which has none unless the
/// handler asked for headers.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Index into the deployment's inputs.
    pub input: u16,
    pub partition: i32,
    pub offsets: Vec<i64>,
    /// Milliseconds since the epoch; -1 = none.
    pub timestamps: Vec<i64>,
    pub keys: Column,
    pub values: Column,
    /// Kafka's own encoding of the headers of a record.
    pub headers: Column,
    /// What tells repetitions apart; filled in by a task whose inbox has ids, otherwise it has no rows.
    pub ids: Column,
    /// Its number in the sequence of its key; filled in by a task whose inbox has sequences, otherwise empty.
    pub numbers: Vec<Option<u64>>,
}

impl Batch {
    /// Records.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Bytes of keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.keys.bytes().len() + self.values.bytes().len() + self.headers.bytes().len()
    }

    /// The position after the last record; `None` for an empty batch.
    pub fn next(&self) -> Option<Offset> {
        self.offsets.last().map(|&last| Offset(last as u64 + 1))
    }

    pub fn input_partition(&self) -> InputPartition {
        InputPartition { input: self.input, partition: self.partition }
    }

    /// A batch of these rows, which rise; copies.
    pub fn pick(&self, rows: &[usize]) -> Batch {
        let take = |column: &Column| {
            let mut out = Column::default();
            let mut wanted = rows.iter().copied().peekable();
            for (row, value) in column.iter().enumerate() {
                if wanted.next_if_eq(&row).is_some() {
                    out.push(value);
                }
            }
            out
        };
        Batch {
            input: self.input,
            partition: self.partition,
            offsets: rows.iter().map(|&row| self.offsets[row]).collect(),
            timestamps: rows.iter().map(|&row| self.timestamps[row]).collect(),
            keys: take(&self.keys),
            values: take(&self.values),
            headers: take(&self.headers),
            ids: take(&self.ids),
            numbers: rows.iter().filter_map(|&row| self.numbers.get(row).copied()).collect(),
        }
    }

    /// A batch of the records in `rows`; copies, so it is for rare paths (replay after a trap).
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Batch {
        let take = |column: &Column| {
            let mut out = Column::default();
            column.iter().skip(rows.start).take(rows.len()).for_each(|row| out.push(row));
            out
        };
        Batch {
            input: self.input,
            partition: self.partition,
            offsets: self.offsets[rows.clone()].to_vec(),
            timestamps: self.timestamps[rows.clone()].to_vec(),
            keys: take(&self.keys),
            values: take(&self.values),
            headers: take(&self.headers),
            ids: take(&self.ids),
            numbers: self.numbers.get(rows).unwrap_or_default().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_keeps_nulls_apart_from_empty_rows() {
        let mut column = Column::default();
        for row in [Some(&b"ab"[..]), None, Some(b""), Some(b"c")] {
            column.push(row);
        }
        let rows: Vec<_> = column.iter().collect();
        assert_eq!(rows, [Some(&b"ab"[..]), None, Some(b""), Some(b"c")]);
        assert_eq!(column.row(3), Some(&b"c"[..]));
    }

    #[test]
    fn lying_lengths_do_not_make_a_column() {
        assert_eq!(
            Column::from_parts(vec![1, 2], vec![3]),
            Err(ColumnError::SumMismatch { sum: 3, bytes: 2 })
        );
        assert_eq!(
            Column::from_parts(vec![], vec![0, -2]),
            Err(ColumnError::NegativeLength { row: 1, length: -2 })
        );
        // Large lengths must not wrap around to a plausible sum.
        assert!(Column::from_parts(vec![], vec![i32::MAX; 3]).is_err());
    }

    #[test]
    fn a_slice_of_a_batch_is_a_batch() {
        let mut batch = Batch { offsets: vec![4, 6, 7], timestamps: vec![1, 2, 3], ..Batch::default() };
        for value in ["a", "bb", "ccc"] {
            batch.keys.push(None);
            batch.values.push(Some(value.as_bytes()));
        }
        let one = batch.slice(1..2);
        assert_eq!((one.len(), one.next()), (1, Some(Offset(7))));
        assert_eq!(one.values.row(0), Some(&b"bb"[..]));
        assert!(one.headers.is_empty());
    }
}
