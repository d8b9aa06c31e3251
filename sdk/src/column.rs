//! Columns: optional byte strings laid end to end, as they cross between node and handler.
//!
//! The type is the ABI's own (`bindings`), so that a batch is handed over without a copy.

pub(crate) use crate::bindings::tidemill::handler::types::Column;

/// Marks a null row.
const NULL: i32 = -1;

impl Column {
    pub(crate) fn new() -> Column {
        Column { bytes: Vec::new(), lengths: Vec::new() }
    }

    /// So many null rows.
    pub(crate) fn nulls(rows: usize) -> Column {
        Column { bytes: Vec::new(), lengths: vec![NULL; rows] }
    }

    /// Gives a null row a value; every row after it is still null.
    pub(crate) fn set(&mut self, row: usize, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.lengths[row] = value.len() as i32;
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: Option<&[u8]>) {
        if let Some(row) = row {
            self.bytes.extend_from_slice(row);
        }
        self.lengths.push(row.map_or(NULL, |row| row.len() as i32));
    }

    /// Closes a row whose bytes were appended to `self.bytes` from `start` on.
    pub(crate) fn close_row(&mut self, start: usize, present: bool) {
        if present {
            self.lengths.push((self.bytes.len() - start) as i32);
        } else {
            self.bytes.truncate(start);
            self.lengths.push(NULL);
        }
    }

    pub(crate) fn truncate(&mut self, mark: ColumnMark) {
        self.bytes.truncate(mark.bytes);
        self.lengths.truncate(mark.rows);
    }

    pub(crate) fn mark(&self) -> ColumnMark {
        ColumnMark { bytes: self.bytes.len(), rows: self.lengths.len() }
    }

    /// The rows from `mark` on.
    pub(crate) fn after(&self, mark: ColumnMark) -> Column {
        Column { bytes: self.bytes[mark.bytes..].to_vec(), lengths: self.lengths[mark.rows..].to_vec() }
    }

    /// Drops the rows before `mark`.
    pub(crate) fn drop_before(&mut self, mark: ColumnMark) {
        self.bytes.drain(..mark.bytes);
        self.lengths.drain(..mark.rows);
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows::of((&self.bytes, &self.lengths))
    }
}

/// A length of a column, to go back to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ColumnMark {
    pub(crate) bytes: usize,
    pub(crate) rows: usize,
}

/// The rows of a column, in order.
pub(crate) struct Rows<'a> {
    bytes: &'a [u8],
    lengths: std::slice::Iter<'a, i32>,
}

impl<'a> Rows<'a> {
    /// Of a column that is lent: its bytes and lengths.
    pub(crate) fn of((bytes, lengths): (&'a [u8], &'a [i32])) -> Rows<'a> {
        Rows { bytes, lengths: lengths.iter() }
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Option<&'a [u8]>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let length = *self.lengths.next()?;
        if length < 0 {
            return Some(None);
        }
        let (row, rest) = self.bytes.split_at(length as usize);
        self.bytes = rest;
        Some(Some(row))
    }
}
