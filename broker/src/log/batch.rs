//! Kafka's record batch, format v2: the bytes that producers send and consumers get.
//!
//! The broker never decodes a batch on its way: it checks it, writes the offset into the header,
//! and stores the bytes. Records are walked only to validate and to compact them.
//!
//! ```text
//! offset size field                      offset size field
//!      0    8 base offset                    27    8 base timestamp, ms
//!      8    4 length of all that follows     35    8 max timestamp, ms
//!     12    4 partition leader epoch         43    8 producer id, or -1
//!     16    1 magic, 2                       51    2 producer epoch
//!     17    4 CRC-32C of all that follows    53    4 base sequence
//!     21    2 attributes                     57    4 number of records
//!     23    4 last offset delta              61      records
//! ```
//! Base offset and leader epoch lie before the CRC, so that a broker can set them without
//! computing it again.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec;

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// Bytes before and including the length field; the length counts what comes after it.
pub const LENGTH_END: usize = 12;
/// First byte covered by the CRC.
const CRC_END: usize = 21;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// The producer id of a batch without one.
pub const NO_PRODUCER_ID: i64 = -1;
/// The base sequence of a batch without one.
pub const NO_SEQUENCE: i32 = -1;

/// Why a batch is refused. What the client sees is decided in `core::produce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header or its length field says.
    #[error("the batch is cut short")]
    Short,
    /// A message format older than v2, which Kafka 4 does not take either.
    #[error("the message format is not v2")]
    Magic,
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Crc,
    /// Header fields contradict each other.
    #[error("the batch header is inconsistent")]
    Header,
    /// A record cannot be parsed.
    #[error("a record is malformed")]
    Record,
    /// The records cannot be decompressed, or need more memory than the limit.
    #[error("the records cannot be decompressed")]
    Compression,
}

/// The fields of a batch header, checked to be consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Offset of the first record, as assigned by this broker.
    pub base_offset: i64,
    /// Bytes after the length field.
    pub length: usize,
    /// Codec, timestamp type and kind.
    pub attributes: i16,
    /// Offset of the last record relative to the base.
    pub last_offset_delta: i32,
    /// Timestamp that the records' deltas count from, ms since 1970.
    pub base_timestamp: i64,
    /// Largest timestamp, ms since 1970.
    pub max_timestamp: i64,
    /// Producer, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// Epoch of the producer.
    pub producer_epoch: i16,
    /// Sequence number of the first record, or [`NO_SEQUENCE`].
    pub base_sequence: i32,
    /// Number of records; less than `last_offset_delta + 1` after compaction.
    pub count: i32,
    /// Checksum as read; computed anew by [`assemble`].
    pub(super) crc: u32,
}

impl Header {
    /// Reads a header. Needs [`HEADER_LEN`] bytes; the rest of the batch need not be there.
    pub fn parse(bytes: &[u8]) -> Result<Header, BatchError> {
        let bytes: &[u8; HEADER_LEN] =
            bytes.get(..HEADER_LEN).and_then(|b| b.try_into().ok()).ok_or(BatchError::Short)?;
        if bytes[16] != 2 {
            return Err(BatchError::Magic);
        }
        let length = i32_at(bytes, 8);
        let header = Header {
            base_offset: i64_at(bytes, 0),
            length: usize::try_from(length).map_err(|_| BatchError::Header)?,
            attributes: i16_at(bytes, 21),
            last_offset_delta: i32_at(bytes, 23),
            base_timestamp: i64_at(bytes, 27),
            max_timestamp: i64_at(bytes, 35),
            producer_id: i64_at(bytes, 43),
            producer_epoch: i16_at(bytes, 51),
            base_sequence: i32_at(bytes, 53),
            count: i32_at(bytes, 57),
            crc: i32_at(bytes, 17).cast_unsigned(),
        };
        let consistent = header.length >= HEADER_LEN - LENGTH_END
            && header.last_offset_delta >= 0
            && header.count >= 0
            && i64::from(header.count) <= i64::from(header.last_offset_delta) + 1
            && header.base_offset.checked_add(i64::from(header.last_offset_delta) + 1).is_some();
        if consistent { Ok(header) } else { Err(BatchError::Header) }
    }

    /// Reads the header of a whole batch and checks its CRC. `bytes` may go on after the batch.
    pub fn check(bytes: &[u8]) -> Result<Header, BatchError> {
        let header = Header::parse(bytes)?;
        let covered = bytes.get(CRC_END..header.size()).ok_or(BatchError::Short)?;
        if crc32c::crc32c(covered) == header.crc { Ok(header) } else { Err(BatchError::Crc) }
    }

    /// Bytes of the whole batch.
    pub fn size(&self) -> usize {
        self.length + LENGTH_END
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// Offset after the last record.
    pub fn next_offset(&self) -> i64 {
        self.last_offset() + 1
    }

    /// Compression codec, 0 (none) to 4 (zstd); larger values are not defined.
    pub fn codec(&self) -> i16 {
        self.attributes & CODEC_MASK
    }

    /// Whether readers must take `max_timestamp` as the time of every record.
    pub fn log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    pub fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker and not data.
    pub fn control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Sequence number of the last record; sequences wrap from `i32::MAX` to 0.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(last % (i64::from(i32::MAX) + 1)).unwrap_or(0)
    }
}

/// Sets base offset and leader epoch (always 0 here). The CRC stays valid.
pub fn assign_offset(batch: &mut [u8], base_offset: i64) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&0i32.to_be_bytes());
}

/// Turns the batch to `LogAppendTime` with one time for all its records.
pub fn set_append_time(batch: &mut [u8], timestamp_ms: i64) {
    let attributes = i16_at(batch, 21) | LOG_APPEND_TIME;
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[35..43].copy_from_slice(&timestamp_ms.to_be_bytes());
    seal(batch);
}

/// Computes the CRC of a batch whose other fields are final.
fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_END..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// The end-of-transaction marker, byte for byte as Kafka writes it.
///
/// The key is {version 0, type 0 abort | 1 commit}, the value {version 0, coordinator epoch}.
pub fn marker(producer_id: i64, producer_epoch: i16, commit: bool, timestamp_ms: i64) -> BytesMut {
    let mut record = BytesMut::with_capacity(16);
    record.put_u8(0); // Attributes of the record.
    record.put_u8(0); // Timestamp delta.
    record.put_u8(0); // Offset delta.
    record.put_u8(zigzag_small(4));
    record.put_i16(0);
    record.put_i16(i16::from(commit));
    record.put_u8(zigzag_small(6));
    record.put_i16(0);
    record.put_i32(0);
    record.put_u8(0); // Headers.
    let mut records = BytesMut::with_capacity(record.len() + 1);
    records.put_u8(zigzag_small(record.len() as u8));
    records.put_slice(&record);
    let header = Header {
        base_offset: 0,
        length: 0,
        attributes: TRANSACTIONAL | CONTROL,
        last_offset_delta: 0,
        base_timestamp: timestamp_ms,
        max_timestamp: timestamp_ms,
        producer_id,
        producer_epoch,
        base_sequence: NO_SEQUENCE,
        count: 1,
        crc: 0,
    };
    assemble(&header, &records)
}

/// Writes a batch from header fields and uncompressed records; length and CRC are computed.
pub fn assemble(header: &Header, records: &[u8]) -> BytesMut {
    let size = HEADER_LEN + records.len();
    let mut batch = BytesMut::with_capacity(size);
    batch.put_i64(header.base_offset);
    batch.put_u32((size - LENGTH_END) as u32);
    batch.put_i32(0);
    batch.put_i8(2);
    batch.put_u32(0);
    batch.put_i16(header.attributes);
    batch.put_i32(header.last_offset_delta);
    batch.put_i64(header.base_timestamp);
    batch.put_i64(header.max_timestamp);
    batch.put_i64(header.producer_id);
    batch.put_i16(header.producer_epoch);
    batch.put_i32(header.base_sequence);
    batch.put_i32(header.count);
    batch.put_slice(records);
    seal(&mut batch);
    batch
}

/// Clears the codec bits, for a batch whose records were decompressed.
pub fn uncompressed(attributes: i16) -> i16 {
    attributes & !CODEC_MASK
}

/// The records of a batch, decompressed if necessary.
pub fn records_of(header: &Header, batch: &Bytes) -> Result<Bytes, BatchError> {
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
    /// Whether the value is null, which makes the record a tombstone in a compacted topic.
    pub tombstone: bool,
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

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let record = take_record(&mut self.left);
        if record.is_none() {
            self.left = &[];
        }
        Some(record.ok_or(BatchError::Record))
    }
}

fn take_record<'a>(left: &mut &'a [u8]) -> Option<RecordView<'a>> {
    let whole = *left;
    let length = usize::try_from(varint(left)?).ok()?;
    let prefix = whole.len() - left.len();
    let raw = whole.get(..prefix.checked_add(length)?)?;
    *left = &whole[raw.len()..];

    let mut body = &raw[prefix..];
    take(&mut body, 1)?;
    let timestamp_delta = varint(&mut body)?;
    let offset_delta = varint(&mut body)?;
    let key = nullable(&mut body)?;
    let value = nullable(&mut body)?;
    let headers = varint(&mut body)?;
    for _ in 0..headers {
        nullable(&mut body)??;
        nullable(&mut body)?;
    }
    let consistent = headers >= 0 && body.is_empty();
    consistent.then_some(RecordView { raw, offset_delta, timestamp_delta, key, tombstone: value.is_none() })
}

/// A length (-1 for null) and that many bytes.
fn nullable<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match varint(bytes)? {
        -1 => Some(None),
        length => Some(Some(take(bytes, usize::try_from(length).ok()?)?)),
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

/// A zigzag variable-length integer of at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    None
}

/// Zigzag of a small non-negative number, which takes one byte.
fn zigzag_small(value: u8) -> u8 {
    value << 1
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    i64::from_be_bytes(out)
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    i32::from_be_bytes(out)
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_laid_out_as_kafka_lays_it_out() {
        let batch = marker(77, 3, true, 1000);
        let header = Header::check(&batch).expect("valid");
        assert!(header.control() && header.transactional());
        assert_eq!((header.producer_id, header.producer_epoch, header.count), (77, 3, 1));
        assert_eq!(batch.len(), 78);
        let records: Vec<_> = walk(&batch[HEADER_LEN..]).collect::<Result<_, _>>().expect("one record");
        assert_eq!(records[0].key, Some(&[0, 0, 0, 1][..]));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_found() {
        let batch = marker(77, 3, false, 1000);
        for at in 21..batch.len() {
            let mut broken = batch.clone();
            broken[at] ^= 0x40;
            assert_eq!(
                Header::check(&broken).err(),
                Some(BatchError::Crc)
                    .filter(|_| { Header::parse(&broken).is_ok() })
                    .or(Header::parse(&broken).err()),
                "byte {at}"
            );
        }
        for length in 0..batch.len() {
            assert_eq!(Header::check(&batch[..length]), Err(BatchError::Short));
        }
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut header = Header::parse(&marker(1, 0, true, 0)).expect("valid");
        header.base_sequence = i32::MAX;
        header.last_offset_delta = 1;
        assert_eq!(header.last_sequence(), 0);
    }
}
