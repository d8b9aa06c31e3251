//! Compaction and retention: what is kept, what goes, and that offsets stay.

use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseRecord, Producer};

use crate::cluster::{
    PATIENCE, Seen, produce, producer, read, reader, topic, transactional, unique, values, wait_until,
};

/// A compacted topic whose segments are closed by the next batch.
fn compacted(name: &str, more: &[(&str, &str)]) -> String {
    let mut settings = vec![
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "200"),
    ];
    settings.extend_from_slice(more);
    topic(name, 1, &settings)
}

/// Appends a record now and then, so that segments are closed, until the condition holds.
fn roll_until(topic: &str, what: &str, mut condition: impl FnMut(&[Seen]) -> bool) {
    let producer = producer(&[]);
    wait_until(what, || {
        produce(&producer, topic, 0, &[("roll", "roll")]);
        std::thread::park_timeout(std::time::Duration::from_millis(150));
        condition(&read(topic, 0, 0, "read_uncommitted"))
    });
}

fn with_key<'a>(seen: &'a [Seen], key: &str) -> Vec<(i64, Option<&'a str>)> {
    let of_key = seen.iter().filter(|record| record.key.as_deref() == Some(key));
    of_key.map(|record| (record.offset, record.value.as_deref())).collect()
}

#[test]
fn the_last_record_of_each_key_is_kept_at_its_offset() {
    let topic = compacted("last", &[]);
    for codec in ["none", "lz4"] {
        let producer = producer(&[("compression.codec", codec), ("linger.ms", "20")]);
        produce(&producer, &topic, 0, &[("a", "1"), ("b", "1"), ("a", "2"), ("c", "1"), ("b", "2")]);
    }
    roll_until(&topic, "the topic is compacted", |seen| {
        with_key(seen, "a") == [(7, Some("2"))]
            && with_key(seen, "b") == [(9, Some("2"))]
            && with_key(seen, "c") == [(8, Some("1"))]
    });
    let (start, end) = reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered");
    assert_eq!(start, 0, "compaction does not move the start");
    assert!(end > 10);
    assert_eq!(read(&topic, 0, 3, "read_committed")[0].offset, 7, "a reader passes the gap");
}

#[test]
fn a_tombstone_goes_after_what_it_deletes() {
    let topic = compacted("tombstone", &[]);
    let producer = producer(&[]);
    produce(&producer, &topic, 0, &[("a", "1"), ("b", "1")]);
    let tombstone: BaseRecord<'_, str, ()> = BaseRecord::to(&topic).partition(0).key("a");
    producer.send(tombstone).map_err(|(error, _)| error).expect("is queued");
    producer.flush(PATIENCE).expect("is acknowledged");
    roll_until(&topic, "the value is gone", |seen| {
        let records = with_key(seen, "a");
        records.is_empty() || records == [(2, None)]
    });
    roll_until(&topic, "the tombstone is gone", |seen| with_key(seen, "a").is_empty());
    assert_eq!(with_key(&read(&topic, 0, 0, "read_committed"), "b"), [(1, Some("1"))]);
}

#[test]
fn young_records_are_not_compacted() {
    let topic = compacted("young", &[("min.compaction.lag.ms", "600000")]);
    let other = compacted("old", &[]);
    for name in [&topic, &other] {
        produce(&producer(&[]), name, 0, &[("a", "1"), ("a", "2")]);
    }
    roll_until(&topic, "it has several segments", |seen| seen.len() > 5);
    roll_until(&other, "the other topic is compacted", |seen| with_key(seen, "a").len() == 1);
    assert_eq!(with_key(&read(&topic, 0, 0, "read_uncommitted"), "a").len(), 2);
}

#[test]
fn aborted_records_go_and_never_replace_committed_ones() {
    let topic = compacted("aborted", &[]);
    let producer = transactional(&unique("aborted"));
    for (value, commit) in [("1", true), ("2", true), ("3", false)] {
        producer.begin_transaction().expect("begins");
        produce(&producer, &topic, 0, &[("a", value)]);
        match commit {
            true => producer.commit_transaction(PATIENCE).expect("commits"),
            false => producer.abort_transaction(PATIENCE).expect("aborts"),
        }
    }
    roll_until(&topic, "the topic is compacted", |seen| with_key(seen, "a") == [(2, Some("2"))]);
    let committed = read(&topic, 0, 0, "read_committed");
    assert_eq!(with_key(&committed, "a"), [(2, Some("2"))]);
}

#[test]
fn nothing_above_an_open_transaction_is_compacted() {
    let topic = compacted("open", &[]);
    let plain = producer(&[]);
    produce(&plain, &topic, 0, &[("a", "1"), ("a", "2")]);
    let open = transactional(&unique("open"));
    open.begin_transaction().expect("begins");
    produce(&open, &topic, 0, &[("b", "1")]);
    produce(&plain, &topic, 0, &[("b", "2"), ("c", "1"), ("c", "2")]);
    let mut rounds = 0;
    roll_until(&topic, "some passes have run", |seen| {
        rounds += 1;
        assert_eq!(with_key(seen, "b").len(), 2);
        assert_eq!(with_key(seen, "c").len(), 2);
        rounds > 6
    });
    open.commit_transaction(PATIENCE).expect("commits");
    roll_until(&topic, "the topic is compacted", |seen| {
        with_key(seen, "b").len() == 1 && with_key(seen, "c").len() == 1
    });
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")).iter().filter(|v| **v == "2").count(), 3);
}

#[test]
fn old_segments_are_deleted_by_time() {
    let settings = [("retention.ms", "300"), ("segment.ms", "100"), ("file.delete.delay.ms", "0")];
    let topic = topic("retention", 1, &settings);
    produce(&producer(&[]), &topic, 0, &[("k", "a"), ("k", "b")]);
    let start = || reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered").0;
    wait_until("the start moves", || start() >= 2);
}

#[test]
fn the_oldest_segments_are_deleted_by_size() {
    let settings = [("retention.bytes", "1000"), ("segment.ms", "50"), ("file.delete.delay.ms", "0")];
    let topic = topic("size", 1, &settings);
    let producer = producer(&[]);
    let value = "x".repeat(600);
    let start = || reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered").0;
    wait_until("the start moves", || {
        produce(&producer, &topic, 0, &[("k", &value)]);
        std::thread::park_timeout(std::time::Duration::from_millis(60));
        start() > 0
    });
}
