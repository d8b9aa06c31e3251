//! The header of a batch: parsed, checked to be consistent, and by its CRC.

use crate::BatchError;

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// Bytes before and including the length field; the length counts what comes after it.
pub const LENGTH_END: usize = 12;
/// First byte covered by the CRC.
pub(crate) const CRC_END: usize = 21;
/// The format that is meant here, as the header says it.
pub(crate) const MAGIC: u8 = 2;

pub(crate) const CODEC_MASK: i16 = 0x07;
pub(crate) const LOG_APPEND_TIME: i16 = 0x08;
pub(crate) const TRANSACTIONAL: i16 = 0x10;
pub(crate) const CONTROL: i16 = 0x20;

/// The producer id of a batch without one.
pub const NO_PRODUCER_ID: i64 = -1;
/// The base sequence of a batch without one.
pub const NO_SEQUENCE: i32 = -1;

/// The fields of a batch header, checked to be consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Offset of the first record, as assigned by the broker.
    pub base_offset: i64,
    /// Bytes after the length field.
    pub length: usize,
    /// Of the leader that appended the batch; not covered by the CRC.
    pub leader_epoch: i32,
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
    /// Checksum as read; computed anew by [`assemble`](crate::assemble).
    pub crc: u32,
}

impl Header {
    /// Reads a header. Needs [`HEADER_LEN`] bytes; the rest of the batch need not be there.
    pub fn parse(bytes: &[u8]) -> Result<Header, BatchError> {
        let bytes: &[u8; HEADER_LEN] =
            bytes.get(..HEADER_LEN).and_then(|b| b.try_into().ok()).ok_or(BatchError::Short)?;
        if bytes[16] != MAGIC {
            return Err(BatchError::Magic);
        }
        let length = i32_at(bytes, 8);
        let header = Header {
            base_offset: i64_at(bytes, 0),
            length: usize::try_from(length).map_err(|_| BatchError::Header)?,
            leader_epoch: i32_at(bytes, 12),
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

    /// The first of the batches in `bytes`, checked; none if it is not all there, as the last one of an answer may be,
    /// which a broker ends by bytes.
    pub fn first(bytes: &[u8]) -> Result<Option<Header>, BatchError> {
        match Header::check(bytes) {
            Ok(header) => Ok(Some(header)),
            // Of a batch that is shorter than a header the rest would be waited for in vain.
            Err(BatchError::Short) if bytes.get(16).is_some_and(|&magic| magic != MAGIC) => {
                Err(BatchError::Magic)
            }
            Err(BatchError::Short)
                if bytes.len() >= LENGTH_END && i32_at(bytes, 8) < (HEADER_LEN - LENGTH_END) as i32 =>
            {
                Err(BatchError::Header)
            }
            Err(BatchError::Short) => Ok(None),
            Err(error) => Err(error),
        }
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

pub(crate) fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker;
    use crate::testing::NewBatch;

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

    #[test]
    fn every_field_is_read_from_where_it_lies() {
        let mut batch = NewBatch::at(1 << 40).put("k", "v").gap(6);
        batch.header.leader_epoch = 9;
        batch.header.base_timestamp = -1;
        batch.header.max_timestamp = 1 << 41;
        batch.header.producer_id = 1 << 42;
        batch.header.producer_epoch = 5;
        batch.header.base_sequence = 11;
        let bytes = batch.build();
        let header = Header::check(&bytes).expect("valid");
        let (length, crc) = (bytes.len() - LENGTH_END, header.crc);
        assert_eq!(header, Header { length, crc, ..batch.header });
        assert_eq!((header.last_offset(), header.next_offset()), ((1 << 40) + 6, (1 << 40) + 7));
    }

    #[test]
    fn attributes_say_the_codec_and_the_kind() {
        let mut header = NewBatch::at(0).put("k", "v").header;
        let flags = |header: Header| {
            (header.codec(), header.log_append_time(), header.transactional(), header.control())
        };
        for (attributes, told) in [
            (0x00, (0, false, false, false)),
            (0x04, (4, false, false, false)),
            (0x08, (0, true, false, false)),
            (0x10, (0, false, true, false)),
            (0x20, (0, false, false, true)),
            (0x3f, (7, true, true, true)),
        ] {
            header.attributes = attributes;
            assert_eq!(flags(header), told, "{attributes:#x}");
        }
    }

    #[test]
    fn what_is_missing_of_the_last_batch_is_told_from_what_is_wrong_with_it() {
        let batch = NewBatch::at(3).put("k", "v").build();
        assert_eq!(Header::first(&batch).expect("valid").map(|header| header.base_offset), Some(3));
        for length in 0..batch.len() {
            assert_eq!(Header::first(&batch[..length]), Ok(None), "the first {length} bytes");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = batch.to_vec();
            bytes[at] = byte;
            bytes
        };
        let wrong = [
            (with(16, 1), 17, BatchError::Magic),
            (with(8, 0xff), 12, BatchError::Header),
            (with(11, 40), 52, BatchError::Header),
            (with(60, 7), batch.len(), BatchError::Header),
            (with(batch.len() - 1, 7), batch.len(), BatchError::Crc),
        ];
        for (bytes, length, error) in wrong {
            assert_eq!(Header::first(&bytes[..length]), Err(error));
        }
    }
}
