//! How rows of the inbox's topic are packed, many in one record.
//!
//! A record has its price, whatever it holds: with who writes it, the broker, and who restores it (librdkafka and the
//! broker take about a microsecond for each). The topic is not compacted, so no row needs a record of its own. A record
//! has rows of one commit, in the order of their keys.
//!
//! | key | value |
//! |---|---|
//! | `0x08`, number of rows (u16, big endian) | the rows' latest date (i64, little endian); of each row its key and its value, either behind its length: a zigzag varint, -1 = null |
//! | any other: that of a row | of that row, as all were written before rows were packed |
//!
//! The date is for programs of before rows were packed: they take the first bytes of every value for a date, and go
//! by the latest that they have come across.
//!
//! In Kafka: add, never renumber.

use super::keys::{PACK, inbox_date_ms};
use crate::record::Column;
use crate::record::headers::{read_one, write_one};

/// Bytes of a record's value; a row that alone has more is a record's only one.
const BYTES_MAX: usize = 16 << 10;
const ROWS_MAX: u16 = 500;
/// The most that the two lengths of a row take.
const LENGTHS_BYTES: usize = 10;
/// What a record's value begins with.
const DATE_BYTES: usize = size_of::<i64>();

/// Why a record's rows cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its rows are not laid out as its key says")]
pub struct MalformedPack;

/// Key and value; null = deleted.
pub type Row<'a> = (&'a [u8], Option<&'a [u8]>);

/// Records of packed rows.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    pub keys: Column,
    pub values: Column,
    /// In all of them.
    pub rows: u64,
}

/// Packs rows in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Packer {
    packed: Packed,
    /// Value of the record that is being filled: room for its date, and its rows.
    open: Vec<u8>,
    open_rows: u16,
    /// The latest of them.
    open_date_ms: Option<i64>,
}

impl Packer {
    /// With room for so many bytes of rows; none of it is taken for 0.
    pub fn with_capacity(bytes: usize) -> Packer {
        let values = Column::with_capacity(bytes.div_ceil(BYTES_MAX), bytes);
        let packed = Packed { values, ..Packed::default() };
        Packer { packed, open: Vec::with_capacity(bytes.min(BYTES_MAX)), ..Packer::default() }
    }

    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        let bytes = self.open.len() + LENGTHS_BYTES + key.len() + value.map_or(0, <[u8]>::len);
        if self.open_rows == ROWS_MAX || bytes > BYTES_MAX {
            self.close();
        }
        if self.open_rows == 0 {
            self.open.extend_from_slice(&[0; DATE_BYTES]);
        }
        write_one(&mut self.open, key, value);
        self.open_rows += 1;
        self.open_date_ms = self.open_date_ms.max(value.and_then(inbox_date_ms));
        self.packed.rows += 1;
    }

    pub fn finish(mut self) -> Packed {
        self.close();
        self.packed
    }

    fn close(&mut self) {
        if self.open_rows > 0 {
            let date_ms = self.open_date_ms.unwrap_or(i64::MIN);
            self.open[..DATE_BYTES].copy_from_slice(&date_ms.to_le_bytes());
            let [high, low] = self.open_rows.to_be_bytes();
            self.packed.keys.push(Some(&[PACK, high, low]));
            self.packed.values.push(Some(&self.open));
        }
        self.open.clear();
        (self.open_rows, self.open_date_ms) = (0, None);
    }
}

/// The rows of a record of the inbox's topic, all of which have been looked at.
pub fn unpack<'a>(key: &'a [u8], value: Option<&'a [u8]>) -> Result<Rows<'a>, MalformedPack> {
    let Some((&PACK, count)) = key.split_first() else {
        return Ok(Rows { alone: Some((key, value)), packed: &[] });
    };
    let count: [u8; 2] = count.try_into().map_err(|_| MalformedPack)?;
    let (_date, packed) = value.and_then(<[u8]>::split_first_chunk::<DATE_BYTES>).ok_or(MalformedPack)?;
    let count = u16::from_be_bytes(count);
    // Nobody writes a record of no rows, and a reader that counts rows would take any number of them.
    if count == 0 {
        return Err(MalformedPack);
    }
    let mut rest = packed;
    for _ in 0..count {
        read_one(&mut rest).map_err(|_| MalformedPack)?;
    }
    if rest.is_empty() { Ok(Rows { alone: None, packed }) } else { Err(MalformedPack) }
}

/// The same of a record whose rows this process has packed itself: there is nothing to check.
pub fn packed_rows(value: Option<&[u8]>) -> Rows<'_> {
    Rows { alone: None, packed: value.and_then(|value| value.get(DATE_BYTES..)).unwrap_or_default() }
}

/// See [`unpack`].
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// The row of a record that is not packed.
    alone: Option<Row<'a>>,
    packed: &'a [u8],
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        // They are well-formed, so what cannot be read is the end.
        self.alone.take().or_else(|| read_one(&mut self.packed).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(rows: &[Row<'_>]) -> Packed {
        let mut packer = Packer::with_capacity(0);
        rows.iter().for_each(|(key, value)| packer.push(key, *value));
        packer.finish()
    }

    fn records(packed: &Packed) -> impl Iterator<Item = Row<'_>> {
        packed.keys.iter().map(Option::unwrap).zip(packed.values.iter())
    }

    #[test]
    fn rows_come_back_in_their_order_with_their_nulls_and_so_do_those_that_were_never_packed() {
        let long = [7u8; 300];
        let rows: [Row<'_>; 4] =
            [(b"\x02a", Some(b"1")), (b"\x02b", None), (b"\x02c", Some(b"")), (b"\x07d", Some(&long))];
        let packed = packed(&rows);
        assert_eq!((packed.keys.len(), packed.rows), (1, 4));
        let (key, value) = records(&packed).next().unwrap();
        assert_eq!(key, [PACK, 0, 4]);
        assert_eq!(unpack(key, value).unwrap().collect::<Vec<_>>(), rows);
        assert_eq!(packed_rows(value).collect::<Vec<_>>(), rows);
        for row in rows {
            assert_eq!(unpack(row.0, row.1).unwrap().collect::<Vec<_>>(), [row]);
        }
        assert_eq!(unpack(b"", None).unwrap().collect::<Vec<_>>(), [(&b""[..], None)], "nobody's row");
    }

    #[test]
    fn a_record_is_bounded_in_rows_and_bytes_and_only_a_row_alone_exceeds_them() {
        let small: Vec<[u8; 2]> = (0..1_001u16).map(u16::to_be_bytes).collect();
        let small: Vec<Row<'_>> = small.iter().map(|key| (&key[..], None)).collect();
        let of_small = packed(&small);
        let read: Vec<Vec<Row<'_>>> =
            records(&of_small).map(|(key, value)| unpack(key, value).unwrap().collect()).collect();
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [500, 500, 1]);
        assert_eq!(read.concat(), small);

        let (large, huge) = ([1u8; 1_000], [2u8; 2 * BYTES_MAX]);
        let row: Row<'_> = (b"k", Some(&large));
        let mut rows = vec![row; 20];
        rows.insert(18, (b"h", Some(&huge)));
        let of_large = packed(&rows);
        let lengths = [16 * 1_004, 2 * 1_004, 2 * BYTES_MAX as i32 + 5, 2 * 1_004];
        assert_eq!(of_large.values.lengths(), lengths.map(|rows| DATE_BYTES as i32 + rows));
        assert_eq!(packed(&[]).keys.len(), 0);
    }

    #[test]
    fn a_record_is_dated_like_the_latest_of_its_rows() {
        let dates: Vec<[u8; 26]> = (0..1_001i64)
            .map(|at| {
                let mut row = [0; 26];
                row[..8].copy_from_slice(&(at ^ 1).to_le_bytes());
                row
            })
            .collect();
        let rows: Vec<Row<'_>> = dates.iter().map(|date| (&b"\x02a"[..], Some(&date[..]))).collect();
        let packed = packed(&rows);
        let dates: Vec<_> = packed.values.iter().map(|value| value.and_then(inbox_date_ms)).collect();
        assert_eq!(dates, [Some(499), Some(999), Some(1_001)]);
    }

    #[test]
    fn nothing_but_the_whole_record_is_taken_for_one() {
        let whole = packed(&[(b"\x02a", Some(b"value")), (b"\x02b", None)]);
        let (key, value) = records(&whole).next().unwrap();
        let value = value.unwrap();
        for end in 0..value.len() {
            assert_eq!(unpack(key, Some(&value[..end])).unwrap_err(), MalformedPack, "its first {end} bytes");
        }
        let longer = [value, &[0]].concat();
        assert!(unpack(key, Some(&longer)).is_err());
        let others: [&[u8]; 6] =
            [&[PACK, 0, 1], &[PACK, 0, 3], &[PACK, 255, 255], &[PACK, 0], &[PACK], &[PACK, 0, 2, 0]];
        let dated = |rows: &[u8]| [&[0; DATE_BYTES][..], rows].concat();
        for other in others {
            assert!(unpack(other, Some(value)).is_err(), "{other:?}");
        }
        assert!(unpack(key, None).is_err());
        assert!(unpack(&[PACK, 0, 1], Some(&dated(&[4, 2, 97, 1]))).is_ok());
        assert!(unpack(&[PACK, 0, 1], Some(&dated(&[1, 1]))).is_err(), "a row without a key");
        assert!(unpack(&[PACK, 0, 1], Some(&dated(&[0xff; 9]))).is_err(), "a length without an end");
        assert!(unpack(&[PACK, 0, 0], Some(&dated(&[]))).is_err(), "no row");
    }
}
