//! Rows of a log on their way into a store: collected end to end, so that no row is an allocation of its own, and written in
//! the order of their keys.

use super::sort::last_of_each_key;

/// What a row takes beside its bytes: here, in the order of the keys, and in the batch that is written.
const ROW_BYTES: usize = 64;

/// Key and value; none = the key is deleted.
pub type Row<'a> = (&'a [u8], Option<&'a [u8]>);

/// Rows in the order of their log. Keeps its memory when it is cleared.
#[derive(Debug, Default)]
pub struct Run {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a row lies: its key, and its value behind it.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: usize,
    key: u32,
    /// -1 = null.
    value: i32,
}

impl Run {
    /// Appends a row. Key and value are at most `i32::MAX` bytes, which Kafka's own limit guarantees.
    #[inline]
    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| i32::try_from(bytes.len()).expect("a row fits Kafka's int32 length");
        self.places.push(Place {
            at: self.bytes.len(),
            key: length(key).cast_unsigned(),
            value: value.map_or(-1, length),
        });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
    }

    /// Appends all rows of another run.
    pub fn append(&mut self, rows: &Run) {
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&rows.bytes);
        self.places.extend(rows.places.iter().map(|place| Place { at: base + place.at, ..*place }));
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What the rows take in memory until they are written.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.places.len() * ROW_BYTES
    }

    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.places.iter().map(move |place| self.row(place))
    }

    /// Of rows that have the same key the last, in the order of the keys.
    pub fn last_of_each_key(&self) -> impl Iterator<Item = Row<'_>> {
        let row = move |index: u32| self.row(&self.places[index as usize]);
        last_of_each_key(self.places.len(), |index| row(index).0).into_iter().map(row)
    }

    #[inline]
    fn row(&self, place: &Place) -> Row<'_> {
        let (key, rest) = self.bytes[place.at..].split_at(place.key as usize);
        (key, usize::try_from(place.value).ok().map(|length| &rest[..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rows: &[Row<'_>]) -> Run {
        let mut run = Run::default();
        rows.iter().for_each(|&(key, value)| run.push(key, value));
        run
    }

    #[test]
    fn rows_are_as_they_were_pushed_and_a_deletion_is_no_empty_value() {
        let rows: [Row<'_>; 4] =
            [(b"a", Some(b"one")), (b"", Some(b"")), (b"gone", None), (b"b", Some(b"x"))];
        let mut all = run(&rows[..2]);
        all.append(&run(&rows[2..]));
        all.append(&Run::default());
        assert_eq!(all.iter().collect::<Vec<_>>(), rows);
        assert_eq!((all.len(), all.bytes()), (4, 10 + 4 * ROW_BYTES));
        all.clear();
        assert_eq!((all.is_empty(), all.bytes(), all.iter().count()), (true, 0, 0));
    }

    #[test]
    fn of_each_key_the_last_row_counts_in_the_order_of_keys() {
        let all =
            run(&[(b"b", Some(b"1")), (b"a", Some(b"2")), (b"b", None), (b"a", Some(b"3")), (b"c", None)]);
        let expected: [Row<'_>; 3] = [(b"a", Some(b"3")), (b"b", None), (b"c", None)];
        assert_eq!(all.last_of_each_key().collect::<Vec<_>>(), expected);
        assert_eq!(Run::default().last_of_each_key().count(), 0);
    }
}
