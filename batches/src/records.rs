//! The records of a batch, one after the other. Nothing is copied and nothing reserved.
//!
//! ```text
//! length | attributes 1 | timestamp delta | offset delta | key | value | count, headers
//!        '--------------------------- length bytes -----------------------------------'
//! ```
//! Numbers but the attributes are zigzag varints; key, value, and the name and value of each header are a length and
//! that many bytes, -1 for null. A length never reaches beyond the record that it stands in.

use bytes::Bytes;

use crate::{BatchError, HEADER_LEN, Header, codec};

/// A record has no fewer bytes: its seven numbers.
pub const RECORD_BYTES_MIN: usize = 7;

/// A marker says that its transaction was aborted.
pub const ABORT: i16 = 0;
/// A marker says that its transaction was committed.
pub const COMMIT: i16 = 1;

/// A varint has at most as many bytes.
const VARINT_BYTES_MAX: usize = 10;

/// The records of a whole batch, decompressed if necessary and otherwise a part of `batch`.
pub fn records_of(header: &Header, batch: &Bytes) -> Result<Bytes, BatchError> {
    if !(HEADER_LEN..=batch.len()).contains(&header.size()) {
        return Err(BatchError::Short);
    }
    let body = batch.slice(HEADER_LEN..header.size());
    match header.codec() {
        0 => Ok(body),
        codec => codec::decompress(codec, &body),
    }
}

/// One record as it lies in its batch.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// The record with its length prefix, to be copied as it is.
    pub raw: &'a [u8],
    /// Offset relative to the batch's base.
    pub offset_delta: i64,
    /// Timestamp relative to the batch's base, ms.
    pub timestamp_delta: i64,
    /// Key, or none.
    pub key: Option<&'a [u8]>,
    /// Value, or none.
    pub value: Option<&'a [u8]>,
    /// The number of headers and the headers, as they lie there; none if there are no headers.
    pub headers: Option<&'a [u8]>,
}

impl RecordView<'_> {
    /// Whether it deletes its key in a compacted topic.
    pub fn is_tombstone(&self) -> bool {
        self.value.is_none()
    }
}

/// Walks uncompressed records. Ends after an error.
pub struct Records<'a> {
    left: &'a [u8],
}

/// Walks the records in `bytes`, as given by [`records_of`].
pub fn walk(bytes: &[u8]) -> Records<'_> {
    Records { left: bytes }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let record = take_record(&mut self.left);
        if record.is_err() {
            self.left = &[];
        }
        Some(record)
    }
}

/// What a control batch says, by the key of its first record, {version, type}: [`ABORT`], [`COMMIT`], or what may come
/// to be defined. None if compaction has left no record of it.
pub fn control_type(records: &[u8]) -> Result<Option<i16>, BatchError> {
    let Some(record) = walk(records).next() else { return Ok(None) };
    match record?.key {
        Some([_, _, high, low, ..]) => Ok(Some(i16::from_be_bytes([*high, *low]))),
        _ => Err(BatchError::Record),
    }
}

/// Takes the record that `left` begins with. After an error `left` is what it was.
#[inline]
pub fn take_record<'a>(left: &mut &'a [u8]) -> Result<RecordView<'a>, BatchError> {
    parse(left).ok_or(BatchError::Record)
}

#[inline]
fn parse<'a>(left: &mut &'a [u8]) -> Option<RecordView<'a>> {
    let whole = *left;
    let mut rest = whole;
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    let (mut body, rest) = rest.split_at_checked(length)?;
    let raw = &whole[..whole.len() - rest.len()];

    take(&mut body, 1)?;
    let timestamp_delta = varint(&mut body)?;
    let offset_delta = varint(&mut body)?;
    let key = nullable(&mut body)?;
    let value = nullable(&mut body)?;
    let headers = body;
    let count = varint(&mut body)?;
    for _ in 0..count {
        nullable(&mut body)??;
        nullable(&mut body)?;
    }
    if count < 0 || !body.is_empty() {
        return None;
    }
    *left = rest;
    let headers = (count > 0).then_some(headers);
    Some(RecordView { raw, offset_delta, timestamp_delta, key, value, headers })
}

/// A length (-1 for null) and that many bytes.
#[inline]
fn nullable<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match varint(bytes)? {
        -1 => Some(None),
        length => Some(Some(take(bytes, usize::try_from(length).ok()?)?)),
    }
}

#[inline]
fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

/// A zigzag variable-length integer. Most have one byte or two: deltas, and lengths below 8 KiB.
#[inline]
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let all = *bytes;
    let (&first, rest) = all.split_first()?;
    if first < 0x80 {
        *bytes = rest;
        return Some(unzigzag(u64::from(first)));
    }
    match rest.split_first() {
        Some((&second, rest)) if second < 0x80 => {
            *bytes = rest;
            Some(unzigzag(u64::from(first & 0x7f) | (u64::from(second) << 7)))
        }
        _ => long_varint(bytes),
    }
}

#[inline(never)]
fn long_varint(bytes: &mut &[u8]) -> Option<i64> {
    let all = *bytes;
    let mut value = 0;
    for (at, byte) in all.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *bytes = &all[at + 1..];
            return Some(unzigzag(value));
        }
    }
    None
}

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NewBatch, NewRecord};
    use crate::writer::put_varint;

    /// A key, a null value, headers, a long value, and a delta of three bytes.
    fn mixed() -> NewBatch {
        let long = vec![b'x'; 9_000];
        let headers = [("name", Some(&b"value"[..])), ("null", None), ("", Some(b""))];
        NewBatch::at(0)
            .push(&NewRecord { key: Some(b"k"), ..NewRecord::default() })
            .push(&NewRecord { value: Some(&long), headers: &headers, ..NewRecord::default() })
            .push(&NewRecord {
                key: Some(b""),
                value: Some(b""),
                timestamp_delta: -70_000,
                ..NewRecord::default()
            })
    }

    #[test]
    fn a_varint_of_any_length_is_what_was_written() {
        let edges =
            (0..63).flat_map(|bit| [1i64 << bit, (1i64 << bit) - 1, -(1i64 << bit), -(1i64 << bit) - 1]);
        for value in edges.chain([i64::MIN, i64::MAX]) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let length = bytes.len();
            bytes.push(7);
            let mut left = &bytes[..];
            assert_eq!((varint(&mut left), left), (Some(value), &[7][..]));
            for end in 0..length {
                assert_eq!(varint(&mut &bytes[..end]), None, "{end} bytes of {value}");
            }
        }
        assert_eq!(varint(&mut &[0xff; 11][..]), None);
    }

    #[test]
    fn a_record_is_read_field_by_field() {
        let batch = mixed();
        let records: Vec<_> = walk(&batch.records).collect::<Result<_, _>>().expect("valid");
        let [first, second, third] = records[..] else { panic!("three records") };
        assert_eq!((first.key, first.value, first.headers), (Some(&b"k"[..]), None, None));
        assert!(first.is_tombstone() && !second.is_tombstone());
        assert_eq!((second.key, second.value.map(<[u8]>::len)), (None, Some(9_000)));
        let headers = b"\x06\x08name\x0avalue\x08null\x01\x00\x00";
        assert_eq!(second.headers, Some(&headers[..]), "the count and the headers, as Kafka encodes them");
        assert_eq!((third.key, third.value), (Some(&b""[..]), Some(&b""[..])));
        assert_eq!((third.offset_delta, third.timestamp_delta), (2, -70_000));
        assert_eq!([first.raw, second.raw, third.raw].concat(), batch.records);
    }

    #[test]
    fn a_record_that_is_cut_short_or_longer_than_it_says_is_none() {
        let batch = NewBatch::at(0).put("key", "value");
        for end in 0..batch.records.len() {
            let mut left = &batch.records[..end];
            assert_eq!(take_record(&mut left).err(), Some(BatchError::Record), "{end} bytes");
            assert_eq!(left.len(), end, "nothing was taken");
            // The same with a length that fits: what is inside does not.
            let mut relabelled = batch.records[..end].to_vec();
            if let Some(length) = relabelled.first_mut() {
                *length = (end as u8 - 1) << 1;
            }
            assert!(take_record(&mut &relabelled[..]).is_err(), "{end} bytes that say so");
        }
        let mut longer = batch.records.clone();
        longer[0] += 2;
        longer.push(0);
        assert!(take_record(&mut &longer[..]).is_err());
    }

    #[test]
    fn a_length_or_a_count_that_lies_is_none() {
        // Attributes, deltas, then: key, value, number of headers.
        let lies: [&[i64]; 6] = [
            &[i64::MAX, -1, 0],
            &[-2, -1, 0],
            &[-1, i64::MIN, 0],
            &[-1, -1, i64::MAX],
            &[-1, -1, -1],
            &[-1, -1, 1, -1, 0],
        ];
        for lie in lies {
            let mut body = vec![0, 0, 0];
            lie.iter().for_each(|&number| put_varint(&mut body, number));
            let mut record = Vec::new();
            put_varint(&mut record, body.len() as i64);
            record.extend(body);
            assert!(take_record(&mut &record[..]).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn no_flipped_bit_makes_a_walk_panic_or_go_on_after_an_error() {
        let batch = mixed();
        let start = batch.records.len().min(100);
        for (at, bit) in (0..start).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = batch.records.clone();
            flipped[at] ^= 1 << bit;
            let walked: Vec<_> = walk(&flipped).collect();
            let errors = walked.iter().filter(|record| record.is_err()).count();
            assert!(errors <= 1 && walked.iter().rev().skip(1).all(Result::is_ok), "byte {at}, bit {bit}");
        }
    }

    #[test]
    fn a_control_batch_without_a_type_is_malformed_and_one_without_a_record_says_nothing() {
        fn with(key: Option<&[u8]>) -> NewBatch {
            NewBatch::at(0).push(&NewRecord { key, ..NewRecord::default() })
        }
        assert_eq!(control_type(&[]), Ok(None));
        assert_eq!(control_type(&with(Some(&[0, 0, 0, 0])).records), Ok(Some(ABORT)));
        assert_eq!(control_type(&with(Some(&[0, 1, 0, 9, 1])).records), Ok(Some(9)));
        assert_eq!(control_type(&with(Some(&[0, 0, 0])).records), Err(BatchError::Record));
        assert_eq!(control_type(&with(None).records), Err(BatchError::Record));
    }

    #[test]
    fn records_are_a_part_of_their_batch_unless_they_are_compressed() {
        let batch = mixed();
        let bytes = batch.build();
        let header = Header::check(&bytes).expect("valid");
        let records = records_of(&header, &bytes).expect("opens");
        assert_eq!(records.as_ptr(), bytes[HEADER_LEN..].as_ptr());
        assert_eq!(records_of(&header, &bytes.slice(..bytes.len() - 1)), Err(BatchError::Short));
        for codec in 1..=4 {
            let bytes = batch.clone().codec(codec).build();
            let header = Header::check(&bytes).expect("valid");
            assert_eq!(header.codec(), codec);
            assert_eq!(records_of(&header, &bytes).expect("opens"), batch.records, "codec {codec}");
        }
    }
}
