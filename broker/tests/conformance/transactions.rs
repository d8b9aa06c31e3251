//! Transactions as librdkafka uses them: all or nothing, and only by the rightful owner.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};

use crate::cluster::{
    PATIENCE, client, produce, producer, read, reader, topic, transactional, unique, values, wait_until,
};

#[test]
fn committed_records_are_seen_and_aborted_ones_are_not() {
    let topic = topic("outcome", 1, &[]);
    let producer = transactional(&unique("outcome"));
    for (value, commit) in [("a", true), ("b", false), ("c", true), ("d", false)] {
        producer.begin_transaction().expect("begins");
        produce(&producer, &topic, 0, &[("k", value), ("k", value)]);
        match commit {
            true => producer.commit_transaction(PATIENCE).expect("commits"),
            false => producer.abort_transaction(PATIENCE).expect("aborts"),
        }
    }
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["a", "a", "c", "c"]);
    assert_eq!(values(&read(&topic, 0, 0, "read_uncommitted")), ["a", "a", "b", "b", "c", "c", "d", "d"]);
    // In the middle of an aborted transaction a reader must still know that it was aborted.
    assert_eq!(values(&read(&topic, 0, 4, "read_committed")), ["c", "c"]);
}

#[test]
fn an_open_transaction_holds_back_what_comes_after_it() {
    let topic = topic("held-back", 1, &[]);
    let open = transactional(&unique("open"));
    let plain = producer(&[]);
    produce(&plain, &topic, 0, &[("k", "before")]);
    open.begin_transaction().expect("begins");
    produce(&open, &topic, 0, &[("k", "inside")]);
    produce(&plain, &topic, 0, &[("k", "after")]);
    let end = |isolation| reader(isolation).fetch_watermarks(&topic, 0, PATIENCE).expect("answered").1;
    assert_eq!((end("read_committed"), end("read_uncommitted")), (1, 3));
    assert_eq!(values(&read(&topic, 0, 0, "read_uncommitted")), ["before", "inside", "after"]);
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["before"]);

    // A reader that waits is woken by the marker.
    let consumer = waiting_reader(&topic, 1);
    open.commit_transaction(PATIENCE).expect("commits");
    let started = Instant::now();
    let record = loop {
        // In short steps: one long poll can end early and empty-handed.
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            break record.expect("readable");
        }
        // Of the 20 s that it would wait.
        assert!(started.elapsed() < Duration::from_secs(15), "it is not woken");
    };
    assert_eq!(rdkafka::Message::payload(&record), Some(&b"inside"[..]));
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["before", "inside", "after"]);
}

fn waiting_reader(topic: &str, offset: i64) -> BaseConsumer {
    let mut config = client();
    config
        .set("group.id", unique("waiting"))
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "20000");
    let consumer: BaseConsumer = config.create().expect("is created");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("is valid");
    consumer.assign(&list).expect("is assigned");
    assert!(consumer.poll(Duration::from_millis(300)).is_none());
    consumer
}

#[test]
fn a_second_producer_with_the_same_id_fences_the_first() {
    let topic = topic("zombie", 1, &[]);
    let id = unique("zombie");
    let zombie = transactional(&id);
    zombie.begin_transaction().expect("begins");
    produce(&zombie, &topic, 0, &[("k", "lost")]);
    let owner = transactional(&id);
    owner.begin_transaction().expect("begins");
    produce(&owner, &topic, 0, &[("k", "kept")]);
    owner.commit_transaction(PATIENCE).expect("commits");
    let error = zombie.commit_transaction(PATIENCE).expect_err("is fenced");
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fenced));
    wait_until("the marker is there", || !read(&topic, 0, 0, "read_committed").is_empty());
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["kept"]);
}

#[test]
fn a_transaction_left_behind_is_aborted_by_the_next_producer() {
    let topic = topic("left", 1, &[]);
    let id = unique("left");
    let first = transactional(&id);
    first.begin_transaction().expect("begins");
    produce(&first, &topic, 0, &[("k", "lost")]);
    drop(first);
    let _second = transactional(&id);
    assert!(read(&topic, 0, 0, "read_committed").is_empty());
    let end = reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered").1;
    assert_eq!(end, 2, "the marker is there");
}

#[test]
fn a_transaction_that_takes_too_long_is_aborted() {
    let topic = topic("slow", 1, &[]);
    let id = unique("slow");
    // Long enough for a record to arrive, and for a look at it.
    let times = [("transaction.timeout.ms", "5000"), ("message.timeout.ms", "5000")];
    let slow = producer(&[("transactional.id", &id), times[0], times[1]]);
    slow.init_transactions(PATIENCE).expect("is initialised");
    slow.begin_transaction().expect("begins");
    produce(&slow, &topic, 0, &[("k", "late")]);
    let end = || reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered").1;
    assert_eq!(end(), 0);
    wait_until("the transaction is aborted", || end() == 2);
    let _ = slow.commit_transaction(PATIENCE).expect_err("is too late");
    assert!(read(&topic, 0, 0, "read_committed").is_empty());
}

#[test]
fn a_transaction_spans_partitions_and_topics() {
    let (one, two) = (topic("one", 3, &[]), topic("two", 1, &[]));
    let producer = transactional(&unique("span"));
    producer.begin_transaction().expect("begins");
    for partition in 0..3 {
        produce(&producer, &one, partition, &[("k", "v")]);
    }
    produce(&producer, &two, 0, &[("k", "v")]);
    for partition in 0..3 {
        assert!(read(&one, partition, 0, "read_committed").is_empty());
    }
    producer.commit_transaction(PATIENCE).expect("commits");
    for partition in 0..3 {
        wait_until("the marker is there", || read(&one, partition, 0, "read_committed").len() == 1);
    }
    wait_until("the marker is there", || read(&two, 0, 0, "read_committed").len() == 1);
}

/// A consumer that is alone in its group and has its assignment.
fn lone_consumer(group: &str, topic: &str) -> BaseConsumer {
    let mut config = client();
    config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create().expect("is created");
    consumer.subscribe(&[topic]).expect("subscribes");
    let deadline = Instant::now() + PATIENCE;
    while consumer.poll(Duration::from_millis(50)).is_none() {
        assert!(Instant::now() < deadline, "no record");
    }
    consumer
}

fn committed(consumer: &BaseConsumer, topic: &str) -> Offset {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let found = consumer.committed_offsets(list, PATIENCE).expect("is answered");
    found.elements()[0].offset()
}

fn offsets(topic: &str, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("is valid");
    list
}

#[test]
fn offsets_sent_in_a_transaction_count_once_it_commits() {
    let (input, output) = (topic("input", 1, &[]), topic("output", 1, &[]));
    produce(&producer(&[]), &input, 0, &[("k", "a"), ("k", "b")]);
    let group = unique("offsets");
    let consumer = lone_consumer(&group, &input);
    let metadata = consumer.group_metadata().expect("is a member");
    let producer = transactional(&unique("offsets"));

    producer.begin_transaction().expect("begins");
    produce(&producer, &output, 0, &[("k", "lost")]);
    producer.send_offsets_to_transaction(&offsets(&input, 1), &metadata, PATIENCE).expect("are sent");
    producer.abort_transaction(PATIENCE).expect("aborts");
    wait_until("the abort is done", || committed(&consumer, &input) == Offset::Invalid);

    producer.begin_transaction().expect("begins");
    produce(&producer, &output, 0, &[("k", "kept")]);
    producer.send_offsets_to_transaction(&offsets(&input, 2), &metadata, PATIENCE).expect("are sent");
    producer.commit_transaction(PATIENCE).expect("commits");
    wait_until("the offset is there", || committed(&consumer, &input) == Offset::Offset(2));
    wait_until("the marker is there", || !read(&output, 0, 0, "read_committed").is_empty());
    assert_eq!(values(&read(&output, 0, 0, "read_committed")), ["kept"]);
}

#[test]
fn offsets_with_the_metadata_of_a_former_generation_are_refused() {
    let (input, output) = (topic("input", 2, &[]), topic("output", 1, &[]));
    let plain = producer(&[]);
    produce(&plain, &input, 0, &[("k", "a")]);
    produce(&plain, &input, 1, &[("k", "a")]);
    let group = unique("stale");
    let consumer = lone_consumer(&group, &input);
    let stale = consumer.group_metadata().expect("is a member");
    // Leaving and coming back makes another member of another generation.
    consumer.unsubscribe();
    drop(consumer);
    let _again = lone_consumer(&group, &input);

    let producer = transactional(&unique("stale"));
    producer.begin_transaction().expect("begins");
    produce(&producer, &output, 0, &[("k", "lost")]);
    let error =
        producer.send_offsets_to_transaction(&offsets(&input, 1), &stale, PATIENCE).expect_err("is refused");
    let code = error.rdkafka_error_code();
    let refused = [Some(RDKafkaErrorCode::UnknownMemberId), Some(RDKafkaErrorCode::IllegalGeneration)];
    assert!(refused.contains(&code), "{error}");
    producer.abort_transaction(PATIENCE).expect("aborts");
    assert!(read(&output, 0, 0, "read_committed").is_empty());
}

#[test]
fn a_consumer_passes_markers_so_that_its_lag_reaches_zero() {
    let topic = topic("lag", 1, &[]);
    let producer = transactional(&unique("lag"));
    for _ in 0..3 {
        producer.begin_transaction().expect("begins");
        produce(&producer, &topic, 0, &[("k", "v")]);
        producer.commit_transaction(PATIENCE).expect("commits");
    }
    let consumer = waiting_at_start(&topic);
    let deadline = Instant::now() + PATIENCE;
    let position = || consumer.position().expect("is known").elements()[0].offset();
    while position() != Offset::Offset(6) {
        assert!(Instant::now() < deadline, "stays at {:?}", position());
        let _ = consumer.poll(Duration::from_millis(50));
    }
    let end = consumer.fetch_watermarks(&topic, 0, PATIENCE).expect("is answered").1;
    assert_eq!(end, 6);
}

fn waiting_at_start(topic: &str) -> BaseConsumer {
    let consumer = reader("read_committed");
    consumer.assign(&offsets(topic, 0)).expect("is assigned");
    consumer
}
