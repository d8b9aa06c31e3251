//! Batches for tests, made record by record.

use std::io::Write;

use bytes::Bytes;

use crate::writer::{put_nullable, put_varint};
use crate::{Header, NO_PRODUCER_ID, NO_SEQUENCE, assemble};

/// A record to be appended to a [`NewBatch`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRecord<'a> {
    /// Relative to the batch's base timestamp, ms.
    pub timestamp_delta: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Names and values.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// A batch in the making: at first empty, uncompressed, and of no producer.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its fields as they will be written; length and CRC are computed.
    pub header: Header,
    /// Its records, uncompressed.
    pub records: Vec<u8>,
}

impl NewBatch {
    /// Without records, so far.
    pub fn at(base_offset: i64) -> NewBatch {
        let header = Header {
            base_offset,
            length: 0,
            leader_epoch: 0,
            attributes: 0,
            last_offset_delta: -1,
            base_timestamp: 0,
            max_timestamp: 0,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: -1,
            base_sequence: NO_SEQUENCE,
            count: 0,
            crc: 0,
        };
        NewBatch { header, records: Vec::new() }
    }

    /// Appends a record with a key and a value.
    pub fn put(self, key: &str, value: &str) -> NewBatch {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        self.push(&NewRecord { key, value, ..NewRecord::default() })
    }

    /// Appends a record.
    pub fn push(mut self, record: &NewRecord<'_>) -> NewBatch {
        self.header.last_offset_delta += 1;
        self.header.count += 1;
        let time = self.header.base_timestamp + record.timestamp_delta;
        self.header.max_timestamp = self.header.max_timestamp.max(time);
        let mut body = vec![0];
        put_varint(&mut body, record.timestamp_delta);
        put_varint(&mut body, i64::from(self.header.last_offset_delta));
        put_nullable(&mut body, record.key);
        put_nullable(&mut body, record.value);
        put_varint(&mut body, record.headers.len() as i64);
        for (name, value) in record.headers {
            put_nullable(&mut body, Some(name.as_bytes()));
            put_nullable(&mut body, *value);
        }
        put_varint(&mut self.records, body.len() as i64);
        self.records.extend(body);
        self
    }

    /// Appends offsets without records, as compaction leaves them.
    pub fn gap(mut self, offsets: i32) -> NewBatch {
        self.header.last_offset_delta += offsets;
        self
    }

    /// Makes it compressed.
    pub fn codec(mut self, codec: i16) -> NewBatch {
        self.header.attributes |= codec;
        self
    }

    /// Makes it part of a transaction.
    pub fn transaction(mut self, producer_id: i64) -> NewBatch {
        self.header.attributes |= crate::header::TRANSACTIONAL;
        self.header.producer_id = producer_id;
        self.header.producer_epoch = 0;
        self.header.base_sequence = 0;
        self
    }

    /// The batch as a broker sends it.
    pub fn build(&self) -> Bytes {
        assemble(&self.header, &compress(self.header.codec(), &self.records)).freeze()
    }
}

/// Compresses as a client does. Panics if there is no such codec.
pub fn compress(codec: i16, bytes: &[u8]) -> Vec<u8> {
    let memory = "memory takes what is written";
    match codec {
        0 => bytes.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes).expect(memory);
            encoder.finish().expect(memory)
        }
        2 => snap::raw::Encoder::new().compress_vec(bytes).expect(memory),
        3 => {
            let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).expect(memory);
            encoder.write_all(bytes).expect(memory);
            let (compressed, finished) = encoder.finish();
            finished.expect(memory);
            compressed
        }
        4 => zstd::stream::encode_all(bytes, 1).expect(memory),
        codec => panic!("there is no codec {codec}"),
    }
}
