//! What is written against what an independent reader, `kafka-protocol`, finds in it.

use kafka_protocol::records::{Record, RecordBatchDecoder};

use super::*;
use crate::Header;

const NOW_MS: i64 = 1_700_000_000_000;
const NO_LIMIT: usize = usize::MAX;
const PRODUCER: Producer = Producer { id: 7, epoch: 3, base_sequence: 40, is_transactional: true };
const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// Bytes of a batch with the records `k` and `v`, of which each takes 9.
const SMALL: [usize; 3] = [HEADER_LEN, HEADER_LEN + 9, HEADER_LEN + 18];

fn push_small(writer: &mut Writer, bytes_max: usize) -> Result<bool, TooLarge> {
    writer.push(NOW_MS, Some(b"k"), Some(b"v"), b"", bytes_max)
}

fn push_value(writer: &mut Writer, value: &[u8]) {
    assert_eq!(writer.push(NOW_MS, None, Some(value), b"", NO_LIMIT), Ok(true));
}

/// Records that repeat themselves, as records do.
fn fill(writer: &mut Writer, records: usize) {
    for number in 0..records {
        push_value(writer, format!("a value that is like others, number {number}").as_bytes());
    }
}

fn finish(writer: &mut Writer) -> Bytes {
    writer.finish(PRODUCER, Codec::None, None)
}

fn decode(batch: &Bytes) -> Vec<Record> {
    let mut left = batch.clone();
    let records = RecordBatchDecoder::decode(&mut left).expect("a batch that others read").records;
    assert!(left.is_empty(), "nothing follows the batch");
    records
}

/// The number of the codec in the attributes.
fn codec_of(batch: &Bytes) -> i16 {
    i16::from_be_bytes([batch[21], batch[22]]) & 7
}

/// xorshift64: bytes that no codec makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn a_record_is_laid_out_as_kafka_lays_it_out() {
    let mut writer = Writer::new();
    assert_eq!(push_small(&mut writer, NO_LIMIT), Ok(true));
    assert_eq!(writer.push(NOW_MS - 1, None, None, b"", NO_LIMIT), Ok(true));
    let batch = finish(&mut writer);
    // Length, attributes, timestamp delta, offset delta, key, value, headers.
    let expected = [&[16, 0, 0, 0, 2, b'k', 2, b'v', 0][..], &[12, 0, 1, 2, 1, 1, 0]].concat();
    assert_eq!(batch[HEADER_LEN..], expected[..]);
}

#[test]
fn the_header_says_whose_batch_it_is_and_the_checksum_covers_it() {
    for (is_transactional, attributes) in [(false, 0), (true, 0x10)] {
        let mut writer = Writer::new();
        fill(&mut writer, 3);
        let batch = writer.finish(Producer { is_transactional, ..PRODUCER }, Codec::None, None);
        let header = Header::check(&batch).expect("a valid header");
        assert_eq!((header.base_offset, header.last_offset_delta, header.count), (0, 2, 3));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 3, 40));
        assert_eq!(header.attributes, attributes);
        assert_eq!(batch[8..12], (batch.len() as u32 - 12).to_be_bytes());
        assert_eq!(batch[12..17], [0xffu8, 0xff, 0xff, 0xff, 2], "no leader epoch, and the format");
        assert_eq!(batch[17..21], crc32c::crc32c(&batch[21..]).to_be_bytes());
    }
}

#[test]
fn what_was_pushed_comes_back_through_every_codec() {
    // More than a block of snappy and lz4.
    let rows: Vec<_> = (0..20_000).map(|row| (format!("key {}", row % 50), format!("value {row}"))).collect();
    for codec in CODECS {
        let mut writer = Writer::new();
        for (time, (key, value)) in (NOW_MS..).zip(&rows) {
            let pushed = writer.push(time, Some(key.as_bytes()), Some(value.as_bytes()), b"", NO_LIMIT);
            assert_eq!(pushed, Ok(true));
        }
        assert_eq!(writer.len(), rows.len());
        let uncompressed = writer.bytes();
        let batch = writer.finish(PRODUCER, codec, None);
        assert_eq!(codec_of(&batch), codec.number(), "{codec:?}");
        assert_eq!(batch.len() < uncompressed, codec != Codec::None, "{codec:?}");
        let header = Header::check(&batch).expect("a valid header");
        assert_eq!(header.attributes & TRANSACTIONAL, TRANSACTIONAL);

        let records = decode(&batch);
        assert_eq!(records.len(), rows.len());
        for ((at, record), (key, value)) in (0..).zip(&records).zip(&rows) {
            assert_eq!((record.offset, record.timestamp), (at, NOW_MS + at), "{codec:?}");
            assert_eq!(record.key.as_deref(), Some(key.as_bytes()), "{codec:?}");
            assert_eq!(record.value.as_deref(), Some(value.as_bytes()), "{codec:?}");
        }
    }
}

#[test]
fn what_does_not_become_smaller_stays_uncompressed() {
    for codec in CODECS {
        for bytes in [0, 1, 100, 64 * 1024, 200_000] {
            let value = noise(bytes);
            let mut writer = Writer::new();
            push_value(&mut writer, &value);
            let uncompressed = writer.bytes();
            let batch = writer.finish(PRODUCER, codec, None);
            assert_eq!((batch.len(), codec_of(&batch)), (uncompressed, 0), "{codec:?}, {bytes} bytes");
            assert_eq!(decode(&batch)[0].value.as_deref(), Some(&value[..]), "{codec:?}, {bytes} bytes");
        }
    }
}

#[test]
fn a_level_that_a_codec_does_not_know_counts_as_the_nearest() {
    for codec in CODECS {
        for level in [i32::MIN, -1, 0, 1, 9, i32::MAX] {
            let mut writer = Writer::new();
            fill(&mut writer, 100);
            let batch = writer.finish(PRODUCER, codec, Some(level));
            assert_eq!(decode(&batch).len(), 100, "{codec:?} at {level}");
        }
    }
}

#[test]
fn lz4_and_snappy_are_framed_as_java_reads_them() {
    let mut writer = Writer::new();
    fill(&mut writer, 100);
    let batch = writer.finish(PRODUCER, Codec::Lz4, None);
    // Magic; version 1, independent blocks and nothing else; blocks of 64 KiB.
    assert_eq!(batch[HEADER_LEN..][..6], [0x04u8, 0x22, 0x4d, 0x18, 0x60, 0x40]);

    fill(&mut writer, 100);
    let batch = writer.finish(PRODUCER, Codec::Snappy, None);
    let (magic, block) = batch[HEADER_LEN..].split_at(16);
    assert_eq!(magic, b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01");
    assert_eq!(block[..4], (block.len() as u32 - 4).to_be_bytes());
}

#[test]
fn timestamps_may_go_back_behind_the_first() {
    let times = [NOW_MS, NOW_MS - 1, NOW_MS + 70_000, NOW_MS - 86_400_000, 0, -1];
    let mut writer = Writer::new();
    for time in times {
        assert_eq!(writer.push(time, None, None, b"", NO_LIMIT), Ok(true));
    }
    let batch = finish(&mut writer);
    let header = Header::check(&batch).expect("a valid header");
    assert_eq!((header.base_timestamp, header.max_timestamp), (NOW_MS, NOW_MS + 70_000));
    let read: Vec<_> = decode(&batch).iter().map(|record| record.timestamp).collect();
    assert_eq!(read, times);
}

#[test]
fn a_timestamp_too_far_from_the_first_needs_another_batch() {
    let mut writer = Writer::new();
    assert_eq!(writer.push(i64::MIN, None, None, b"", NO_LIMIT), Ok(true));
    assert_eq!(writer.push(0, None, None, b"", NO_LIMIT), Ok(false));
    assert_eq!(writer.push(-1, None, None, b"", NO_LIMIT), Ok(true));
    assert_eq!(decode(&finish(&mut writer))[1].timestamp, -1);
    assert_eq!(writer.push(i64::MAX, None, None, b"", NO_LIMIT), Ok(true));
    assert_eq!(decode(&finish(&mut writer))[0].timestamp, i64::MAX);
}

#[test]
fn null_and_empty_stay_apart() {
    let fields = [None, Some(&b""[..]), Some(b"x")];
    let mut writer = Writer::new();
    for key in fields {
        for value in fields {
            assert_eq!(writer.push(NOW_MS, key, value, b"", NO_LIMIT), Ok(true));
        }
    }
    let records = decode(&finish(&mut writer));
    let read: Vec<_> =
        records.iter().map(|record| (record.key.as_deref(), record.value.as_deref())).collect();
    let expected: Vec<_> = fields.iter().flat_map(|key| fields.map(|value| (*key, value))).collect();
    assert_eq!(read, expected);
}

#[test]
fn headers_are_read_as_they_were_given_and_nothing_at_all_is_none() {
    let long = [7u8; 300];
    let list = [("a", Some(&b"1"[..])), ("none", None), ("long", Some(&long))];
    let encoded = [&b"\x06\x02a\x02\x31\x08none\x01\x08long\xd8\x04"[..], &long].concat();
    let batch_with = |headers: &[u8]| {
        let mut writer = Writer::new();
        assert_eq!(writer.push(NOW_MS, None, Some(b"v"), headers, NO_LIMIT), Ok(true));
        finish(&mut writer)
    };
    let records = decode(&batch_with(&encoded));
    let read: Vec<_> = records[0].headers.iter().map(|(name, value)| (&**name, value.as_deref())).collect();
    assert_eq!(read, list);

    let none = batch_with(b"");
    assert_eq!(none, batch_with(b"\0"));
    assert!(decode(&none)[0].headers.is_empty());
}

#[test]
fn a_batch_is_full_at_exactly_its_limit() {
    let mut writer = Writer::new();
    assert_eq!(push_small(&mut writer, SMALL[1]), Ok(true));
    assert_eq!(push_small(&mut writer, SMALL[2] - 1), Ok(false));
    assert_eq!((writer.len(), writer.bytes()), (1, SMALL[1]), "nothing has changed");
    assert_eq!(push_small(&mut writer, SMALL[2]), Ok(true));
    assert_eq!((writer.len(), writer.bytes()), (2, SMALL[2]));
    assert_eq!(finish(&mut writer).len(), SMALL[2]);
}

#[test]
fn a_record_that_no_batch_can_hold_is_refused_with_its_size() {
    let mut writer = Writer::new();
    let refused = Err(TooLarge { bytes: SMALL[1] });
    assert_eq!(push_small(&mut writer, SMALL[1] - 1), refused);
    assert!(writer.is_empty() && writer.bytes() == 0);
    assert_eq!(push_small(&mut writer, SMALL[1]), Ok(true));
    // Finishing what is there would not help it.
    assert_eq!(push_small(&mut writer, SMALL[1] - 1), refused);
    assert_eq!(push_small(&mut writer, 0), refused);
    assert_eq!(decode(&finish(&mut writer)).len(), 1);
}

#[test]
fn sizes_are_exact_where_a_length_takes_a_byte_more() {
    let value = vec![b'x'; 1_048_600];
    for bytes in (0..150).chain(8_150..8_210).chain(1_048_550..1_048_600) {
        let mut writer = Writer::new();
        push_value(&mut writer, &value[..bytes]);
        let exact = finish(&mut writer).len();
        let mut push = |bytes_max| writer.push(NOW_MS, None, Some(&value[..bytes]), b"", bytes_max);
        assert_eq!(push(exact - 1), Err(TooLarge { bytes: exact }));
        assert_eq!(push(exact), Ok(true), "{bytes} bytes");
        // Another one of the same size follows: the deltas 0 and 1 take as much.
        let both = exact + exact - HEADER_LEN;
        assert_eq!((push(both - 1), push(both)), (Ok(false), Ok(true)), "{bytes} bytes");
        assert_eq!(decode(&finish(&mut writer)).len(), 2, "{bytes} bytes");
    }
}

#[test]
fn a_varint_is_as_long_as_was_said_before() {
    let powers = (0..64).map(|shift| (1u64 << shift).cast_signed());
    let around = powers.flat_map(|power| [power.wrapping_sub(1), power, power.wrapping_neg()]);
    for value in around.chain([0, -1, i64::MIN, i64::MAX]) {
        let mut bytes = Vec::<u8>::new();
        put_varint(&mut bytes, value);
        assert_eq!(bytes.len(), varint_len(value), "{value}");
    }
}

#[test]
fn an_empty_batch_is_no_batch() {
    let mut writer = Writer::new();
    assert!(writer.is_empty());
    assert!(finish(&mut writer).is_empty());
    fill(&mut writer, 2);
    writer.clear();
    assert_eq!((writer.len(), writer.bytes()), (0, 0));
    assert!(finish(&mut writer).is_empty());
    fill(&mut writer, 2);
    assert_eq!(decode(&finish(&mut writer))[1].offset, 1, "offsets begin again");
}

#[test]
fn a_writer_keeps_no_memory_and_grows_at_once_to_what_the_last_batch_took() {
    for codec in CODECS {
        let mut writer = Writer::new();
        fill(&mut writer, 1000);
        let bytes = writer.bytes();
        let large = writer.finish(PRODUCER, codec, None);
        assert_eq!(writer.batch.capacity(), 0, "{codec:?}");

        fill(&mut writer, 1);
        let buffer = writer.batch.as_ptr();
        assert!(writer.batch.capacity() >= bytes, "{codec:?}");
        fill(&mut writer, 999);
        assert_eq!(writer.batch.as_ptr(), buffer, "{codec:?}: it need not grow");
        writer.clear();
        assert_eq!(writer.batch.capacity(), 0, "{codec:?}");

        fill(&mut writer, 1);
        let small = writer.finish(PRODUCER, codec, None);
        assert_eq!((decode(&large).len(), decode(&small).len()), (1000, 1), "{codec:?}");
        fill(&mut writer, 1);
        assert!(writer.batch.capacity() < bytes, "{codec:?}: a small batch expects a small one");
    }
}

#[test]
fn what_is_handed_out_holds_no_more_than_twice_its_memory() {
    let mut writer = Writer::new();
    fill(&mut writer, 1000);
    finish(&mut writer);
    fill(&mut writer, 1);
    let reserved = writer.batch.capacity();
    let small = finish(&mut writer);
    let small = Vec::<u8>::from(small.try_into_mut().expect("nobody else has it"));
    assert!(small.capacity() <= 2 * small.len() && small.capacity() < reserved);
}

#[test]
fn a_codec_is_named_as_in_compression_type() {
    for (name, codec) in ["none", "gzip", "snappy", "lz4", " ZSTD "].into_iter().zip(CODECS) {
        assert_eq!(name.parse::<Codec>(), Ok(codec));
    }
    let refused = "brotli".parse::<Codec>().expect_err("Kafka has no such codec").to_string();
    assert!(refused.contains("brotli") && refused.contains("zstd"), "{refused}");
}
