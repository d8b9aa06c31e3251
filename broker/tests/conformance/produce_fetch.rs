//! Records in, records out.

use std::time::{Duration, Instant};

use kafka_protocol::records::Compression;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::cluster::{
    PATIENCE, client, connect, produce, producer, read, reader, topic, unique, values, wait_until,
};
use crate::raw::{NOBODY, batch, batch_at, fetch_request, now_ms, produce_raw, produce_version, topic_id};

fn assigned(topic: &str, offset: Offset) -> BaseConsumer {
    let consumer = reader("read_committed");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, offset).expect("is valid");
    consumer.assign(&list).expect("is assigned");
    consumer
}

#[test]
fn keys_values_headers_and_times_come_back_as_they_were_sent() {
    let topic = topic("records", 1, &[]);
    let producer = producer(&[]);
    let time = now_ms() - 5000;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "a", value: Some("2") })
        .insert(Header::<&str> { key: "none", value: None });
    let full = BaseRecord::to(&topic).key("key").payload("value").headers(headers).timestamp(time);
    producer.send(full).map_err(|(e, _)| e).expect("is queued");
    let bare: BaseRecord<'_, (), ()> = BaseRecord::to(&topic);
    producer.send(bare).map_err(|(e, _)| e).expect("is queued");
    producer.send(BaseRecord::to(&topic).key("").payload("")).map_err(|(e, _)| e).expect("is queued");
    producer.flush(PATIENCE).expect("is acknowledged");

    let consumer = assigned(&topic, Offset::Beginning);
    let first = consumer.poll(PATIENCE).expect("a record").expect("readable");
    assert_eq!((first.key(), first.payload()), (Some(&b"key"[..]), Some(&b"value"[..])));
    assert_eq!(first.timestamp(), Timestamp::CreateTime(time));
    let headers = first.headers().expect("headers");
    let pairs: Vec<_> = headers.iter().map(|header| (header.key, header.value)).collect();
    assert_eq!(pairs, [("a", Some(&b"1"[..])), ("a", Some(&b"2"[..])), ("none", None)]);
    let second = consumer.poll(PATIENCE).expect("a record").expect("readable");
    assert_eq!((second.key(), second.payload(), second.offset()), (None, None, 1));
    let third = consumer.poll(PATIENCE).expect("a record").expect("readable");
    assert_eq!((third.key(), third.payload()), (Some(&b""[..]), Some(&b""[..])));
}

#[test]
fn all_five_codecs_are_taken_and_given_back() {
    let topic = topic("codecs", 1, &[]);
    let long = "x".repeat(2000);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let producer = producer(&[("compression.codec", codec), ("linger.ms", "20")]);
        produce(&producer, &topic, 0, &[(codec, &long), (codec, &long)]);
    }
    let seen = read(&topic, 0, 0, "read_committed");
    let keys: Vec<_> = seen.iter().filter_map(|record| record.key.as_deref()).collect();
    let expected = ["none", "none", "gzip", "gzip", "snappy", "snappy", "lz4", "lz4", "zstd", "zstd"];
    assert_eq!(keys, expected);
    assert!(values(&seen).iter().all(|value| *value == long));
}

#[test]
fn compressed_batches_are_checked_where_they_will_be_compacted() {
    let topic = topic("compact-codecs", 1, &[("cleanup.policy", "compact")]);
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let producer = producer(&[("compression.codec", codec), ("linger.ms", "20")]);
        produce(&producer, &topic, 0, &[("a", &"x".repeat(500)), ("b", &"x".repeat(500))]);
    }
    assert_eq!(read(&topic, 0, 0, "read_committed").len(), 8);
}

#[test]
fn records_arrive_with_every_kind_of_acknowledgement() {
    let topic = topic("acks", 1, &[]);
    for acks in ["0", "1", "all"] {
        produce(&producer(&[("acks", acks)]), &topic, 0, &[("k", acks)]);
        wait_until("the record is there", || values(&read(&topic, 0, 0, "read_committed")).contains(&acks));
    }
}

#[test]
fn the_broker_sets_the_time_where_the_topic_says_so() {
    let topic = topic("append-time", 1, &[("message.timestamp.type", "LogAppendTime")]);
    let before = now_ms();
    let producer = producer(&[("compression.codec", "lz4")]);
    let old = BaseRecord::to(&topic).key("k").payload("v").timestamp(1000);
    producer.send(old).map_err(|(e, _)| e).expect("is queued");
    producer.flush(PATIENCE).expect("is acknowledged");
    let consumer = assigned(&topic, Offset::Beginning);
    let record = consumer.poll(PATIENCE).expect("a record").expect("readable");
    match record.timestamp() {
        Timestamp::LogAppendTime(time) => assert!(time >= before && time <= now_ms()),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_record_larger_than_the_topic_allows_is_refused() {
    let topic = topic("small", 1, &[("max.message.bytes", "1000")]);
    let mut raw = connect();
    let large = "x".repeat(2000);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(NOBODY, &[&large])).error_code, 10);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(NOBODY, &["small"])).error_code, 0);
}

#[test]
fn a_time_too_far_ahead_is_refused() {
    let topic = topic("future", 1, &[]);
    let mut raw = connect();
    let tomorrow = batch_at(NOBODY, &["v"], now_ms() + 86_400_000, Compression::None);
    assert_eq!(produce_raw(&mut raw, &topic, None, tomorrow).error_code, 32);
    let long_ago = batch_at(NOBODY, &["v"], 0, Compression::None);
    assert_eq!(produce_raw(&mut raw, &topic, None, long_ago).error_code, 0);
}

#[test]
fn a_compacted_topic_takes_no_record_without_a_key() {
    let topic = topic("keyed", 1, &[("cleanup.policy", "compact")]);
    let producer = producer(&[]);
    let record: BaseRecord<'_, (), str> = BaseRecord::to(&topic).payload("v");
    producer.send(record).map_err(|(e, _)| e).expect("is queued");
    producer.flush(PATIENCE).expect("is answered");
    assert!(read(&topic, 0, 0, "read_uncommitted").is_empty());
}

#[test]
fn a_damaged_batch_is_refused_and_the_next_one_taken() {
    let topic = topic("damaged", 1, &[]);
    let mut raw = connect();
    let good = batch(NOBODY, &["v"]);
    let mut bad = good.to_vec();
    *bad.last_mut().expect("not empty") ^= 1;
    assert_eq!(produce_raw(&mut raw, &topic, None, bad.into()).error_code, 2);
    let twice = [&good[..], &good[..]].concat();
    assert_eq!(produce_raw(&mut raw, &topic, None, twice.into()).error_code, 87);
    let placed = produce_raw(&mut raw, &topic, None, good);
    assert_eq!((placed.error_code, placed.base_offset), (0, 0));
}

#[test]
fn a_batch_whose_numbers_make_no_sense_is_refused() {
    let topic = topic("senseless", 1, &[]);
    let mut raw = connect();
    let good = batch(NOBODY, &["v"]);
    // Last offset delta and count, each at its largest, with a checksum that is right.
    for at in [23..27, 57..61] {
        let mut bad = good.to_vec();
        bad[at.clone()].copy_from_slice(&i32::MAX.to_be_bytes());
        let crc = crc32c::crc32c(&bad[21..]);
        bad[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_ne!(produce_raw(&mut raw, &topic, None, bad.into()).error_code, 0, "bytes {at:?}");
    }
    let mut far = good.to_vec();
    far[..8].copy_from_slice(&i64::MAX.to_be_bytes());
    produce_raw(&mut raw, &topic, None, far.into());
    assert_eq!(produce_raw(&mut raw, &topic, None, good).error_code, 0);
}

#[test]
fn an_unknown_topic_or_partition_is_an_error_of_that_partition_alone() {
    let mut raw = connect();
    let unknown = unique("unknown");
    assert_eq!(produce_raw(&mut raw, &unknown, None, batch(NOBODY, &["v"])).error_code, 3);
    let response = raw.call(&fetch_request(&unknown, 0, PATIENCE, 1), 12);
    assert_eq!(response.responses[0].partitions[0].error_code, 3);
}

#[test]
fn a_fetch_waits_until_there_is_enough_or_its_time_is_up() {
    let topic = topic("waiting", 1, &[]);
    let mut raw = connect();
    produce_raw(&mut raw, &topic, None, batch(NOBODY, &["v"]));
    let started = Instant::now();
    let response = raw.call(&fetch_request(&topic, 0, Duration::from_millis(300), 100_000), 12);
    // Apache Kafka counts in whole milliseconds, from one that has begun before.
    assert!(started.elapsed() >= Duration::from_millis(290), "waited {:?}", started.elapsed());
    assert!(!response.responses[0].partitions[0].records.as_ref().expect("records").is_empty());

    raw.send(&fetch_request(&topic, 1, PATIENCE, 300), 12);
    let mut other = connect();
    for _ in 0..5 {
        produce_raw(&mut other, &topic, None, batch(NOBODY, &["v"]));
    }
    let response = raw.receive::<kafka_protocol::messages::FetchRequest>(12);
    assert!(response.responses[0].partitions[0].records.as_ref().expect("records").len() >= 300);
}

#[test]
fn a_waiting_consumer_is_woken_at_once() {
    let topic = topic("latency", 1, &[]);
    let mut config = client();
    config.set("group.id", unique("latency")).set("fetch.wait.max.ms", "5000");
    let consumer: BaseConsumer = config.create().expect("is created");
    let mut list = TopicPartitionList::new();
    // A number and not `Beginning`: looking that up could fail on a topic just created, and the
    // reset that follows would pass the first record.
    list.add_partition_offset(&topic, 0, Offset::Offset(0)).expect("is valid");
    consumer.assign(&list).expect("is assigned");
    let producer = producer(&[]);
    let mut times = Vec::new();
    for at in 0..300 {
        let value = at.to_string();
        let started = Instant::now();
        producer
            .send(BaseRecord::to(&topic).key("k").payload(&value))
            .map_err(|(e, _)| e)
            .expect("is queued");
        // In short steps: one long poll can end early and empty-handed.
        let deadline = started + PATIENCE;
        let record = loop {
            match consumer.poll(Duration::from_millis(100)) {
                Some(record) => break record,
                None if Instant::now() < deadline => {}
                None => {
                    let end = consumer.fetch_watermarks(&topic, 0, PATIENCE);
                    panic!("record {at} is missing: log {end:?}, reader {:?}", consumer.position());
                }
            }
        };
        let record = record.expect("readable");
        assert_eq!(record.payload(), Some(value.as_bytes()));
        times.push(started.elapsed());
        producer.poll(Duration::ZERO);
    }
    times.sort();
    let (p50, p99) = (times[150], times[297]);
    println!("produce to consume: p50 {p50:?}, p99 {p99:?}");
    if crate::cluster::cluster().embedded().is_some() {
        // A fraction of a millisecond by itself, and far below the 5 s that a fetch may wait on any machine.
        assert!(p50 < Duration::from_millis(100), "p50 is {p50:?}");
    }
}

#[test]
fn a_batch_larger_than_the_fetch_limit_is_given_all_the_same() {
    let topic = topic("limit", 1, &[]);
    let mut raw = connect();
    let large = "x".repeat(10_000);
    for _ in 0..3 {
        produce_raw(&mut raw, &topic, None, batch(NOBODY, &[&large]));
    }
    let request = fetch_request(&topic, 0, PATIENCE, 1).with_max_bytes(100);
    let response = raw.call(&request, 12);
    let length = response.responses[0].partitions[0].records.as_ref().expect("records").len();
    assert!((10_000..20_000).contains(&length), "{length} bytes");
}

#[test]
fn an_offset_out_of_range_is_an_error_or_a_reset_as_the_client_wishes() {
    let topic = topic("range", 1, &[]);
    produce(&producer(&[]), &topic, 0, &[("k", "v")]);
    let consumer = assigned(&topic, Offset::Offset(17));
    let error = loop {
        match consumer.poll(PATIENCE).expect("an event") {
            Err(KafkaError::PartitionEOF(_)) => {}
            Err(error) => break error,
            Ok(_) => panic!("there is no such record"),
        }
    };
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset));

    let mut config = client();
    config.set("group.id", unique("reset")).set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create().expect("is created");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(17)).expect("is valid");
    consumer.assign(&list).expect("is assigned");
    assert_eq!(consumer.poll(PATIENCE).expect("a record").expect("readable").offset(), 0);
}

#[test]
fn a_fetch_names_topics_by_id_from_version_13_on() {
    let topic = topic("by-id", 1, &[]);
    let mut raw = connect();
    produce_raw(&mut raw, &topic, None, batch(NOBODY, &["v"]));
    let id = topic_id(&mut raw, &topic);
    let mut request = fetch_request(&topic, 0, PATIENCE, 1);
    request.topics[0].topic_id = id;
    let response = raw.call(&request, 13);
    assert_eq!(response.responses[0].topic_id, id);
    assert_eq!(response.responses[0].partitions[0].error_code, 0);
    request.topics[0].topic_id = uuid::Uuid::from_u128(42);
    assert_eq!(raw.call(&request, 13).responses[0].partitions[0].error_code, 100);
    let session = fetch_request(&topic, 0, PATIENCE, 1).with_session_id(77).with_session_epoch(1);
    assert_eq!(raw.call(&session, 12).error_code, 70);
}

#[test]
fn every_version_of_produce_and_fetch_is_served() {
    let topic = topic("versions", 1, &[]);
    let mut raw = connect();
    let id = topic_id(&mut raw, &topic);
    for version in 3..=11 {
        let placed = produce_version(&mut raw, &topic, None, batch(NOBODY, &["v"]), version);
        assert_eq!((placed.error_code, placed.base_offset), (0, i64::from(version) - 3));
    }
    for version in 4..=16 {
        let mut request = fetch_request(&topic, 0, PATIENCE, 1);
        request.topics[0].topic_id = id;
        if version < 7 {
            request.session_epoch = -1;
        }
        let response = raw.call(&request, version);
        assert_eq!(response.responses[0].partitions[0].high_watermark, 9, "version {version}");
    }
}
