//! Offsets: of the log, by time, and committed.

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{
    GroupId, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
};
use kafka_protocol::records::Compression;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::cluster::{PATIENCE, client, connect, produce, producer, reader, topic, unique};
use crate::raw::{NOBODY, Raw, batch_at, find_coordinator, now_ms, produce_raw, retry, text, topic_name};

fn list_offsets(raw: &mut Raw, topic: &str, timestamp: i64, isolation: i8) -> (i16, i64, i64) {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default()
        .with_replica_id((-1).into())
        .with_isolation_level(isolation)
        .with_topics(vec![topic]);
    let response = raw.call(&request, 7);
    let answer = &response.topics[0].partitions[0];
    (answer.error_code, answer.offset, answer.timestamp)
}

#[test]
fn the_watermarks_follow_the_log() {
    let topic = topic("watermarks", 1, &[]);
    let watermarks = || reader("read_committed").fetch_watermarks(&topic, 0, PATIENCE).expect("answered");
    assert_eq!(watermarks(), (0, 0));
    produce(&producer(&[]), &topic, 0, &[("a", "1"), ("b", "2")]);
    assert_eq!(watermarks(), (0, 2));
}

#[test]
fn an_offset_is_found_by_time_within_a_batch() {
    let topic = topic("by-time", 1, &[]);
    let mut raw = connect();
    let start = now_ms() - 100_000;
    for (at, codec) in [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let time = start + at as i64 * 1000;
        let batch = batch_at(NOBODY, &["x", "y"], time, codec);
        assert_eq!(produce_raw(&mut raw, &topic, None, batch).error_code, 0);
    }
    assert_eq!(list_offsets(&mut raw, &topic, start - 1, 0), (0, 0, start));
    assert_eq!(list_offsets(&mut raw, &topic, start + 1, 0), (0, 2, start + 1000));
    assert_eq!(list_offsets(&mut raw, &topic, start + 2000, 0), (0, 4, start + 2000));
    assert_eq!(list_offsets(&mut raw, &topic, start + 2001, 0), (0, -1, -1));
    let latest = list_offsets(&mut raw, &topic, -1, 0);
    assert_eq!(latest, (0, 6, -1));
    assert_eq!(list_offsets(&mut raw, &topic, -2, 0), (0, 0, -1));
    assert_eq!(list_offsets(&mut raw, &topic, -3, 0).2, start + 2000);
    assert_eq!(list_offsets(&mut raw, &unique("none"), -1, 0).0, 3);

    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(start + 500)).expect("is valid");
    let found = reader("read_committed").offsets_for_times(list, PATIENCE).expect("is answered");
    assert_eq!(found.elements()[0].offset(), Offset::Offset(2));
}

#[test]
fn the_largest_time_need_not_be_the_last() {
    let topic = topic("max-time", 1, &[]);
    let mut raw = connect();
    let start = now_ms() - 100_000;
    for time in [start, start + 5000, start + 1000] {
        produce_raw(&mut raw, &topic, None, batch_at(NOBODY, &["x"], time, Compression::None));
    }
    assert_eq!(list_offsets(&mut raw, &topic, -3, 0), (0, 1, start + 5000));
    assert_eq!(list_offsets(&mut raw, &topic, start + 500, 0), (0, 1, start + 5000));
}

#[test]
fn the_only_leader_epoch_ends_at_the_end_of_the_log() {
    let topic = topic("epoch", 1, &[]);
    produce(&producer(&[]), &topic, 0, &[("a", "1"), ("b", "2")]);
    let partition = OffsetForLeaderPartition::default()
        .with_partition(0)
        .with_current_leader_epoch(-1)
        .with_leader_epoch(0);
    let wanted =
        OffsetForLeaderTopic::default().with_topic(topic_name(&topic)).with_partitions(vec![partition]);
    let request =
        OffsetForLeaderEpochRequest::default().with_replica_id((-2).into()).with_topics([wanted].to_vec());
    let response = connect().call(&request, 4);
    let answer = &response.topics[0].partitions[0];
    assert_eq!((answer.error_code, answer.leader_epoch, answer.end_offset), (0, 0, 2));
}

#[test]
fn committed_offsets_come_back_with_their_metadata() {
    let topic = topic("committed", 2, &[]);
    let group = unique("committed");
    let mut config = client();
    config.set("group.id", &group).set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().expect("is created");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(42)).expect("is valid");
    list.elements()[0].set_metadata("note");
    consumer.commit(&list, CommitMode::Sync).expect("is committed");

    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    wanted.add_partition(&topic, 1);
    let found = consumer.committed_offsets(wanted, PATIENCE).expect("is answered");
    let offsets: Vec<_> = found.elements().iter().map(|e| (e.offset(), e.metadata().to_owned())).collect();
    assert_eq!(offsets, [(Offset::Offset(42), "note".to_owned()), (Offset::Invalid, String::new())]);
}

fn commit(raw: &mut Raw, group: &str, topic: &str, metadata: &str, version: i16) -> i16 {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(5)
        .with_committed_metadata(Some(text(metadata)));
    let topic =
        OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    retry(|| {
        let error = raw.call(&request, version).topics[0].partitions[0].error_code;
        (error, error)
    })
}

#[test]
fn commits_are_checked_partition_by_partition() {
    let topic = topic("checked", 1, &[]);
    let group = unique("checked");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    assert_eq!(commit(&mut raw, &group, &unique("none"), "", 8), 3);
    assert_eq!(commit(&mut raw, &group, &topic, &"x".repeat(5000), 8), 12);
    for version in 2..=9 {
        assert_eq!(commit(&mut raw, &group, &topic, "", version), 0, "version {version}");
    }
}

#[test]
fn several_groups_are_asked_for_at_once() {
    let topic = topic("several", 1, &[]);
    let groups = [unique("one"), unique("two")];
    let mut raw = connect();
    for group in &groups {
        find_coordinator(&mut raw, group, 0);
        assert_eq!(commit(&mut raw, group, &topic, "", 8), 0);
    }
    let wanted = |group: &String| {
        let topics =
            OffsetFetchRequestTopics::default().with_name(topic_name(&topic)).with_partition_indexes(vec![0]);
        OffsetFetchRequestGroup::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topics]))
    };
    let request = OffsetFetchRequest::default().with_groups(groups.iter().map(wanted).collect());
    let response = raw.call(&request, 8);
    let offsets: Vec<i64> =
        response.groups.iter().map(|g| g.topics[0].partitions[0].committed_offset).collect();
    assert_eq!(offsets, [5, 5]);
    let all = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(&groups[0]))).with_topics(None);
    let response = raw.call(&OffsetFetchRequest::default().with_groups(vec![all]), 8);
    assert_eq!(response.groups[0].topics[0].partitions[0].committed_offset, 5);
}
