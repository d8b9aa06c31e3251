//! Writes record batches: records go one after the other into one buffer, as they lie in Kafka's log, and the header is
//! put before them when the batch ends. Nothing is allocated for a record, and no byte is moved after it was written.
//!
//! ```text
//! a record: length of all that follows | attributes, 0 | timestamp delta | offset delta
//!           key length, or -1 | key | value length, or -1 | value
//!           number of headers | { name length | name | value length, or -1 | value }
//! ```
//! All numbers but the attributes, one byte, are zigzag varints. Timestamps are relative to the first record's. The
//! header is drawn at [`crate::Header`].
//!
//! Invariants:
//! - The buffer is empty, or it is room for the header and then `count` whole records, `count > 0`.
//! - A batch, its header included, is at most as large as each push to it allowed, and [`BATCH_BYTES_MAX`].
//! - What is handed out holds at most twice the memory of its length, however large the buffer was; and a writer without a
//!   record holds none.

mod compress;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes};

pub use self::compress::{Codec, UnknownCodec};
use crate::header::TRANSACTIONAL;
use crate::write::{put_header, seal};
use crate::{HEADER_LEN, Header};

/// A batch says its length, and a record its place, in 32 bits with a sign.
pub const BATCH_BYTES_MAX: usize = i32::MAX as usize;

/// The broker's to say.
const NO_LEADER_EPOCH: i32 = -1;

/// Their number.
const NO_HEADERS: &[u8] = &[0];

/// A record's length, attributes, two deltas and length of the key, each as long as it can be.
const HEAD_LEN_MAX: usize = 5 + 1 + 10 + 5 + 5;

/// Builds one batch at a time. There is one for each partition, so it keeps nothing from batch to batch but how large the
/// last one was.
#[derive(Default)]
pub struct Writer {
    /// Room for the header, and the records.
    batch: Vec<u8>,
    count: i32,
    /// Of the first record, ms since 1970.
    base_timestamp: i64,
    max_timestamp: i64,
    /// Bytes of the last batch, before compression, and to spare: one like it does not have to grow.
    expected: usize,
}

/// Whose batch it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// As the coordinator gave it, or -1.
    pub id: i64,
    /// As the coordinator gave it, or -1.
    pub epoch: i16,
    /// Sequence number of the batch's first record in its partition, or -1.
    pub base_sequence: i32,
    pub is_transactional: bool,
}

/// A record that is too large even for a batch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record takes a batch of {bytes} bytes, which is more than a batch may have")]
pub struct TooLarge {
    /// Of the batch with this record only, uncompressed.
    pub bytes: usize,
}

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Appends a record. False, and nothing is changed, if the batch has no room for it: it is to be finished first.
    ///
    /// Headers are as a record holds them: their number, a varint, then names and values. Nothing at all stands for none.
    /// They are copied without being looked at: a broker refuses the whole batch if they are malformed.
    ///
    /// `bytes_max` bounds the batch before compression, its header included. A batch has no room either for a timestamp
    /// (ms since 1970) that 64 bits cannot tell relative to its first one.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[u8],
        bytes_max: usize,
    ) -> Result<bool, TooLarge> {
        let bytes_max = bytes_max.min(BATCH_BYTES_MAX);
        let headers = if headers.is_empty() { NO_HEADERS } else { headers };
        // All but the deltas. Alone, they are 0: a byte each.
        let rest = 1 + nullable_len(key) + nullable_len(value) + headers.len();
        let alone = HEADER_LEN + with_length(rest + 2);
        if alone > bytes_max {
            return Err(TooLarge { bytes: alone });
        }
        let Some(timestamp_delta) = self.timestamp_delta(timestamp_ms) else { return Ok(false) };
        let offset_delta = i64::from(self.count);
        let length = rest + varint_len(timestamp_delta) + varint_len(offset_delta);
        let end = self.batch.len().max(HEADER_LEN) + with_length(length);
        if end > bytes_max {
            return Ok(false);
        }
        if self.is_empty() {
            self.begin(timestamp_ms);
        }

        let mut head = [0; HEAD_LEN_MAX];
        let mut free = &mut head[..];
        put_varint(&mut free, length as i64);
        free.put_i8(0);
        put_varint(&mut free, timestamp_delta);
        put_varint(&mut free, offset_delta);
        put_varint(&mut free, key.map_or(-1, |key| key.len() as i64));
        let head_len = HEAD_LEN_MAX - free.len();
        self.batch.extend_from_slice(&head[..head_len]);
        self.batch.extend_from_slice(key.unwrap_or_default());
        put_nullable(&mut self.batch, value);
        self.batch.extend_from_slice(headers);
        debug_assert_eq!(self.batch.len(), end, "a record is as long as its length says");

        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        Ok(true)
    }

    /// Records in the batch.
    pub fn len(&self) -> usize {
        self.count.cast_unsigned() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch before compression, its header included; 0 without a record.
    pub fn bytes(&self) -> usize {
        self.batch.len()
    }

    /// Forgets the records.
    pub fn clear(&mut self) {
        self.batch = Vec::new();
        self.count = 0;
    }

    /// Ends the batch and hands it out; no bytes without a record. The next push begins another.
    ///
    /// Records stay uncompressed where `codec` makes them no smaller. `level` is Kafka's `compression.level`, which means
    /// something else to every codec: what is outside of a codec's range counts as the nearest level, -1 as none.
    pub fn finish(&mut self, producer: Producer, codec: Codec, level: Option<i32>) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        self.expected = self.batch.len() + self.batch.len() / 8;
        let compressed = compress::compress(codec, level, &self.batch);
        let codec = if compressed.is_some() { codec } else { Codec::None };
        let mut batch = compressed.unwrap_or_else(|| std::mem::take(&mut self.batch));
        let size = batch.len();
        put_header(&mut &mut batch[..HEADER_LEN], &self.header(producer, codec), size);
        seal(&mut batch);
        self.clear();
        if batch.len() < batch.capacity() / 2 {
            // The one before it was larger.
            batch.shrink_to_fit();
        }
        Bytes::from(batch)
    }

    fn begin(&mut self, timestamp_ms: i64) {
        self.batch.reserve(self.expected);
        self.batch.resize(HEADER_LEN, 0);
        self.base_timestamp = timestamp_ms;
        self.max_timestamp = timestamp_ms;
    }

    /// None where 64 bits do not hold it, which cannot be in a batch that only begins.
    fn timestamp_delta(&self, timestamp_ms: i64) -> Option<i64> {
        if self.is_empty() { Some(0) } else { timestamp_ms.checked_sub(self.base_timestamp) }
    }

    fn header(&self, producer: Producer, codec: Codec) -> Header {
        Header {
            base_offset: 0, // The broker's to say.
            length: 0,
            leader_epoch: NO_LEADER_EPOCH,
            attributes: codec.number() | if producer.is_transactional { TRANSACTIONAL } else { 0 },
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            count: self.count,
            crc: 0,
        }
    }
}

/// A length (-1 for null) and that many bytes.
pub(crate) fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |bytes| bytes.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// What [`put_nullable`] takes.
fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| with_length(bytes.len()))
}

/// Bytes of so many with their length before them.
fn with_length(length: usize) -> usize {
    varint_len(length as i64) + length
}

/// A zigzag varint.
pub(crate) fn put_varint(out: &mut impl BufMut, value: i64) {
    let mut bits = zigzag(value);
    while bits >= 0x80 {
        out.put_u8(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.put_u8(bits as u8);
}

/// What [`put_varint`] takes: a byte for every seven bits, and one for 0.
fn varint_len(value: i64) -> usize {
    let bits = u64::BITS - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Small numbers of either sign as small numbers without one.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}
