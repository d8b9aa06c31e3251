//! What a broker writes: into the header of a batch that it was sent, and batches of its own.

use bytes::{BufMut, BytesMut};

use crate::header::{CODEC_MASK, CONTROL, CRC_END, LOG_APPEND_TIME, MAGIC, TRANSACTIONAL, i16_at};
use crate::{HEADER_LEN, Header, LENGTH_END, NO_SEQUENCE};

/// Sets base offset and leader epoch. The CRC stays valid.
pub fn assign_offset(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Turns the batch to `LogAppendTime` with one time for all its records.
pub fn set_append_time(batch: &mut [u8], timestamp_ms: i64) {
    let attributes = i16_at(batch, 21) | LOG_APPEND_TIME;
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[35..43].copy_from_slice(&timestamp_ms.to_be_bytes());
    seal(batch);
}

/// Computes the CRC of a batch whose other fields are final.
pub fn seal(batch: &mut [u8]) {
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
        leader_epoch: 0,
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

/// Writes a batch from header fields and records, which are compressed if the attributes say so; length and CRC are
/// computed.
pub fn assemble(header: &Header, records: &[u8]) -> BytesMut {
    let size = HEADER_LEN + records.len();
    let mut batch = BytesMut::with_capacity(size);
    put_header(&mut batch, header, size);
    batch.put_slice(records);
    seal(&mut batch);
    batch
}

/// The header of a batch of `size` bytes, its own included; the CRC is to come, by [`seal`].
pub(crate) fn put_header(out: &mut impl BufMut, header: &Header, size: usize) {
    out.put_i64(header.base_offset);
    out.put_u32((size - LENGTH_END) as u32);
    out.put_i32(header.leader_epoch);
    out.put_u8(MAGIC);
    out.put_u32(0);
    out.put_i16(header.attributes);
    out.put_i32(header.last_offset_delta);
    out.put_i64(header.base_timestamp);
    out.put_i64(header.max_timestamp);
    out.put_i64(header.producer_id);
    out.put_i16(header.producer_epoch);
    out.put_i32(header.base_sequence);
    out.put_i32(header.count);
}

/// Clears the codec bits, for a batch whose records were decompressed.
pub fn uncompressed(attributes: i16) -> i16 {
    attributes & !CODEC_MASK
}

/// Zigzag of a small non-negative number, which takes one byte.
fn zigzag_small(value: u8) -> u8 {
    value << 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{COMMIT, control_type, walk};

    #[test]
    fn a_marker_is_laid_out_as_kafka_lays_it_out() {
        let batch = marker(77, 3, true, 1000);
        let header = Header::check(&batch).expect("valid");
        assert!(header.control() && header.transactional());
        assert_eq!((header.producer_id, header.producer_epoch, header.count), (77, 3, 1));
        assert_eq!(batch.len(), 78);
        let records: Vec<_> = walk(&batch[HEADER_LEN..]).collect::<Result<_, _>>().expect("one record");
        assert_eq!(records[0].key, Some(&[0, 0, 0, 1][..]));
        assert_eq!(control_type(&batch[HEADER_LEN..]), Ok(Some(COMMIT)));
    }

    #[test]
    fn what_lies_before_the_crc_is_set_without_computing_it_again() {
        let mut batch = marker(77, 3, true, 1000);
        assign_offset(&mut batch, 40, 6);
        let header = Header::check(&batch).expect("valid");
        assert_eq!((header.base_offset, header.leader_epoch), (40, 6));
    }

    #[test]
    fn an_append_time_is_sealed_in() {
        let mut batch = marker(77, 3, true, 1000);
        set_append_time(&mut batch, 2000);
        let header = Header::check(&batch).expect("valid");
        assert_eq!((header.log_append_time(), header.max_timestamp), (true, 2000));
    }
}
